//! Keeps the wanted number of pods: ReplicaSets and ReplicationControllers, which differ in little but name.

mod census;
mod kinds;
mod plan;

use crate::claim::{Owner, claim};
use crate::context::{Context, now};
use crate::pod_control::{BURST, PodControl, message};
use crate::util::until_due;
use crate::{pods, wire};
use async_trait::async_trait;
use census::Census;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use keelson_client::{
    ApiObject, Controller, Expectations, Informer, ObjectKey, Objects, Outcome, Reconcile, Rest, is_not_found,
    selection,
};
use kinds::Replicated;
use plan::Step;
use std::sync::Arc;

pub fn start_replica_sets(context: &Context) {
    start::<ReplicaSet>(context, "replicaset", "replicaset-controller");
}

pub fn start_replication_controllers(context: &Context) {
    start::<ReplicationController>(context, "replicationcontroller", "replication-controller");
}

fn start<K: Replicated>(context: &Context, name: &'static str, account: &'static str) {
    let sets = context.informer::<K>();
    let pods = context.informer::<Pod>();
    pods::index(pods.store());
    sets.store().index_controllers();
    let controller = Controller::new(name)
        .input(&sets)
        .input(&pods)
        .output(<Pod as keelson_client::Kind>::RESOURCE)
        .output(K::RESOURCE);
    let queue = controller.queue();
    wire::own(&sets, &queue);
    wire::quota_release(&context.informer(), &queue);
    // It counts a change before the change has its set looked at.
    let census = Arc::new(Census::new(K::KIND, K::GROUP));
    let counting = census.clone();
    pods.on_change(move |change| counting.changed(change));
    sets.store()
        .index_wanted(|set| selection::wanted_by(set.namespace(), Some(&set.selector())));
    let known = sets.clone();
    wire::owned(&pods, &queue, K::KIND, K::GROUP, move |pod, queue| {
        for set in known.store().selecting(pod.namespace(), pod.metadata.labels.as_ref()) {
            if set.selects(pod.metadata.labels.as_ref()) {
                queue.add(set.key());
            }
        }
    });
    let rest = context.rest(account);
    let control = PodControl::new(&rest, context.recorder(&rest, account));
    let objects = Objects::new(&rest);
    context.run(
        controller,
        Sets {
            sets,
            pods,
            census,
            control,
            objects,
            rest,
            own: Expectations::default(),
        },
    );
}

struct Sets<K: Replicated> {
    sets: Informer<K>,
    pods: Informer<Pod>,
    census: Arc<Census>,
    control: PodControl,
    objects: Objects<K>,
    rest: Rest,
    /// What was written to the sets themselves.
    own: Expectations,
}

#[async_trait]
impl<K: Replicated> Reconcile for Sets<K> {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        self.control.written.settle(key, self.pods.store()).await?;
        self.own.settle(key, self.sets.store()).await?;
        let Some(set) = self.sets.store().get_key(key) else {
            self.control.written.forget(key);
            self.own.forget(key);
            return Ok(Outcome::Done);
        };
        let owner = Owner::of(&*set);
        let counted = self.counted(&*set, &owner);
        let (counts, next, active) = match counted {
            Some(counts) => (counts, None, None),
            None => {
                let (active, terminating) = self.claimed(&*set, &owner).await?;
                let now = now();
                let counts = plan::count(&*set, &active, terminating, now);
                (
                    counts,
                    plan::next_check(set.min_ready_seconds(), &active, now),
                    Some(active),
                )
            }
        };
        let failure = if set.is_deleting() {
            None
        } else {
            self.scale(&set, &owner, counts.replicas, active).await?
        };
        if let Some(changed) = set.with_status(&counts, failure.as_deref(), now()) {
            match self.objects.update_status(&changed).await {
                Ok(written) => self.own.wrote(key, written.meta()),
                Err(error) if is_not_found(&error) => return Ok(Outcome::Done),
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(failure) = failure {
            anyhow::bail!("{failure}");
        }
        Ok(match next {
            Some(wait) => Outcome::After(until_due(wait)),
            None => Outcome::Done,
        })
    }
}

fn is_owned(pod: &Pod, owner: &Owner) -> bool {
    wire::controller_of(pod.meta()).is_some_and(|c| c.uid == owner.uid)
}

impl<K: Replicated> Sets<K> {
    /// How many pods there are, if it can be told without a look at each: no pod is to be adopted or let go of.
    fn counted(&self, set: &K, owner: &Owner) -> Option<plan::Counts> {
        let is_for_us = |pod: &Arc<Pod>| pods::is_active(pod) && set.selects(pod.metadata.labels.as_ref());
        let orphans = pods::orphans(self.pods.store(), &owner.namespace, &set.selector());
        if orphans.iter().any(is_for_us) {
            return None;
        }
        let groups = self.census.of(&owner.uid);
        // The store has a change before it is counted. An adopted pod is no orphan any more then, and is missing here yet: to go by
        // that would make one too many.
        let known: usize = groups.iter().map(|(_, number)| number.pods).sum();
        if known != self.pods.store().count_controlled_by(&owner.uid) {
            return None;
        }
        plan::count_groups(set, &groups)
    }

    /// The active pods that are the set's, after adopting and letting go, and how many of its pods are on their way out.
    async fn claimed(&self, set: &K, owner: &Owner) -> anyhow::Result<(Vec<Arc<Pod>>, usize)> {
        let candidates = pods::candidates(self.pods.store(), owner, &set.selector());
        let (active, rest): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|pod| pods::is_active(pod));
        let matches = |pod: &Pod| set.selects(pod.metadata.labels.as_ref());
        let active = claim(&self.rest, owner, active, matches).await?;
        let terminating = rest
            .iter()
            .filter(|pod| pods::is_terminating(pod) && matches(pod) && is_owned(pod, owner))
            .count();
        Ok((active, terminating))
    }

    /// Creates or deletes pods; returns what failed. Whoever deletes looks at each of them, if that hasn't been done.
    async fn scale(
        &self,
        set: &K,
        owner: &Owner,
        replicas: i32,
        active: Option<Vec<Arc<Pod>>>,
    ) -> anyhow::Result<Option<String>> {
        let result = match plan::step(replicas.max(0) as usize, set.wanted(), BURST) {
            Step::None => Ok(()),
            Step::Create(count) => {
                let pod = pods::from_template(&set.template(), owner);
                self.control.create_many(owner, &vec![pod; count]).await.1
            }
            Step::Delete(_) => {
                let active = match active {
                    Some(active) => active,
                    None => self.claimed(set, owner).await?.0,
                };
                let count = match plan::step(active.len(), set.wanted(), BURST) {
                    Step::Delete(count) => count,
                    _ => 0,
                };
                let victims = plan::victims(&active, &self.related(set, owner), count, now());
                self.control.delete_many(owner, &victims).await
            }
        };
        Ok(result.err().map(|error| message(&error)))
    }

    /// The pods of all sets of the same owner (a deployment's), to spread what is deleted over nodes.
    fn related(&self, set: &K, owner: &Owner) -> Vec<Arc<Pod>> {
        let siblings = match wire::controller_of(set.meta()) {
            Some(controller) => self.sets.store().controlled_by(&controller.uid),
            None => Vec::new(),
        };
        let mut uids: Vec<String> = siblings.iter().map(|s| s.uid().to_string()).collect();
        if uids.is_empty() {
            uids.push(owner.uid.clone());
        }
        uids.iter()
            .flat_map(|uid| self.pods.store().controlled_by(uid))
            .collect()
    }
}
