//! `apps`: Deployment, ReplicaSet, StatefulSet, DaemonSet, ControllerRevision.

use crate::context::Cx;
use crate::strategy::{Behaviour, Generation, same};
use keelson_api::Object;

const DEPLOYMENT: Behaviour = Behaviour {
    generation: Generation::Follows(&["spec", "metadata.annotations"]),
    status_keeps: &["labels"],
    ..Behaviour::WITH_STATUS
};

const DAEMON_SET: Behaviour = Behaviour {
    prepare_create: daemon_set_create,
    prepare_update: daemon_set_update,
    prepare_status: |_, new, old| {
        new.set_at(&TEMPLATE_GENERATION, template_generation(old).max(1).to_string());
    },
    ..Behaviour::WITH_STATUS
};

/// Where `v1` shows how often the template changed.
const TEMPLATE_GENERATION: [&str; 3] = ["metadata", "annotations", "deprecated.daemonset.template.generation"];

fn template_generation(o: &Object) -> i64 {
    o.str_at(&TEMPLATE_GENERATION).and_then(|s| s.parse().ok()).unwrap_or(0)
}

fn daemon_set_create(_: &Cx, obj: &mut Object) {
    let at_least_one = template_generation(obj).max(1);
    obj.set_at(&TEMPLATE_GENERATION, at_least_one.to_string());
}

fn daemon_set_update(_: &Cx, new: &mut Object, old: &Object) {
    let changed = !same(new.at(&["spec", "template"]), old.at(&["spec", "template"]));
    let next = template_generation(old).max(1) + i64::from(changed);
    new.set_at(&TEMPLATE_GENERATION, next.to_string());
}

pub fn behaviour(kind: &str) -> Option<&'static Behaviour> {
    Some(match kind {
        "Deployment" => &DEPLOYMENT,
        "ReplicaSet" | "StatefulSet" => &Behaviour::WITH_STATUS,
        "DaemonSet" => &DAEMON_SET,
        "ControllerRevision" => &Behaviour::DEFAULT,
        _ => return None,
    })
}
