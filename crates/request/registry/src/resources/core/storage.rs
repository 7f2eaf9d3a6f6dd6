//! PersistentVolume and PersistentVolumeClaim.

use crate::context::Cx;
use crate::meta::timestamp;
use crate::strategy::Behaviour;
use keelson_api::{Map, Object, Value};

pub const VOLUME: Behaviour = Behaviour {
    status: true,
    returns_deleted: true,
    prepare_create: volume_create,
    prepare_status: volume_status,
    ..Behaviour::DEFAULT
};

pub const CLAIM: Behaviour = Behaviour {
    status: true,
    returns_deleted: true,
    prepare_create: |_, o| {
        o.set_at(&["status", "phase"], "Pending");
        data_sources(o, None);
    },
    prepare_update: |_, new, old| data_sources(new, Some(old)),
    ..Behaviour::DEFAULT
};

const SINCE: [&str; 2] = ["status", "lastPhaseTransitionTime"];

fn volume_create(_: &Cx, o: &mut Object) {
    o.set_at(&["status", "phase"], "Pending");
    o.set_at(&SINCE, timestamp(keelson_clock::now()));
}

/// The time of the last change of phase follows the phase.
fn volume_status(_: &Cx, new: &mut Object, old: &Object) {
    let phase = |o: &Object| o.str_at(&["status", "phase"]).unwrap_or_default().to_string();
    let since = |o: &Object| o.at(&SINCE).cloned();
    if phase(new) == phase(old) {
        if since(new).is_none()
            && let Some(t) = since(old)
        {
            new.set_at(&SINCE, t);
        }
    } else if since(new).is_none() || since(new) == since(old) {
        new.set_at(&SINCE, timestamp(keelson_clock::now()));
    }
}

/// `dataSource` and `dataSourceRef` say the same in an old and a new way.
fn data_sources(new: &mut Object, old: Option<&Object>) {
    let used_before =
        old.is_some_and(|o| o.at(&["spec", "dataSource"]).is_some() || o.at(&["spec", "dataSourceRef"]).is_some());
    let referred_before = old.is_some_and(|o| o.at(&["spec", "dataSourceRef"]).is_some());
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    // Sources in other namespaces are a feature that is off (CrossNamespaceVolumeDataSource).
    let elsewhere = spec
        .obj("dataSourceRef")
        .is_some_and(|r| !r.str("namespace").unwrap_or_default().is_empty());
    if elsewhere && !referred_before {
        spec.remove("dataSourceRef");
    }
    if !used_before && !spec.contains_key("dataSourceRef") {
        let allowed = spec.obj("dataSource").is_some_and(|s| {
            let group = s.str("apiGroup").unwrap_or_default();
            matches!(
                (group, s.str("kind").unwrap_or_default()),
                ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
            )
        });
        if !allowed {
            spec.remove("dataSource");
        }
    }
    let copy = |from: &Map| {
        let mut to = Map::new();
        for key in ["apiGroup", "kind", "name"] {
            if let Some(v) = from.get(key) {
                to.insert(key, v.clone());
            }
        }
        to
    };
    match (spec.obj("dataSource"), spec.obj("dataSourceRef")) {
        (Some(source), None) => {
            let r = copy(source);
            spec.insert("dataSourceRef", r);
        }
        (None, Some(r)) if r.str("namespace").unwrap_or_default().is_empty() => {
            let source = copy(r);
            spec.insert("dataSource", source);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn kept(new: Value, old: Option<Value>) -> Value {
        let claim = |spec: Value| Object(value!({"spec": spec}).as_object().cloned().unwrap_or_default());
        let mut new = claim(new);
        data_sources(&mut new, old.map(claim).as_ref());
        new.get("spec").cloned().unwrap_or_default()
    }

    #[test]
    fn a_source_in_another_namespace_is_not_kept() {
        let elsewhere =
            value!({"dataSourceRef": {"kind": "PersistentVolumeClaim", "name": "theirs", "namespace": "other"}});
        assert_eq!(kept(elsewhere.clone(), None), value!({}));
        assert_eq!(kept(elsewhere.clone(), Some(value!({}))), value!({}));
        assert_eq!(kept(elsewhere.clone(), Some(elsewhere.clone())), elsewhere);
        let own = value!({"kind": "PersistentVolumeClaim", "name": "mine"});
        let both = value!({"dataSource": own.clone(), "dataSourceRef": own.clone()});
        assert_eq!(kept(value!({"dataSourceRef": own.clone()}), None), both);
        assert_eq!(kept(value!({"dataSource": own}), None), both);
    }
}
