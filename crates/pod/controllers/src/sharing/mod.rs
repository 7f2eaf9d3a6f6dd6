//! Copies of ConfigMaps and Secrets in other namespaces. An administrator names the namespaces from which anything is shared; there each
//! object says with whom ([`policy`]); what becomes of it is pure ([`plan`]). A copy never takes the place of what is somebody else's.
//!
//! Where no namespace is named, nothing is watched.

mod plan;
mod policy;

use crate::context::Context;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use keelson_client::rest::is_namespace_terminating;
use keelson_client::{
    Controller, EventType, Informer, InformerOptions, ObjectKey, Objects, Outcome, Reconcile, Recorder, delete_options,
    is_already_exists, is_conflict, is_not_found,
};
use plan::{COPY, Content, Step, is_source, plan, source_of};
use policy::Recipients;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const IDENTITY: &str = "keelson-sharing";
const BY_SOURCE: &str = "source";

pub fn start(context: &Context) {
    if context.config.share_from.is_empty() {
        return;
    }
    let recorder = context.recorder(&context.rest(IDENTITY), IDENTITY);
    start_one::<ConfigMap>(context, &recorder);
    start_one::<Secret>(context, &recorder);
}

fn start_one<K: Content>(context: &Context, recorder: &Recorder) {
    let namespaces = context.informer::<Namespace>();
    let options = InformerOptions {
        labels: format!("{}={}", COPY.0, COPY.1),
        ..InformerOptions::default()
    };
    let copies = Informer::<K>::start(&context.reader(), options, &context.stop);
    copies.store().add_index(BY_SOURCE, |copy| {
        source_of(copy).iter().map(ToString::to_string).collect()
    });
    let mut controller = Controller::new(K::CONTROLLER)
        .input(&namespaces)
        .input(&copies)
        .output(K::RESOURCE);
    let names: BTreeSet<&String> = context.config.share_from.iter().collect();
    let mut sources = BTreeMap::new();
    for name in names {
        let options = InformerOptions {
            namespace: name.clone(),
            ..InformerOptions::default()
        };
        let informer = Informer::<K>::start(&context.reader(), options, &context.stop);
        controller = controller.input(&informer);
        sources.insert(name.clone(), informer);
    }
    let queue = controller.queue();
    for informer in sources.values() {
        let queue = queue.clone();
        informer.on_change(move |change| queue.add(change.object().key()));
    }
    let copied = queue.clone();
    copies.on_change(move |change| {
        // One that says so no more was of another.
        let both = [Some(change.object()), change.old()];
        both.into_iter()
            .flatten()
            .filter_map(|copy| source_of(&**copy))
            .for_each(|key| copied.add(key));
    });
    let all: Vec<Informer<K>> = sources.values().cloned().collect();
    namespaces.on_change(move |change| {
        let new = change.object();
        let says = |n: &Namespace| {
            (
                n.metadata.labels.clone(),
                n.metadata.annotations.clone(),
                n.status.clone(),
            )
        };
        if change.is_deleted() || change.old().is_some_and(|old| says(old) == says(new)) {
            return;
        }
        for source in all.iter().flat_map(|informer| informer.store().list()) {
            if is_shared(&*source) {
                queue.add(source.key());
            }
        }
    });
    let sharing = Sharing {
        namespaces,
        sources,
        copies,
        objects: Objects::new(&context.rest(IDENTITY)),
        recorder: recorder.clone(),
    };
    context.run(controller, sharing);
}

fn is_shared<K: Content>(object: &K) -> bool {
    is_source(object) && !matches!(Recipients::of(object.meta()), Ok(None))
}

struct Sharing<K> {
    namespaces: Informer<Namespace>,
    sources: BTreeMap<String, Informer<K>>,
    copies: Informer<K>,
    objects: Objects<K>,
    recorder: Recorder,
}

#[async_trait]
impl<K: Content> Reconcile for Sharing<K> {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let source = self
            .sources
            .get(&key.namespace)
            .and_then(|informer| informer.store().get_key(key));
        let source = source.filter(|source| is_source(&**source));
        let recipients = match source.as_ref().map(|source| Recipients::of(source.meta())) {
            None => None,
            Some(Ok(recipients)) => recipients,
            // Nothing is given, and nothing taken away, by what isn't understood.
            Some(Err(why)) => {
                if let Some(source) = &source {
                    self.recorder.event(&**source, EventType::Warning, "NotShared", why);
                }
                return Ok(Outcome::Done);
            }
        };
        let copies = self.copies.store().by_index(BY_SOURCE, &key.to_string());
        let shared = source.as_deref().zip(recipients.as_ref());
        if shared.is_none() && copies.is_empty() {
            return Ok(Outcome::Done);
        }
        let mut outcome = Outcome::Done;
        for step in plan(shared, &self.namespaces.store().list(), &copies) {
            match self.act(step, source.as_ref()).await {
                Ok(()) => {}
                Err(error) if is_conflict(&error) => outcome = Outcome::Retry,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(outcome)
    }
}

impl<K: Content> Sharing<K> {
    async fn act(&self, step: Step<K>, source: Option<&Arc<K>>) -> keelson_client::Result<()> {
        match step {
            Step::Create(copy) => match self.objects.create(&copy).await {
                Err(error) if is_already_exists(&error) => {
                    self.is_others(&copy, source).await?;
                    Ok(())
                }
                Err(error) if is_namespace_terminating(&error) || is_not_found(&error) => Ok(()),
                made => made.map(drop),
            },
            Step::Update(copy) => match self.objects.update(&copy).await {
                Err(error) if is_not_found(&error) => Ok(()),
                updated => updated.map(drop),
            },
            Step::Delete(copy) => {
                let meta = copy.meta();
                let options = delete_options(None, meta.uid.as_deref(), meta.resource_version.as_deref());
                match self.objects.delete(copy.namespace(), copy.name(), &options).await {
                    Err(error) if is_not_found(&error) => Ok(()),
                    deleted => deleted,
                }
            }
        }
    }

    /// Tells the source, unless it is a copy that the informer hasn't heard of yet.
    async fn is_others(&self, copy: &K, source: Option<&Arc<K>>) -> keelson_client::Result<()> {
        let there = self.objects.find(copy.namespace(), copy.name()).await?;
        let is_ours = there.is_some_and(|there| plan::is_copy(&there) && source_of(&there) == source_of(copy));
        if let Some(source) = source.filter(|_| !is_ours) {
            let message = format!(
                "In namespace {} there is one of this name that is no copy: it stays",
                copy.namespace()
            );
            self.recorder.event(&**source, EventType::Warning, "NotShared", message);
        }
        Ok(())
    }
}
