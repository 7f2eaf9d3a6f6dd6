//! Rolls workloads out anew whose ConfigMaps or Secrets have changed, if their annotations ask for it ([`follows`]). What was rolled out last
//! stands in an annotation of the workload ([`plan`]), so that no change is missed and none counts twice, whoever dies in between.
//!
//! Where no workload asks for it, nothing is watched beyond the workloads, which others watch anyway ([`watching`]).

mod follows;
mod plan;
mod print;
mod watching;

use crate::context::Context;
use crate::wire;
use async_trait::async_trait;
use follows::Followed;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use keelson_client::{
    Controller, EventType, Informer, Kind, ObjectKey, Objects, Outcome, Patch, Reconcile, Recorder, is_not_found,
};
use plan::Plan;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use watching::{Here, Watching};

const IDENTITY: &str = "keelson-reload";

/// What has a template of pods that is rolled out.
trait Workload: Kind {
    const CONTROLLER: &'static str;
    fn template(&self) -> &PodTemplateSpec;
}

macro_rules! workload {
    ($kind:ty, $name:literal) => {
        impl Workload for $kind {
            const CONTROLLER: &'static str = $name;
            fn template(&self) -> &PodTemplateSpec {
                &self.spec.template
            }
        }
    };
}

workload!(DaemonSet, "reload-daemonset");
workload!(Deployment, "reload-deployment");
workload!(StatefulSet, "reload-statefulset");

pub fn start(context: &Context) {
    if !context.config.reload {
        return;
    }
    let watching = Watching::new(context.reader(), context.stop.clone());
    let recorder = context.recorder(&context.rest(IDENTITY), IDENTITY);
    start_one::<Deployment>(context, &watching, &recorder);
    start_one::<StatefulSet>(context, &watching, &recorder);
    start_one::<DaemonSet>(context, &watching, &recorder);
}

fn start_one<K: Workload>(context: &Context, watching: &Arc<Watching>, recorder: &Recorder) {
    let workloads = context.informer::<K>();
    let controller = Controller::new(K::CONTROLLER).input(&workloads).output(K::RESOURCE);
    let queue = controller.queue();
    wire::own(&workloads, &queue);
    let reload = Reload {
        workloads,
        objects: Objects::new(&context.rest(IDENTITY)),
        watching: watching.clone(),
        recorder: recorder.clone(),
        queue,
    };
    context.run(controller, reload);
}

struct Reload<K> {
    workloads: Informer<K>,
    objects: Objects<K>,
    watching: Arc<Watching>,
    recorder: Recorder,
    queue: wire::Queue,
}

#[async_trait]
impl<K: Workload> Reconcile for Reload<K> {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let workload = self.workloads.store().get_key(key).filter(|w| !w.is_deleting());
        let wanted = workload.and_then(|w| Some((follows::wanted(w.meta(), w.template())?, w)));
        let Some((wanted, workload)) = wanted else {
            self.watching.leave(K::CONTROLLER, key);
            return Ok(Outcome::Done);
        };
        let Some(here) = self.watching.join(K::CONTROLLER, key, &self.queue).await else {
            return Ok(Outcome::Done);
        };
        let prints = prints(&wanted, &here);
        let seen = workload.meta().annotations.as_ref().and_then(|a| a.get(plan::SEEN));
        let (seen, changed) = match plan::plan(seen.map(String::as_str), &prints) {
            Plan::Nothing => return Ok(Outcome::Done),
            Plan::Note(seen) => (seen, None),
            Plan::Reload { seen, changed } => (seen, Some(changed)),
        };
        let meta = workload.meta();
        let noted = json!({plan::SEEN: seen});
        let mut body =
            json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version, "annotations": noted}});
        if let Some(changed) = &changed {
            body["spec"] = json!({"template": {"metadata": {"annotations": {plan::RELOADED: changed}}}});
        }
        match self.objects.patch(&key.namespace, &key.name, Patch::Merge(&body)).await {
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => {
                if let Some(changed) = changed {
                    let names = plan::names(&changed).join(", ");
                    let message = format!("Rolled out anew: {names} changed");
                    self.recorder.event(&*workload, EventType::Normal, "Reloaded", message);
                }
            }
        }
        Ok(Outcome::Done)
    }
}

/// Of each that is followed: how it is now; `None`: it isn't there.
fn prints(wanted: &[Followed], here: &Here) -> BTreeMap<String, Option<String>> {
    let one = |followed: &Followed| {
        let found = here.get(followed.kind, &followed.name);
        let found = found.filter(|print| print.is_followed(followed.only_matching));
        (followed.to_string(), found.map(|print| print.text().to_owned()))
    };
    wanted.iter().map(one).collect()
}
