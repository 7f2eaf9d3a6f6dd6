//! The core group.

mod label_keys;
mod namespace;
mod node;
mod pod;
mod qos;
pub mod service;
mod storage;

use crate::context::Cx;
use crate::strategy::{Behaviour, GcPolicy, Generation};
use keelson_api::{Map, Object, Value};

const CREATE_ON_UPDATE: Behaviour = Behaviour {
    create_on_update: true,
    ..Behaviour::DEFAULT
};
const EVENT: Behaviour = Behaviour {
    gc: GcPolicy::Unsupported,
    expires: true,
    ..CREATE_ON_UPDATE
};
const LIMIT_RANGE: Behaviour = Behaviour {
    prepare_create: limit_range_create,
    ..CREATE_ON_UPDATE
};
const REPLICATION_CONTROLLER: Behaviour = Behaviour {
    gc: GcPolicy::Orphan,
    ..Behaviour::WITH_STATUS
};
const QUOTA: Behaviour = Behaviour {
    status: true,
    returns_deleted: true,
    ..Behaviour::DEFAULT
};
const SECRET: Behaviour = Behaviour {
    prepare_update: secret_update,
    ..Behaviour::DEFAULT
};
const SERVICE_ACCOUNT: Behaviour = Behaviour {
    returns_deleted: true,
    prepare_create: |_, o| clean_secrets(o),
    prepare_update: |_, o, _| clean_secrets(o),
    ..Behaviour::DEFAULT
};
const POD_TEMPLATE: Behaviour = Behaviour {
    returns_deleted: true,
    generation: Generation::Follows(&["template"]),
    ..Behaviour::DEFAULT
};

fn limit_range_create(_: &Cx, o: &mut Object) {
    if o.name().is_empty() {
        let uid = o.uid().to_string();
        o.set_meta("name", &uid);
    }
}

/// An update without a type keeps the type.
fn secret_update(_: &Cx, new: &mut Object, old: &Object) {
    if new.str("type").unwrap_or_default().is_empty()
        && let Some(t) = old.get("type")
    {
        new.insert("type", t.clone());
    }
}

/// Of the secrets that a service account names only the names count.
fn clean_secrets(o: &mut Object) {
    let Some(Value::Array(list)) = o.get_mut("secrets") else {
        return;
    };
    for secret in list {
        let mut named = Map::new();
        if let Some(name) = secret.get("name") {
            named.push("name", name.clone());
        }
        *secret = named.into();
    }
}

pub fn qos_class(pod: &Object) -> &'static str {
    qos::class(pod)
}

pub fn behaviour(kind: &str) -> Option<&'static Behaviour> {
    Some(match kind {
        "Endpoints" => &CREATE_ON_UPDATE,
        "Event" => &EVENT,
        "LimitRange" => &LIMIT_RANGE,
        "Namespace" => &namespace::NAMESPACE,
        "Node" => &node::NODE,
        "PersistentVolume" => &storage::VOLUME,
        "PersistentVolumeClaim" => &storage::CLAIM,
        "Pod" => &pod::POD,
        "PodTemplate" => &POD_TEMPLATE,
        "ReplicationController" => &REPLICATION_CONTROLLER,
        "ResourceQuota" => &QUOTA,
        "Secret" => &SECRET,
        "Service" => &service::SERVICE,
        "ServiceAccount" => &SERVICE_ACCOUNT,
        _ => return None,
    })
}
