//! What is filled in where a field was left out and the value depends on other fields, or on more than a constant.
//! (Constant defaults that upstream declares in its types stand in the schema.)
//!
//! Objects come in canonical form: an absent field and an empty one are the same, except where the type always writes it.

mod core;
mod groups;
mod pod;
mod workloads;

use keelson_api::{Map, Object, Value};

pub use pod::hugepages_and_requests;

/// The defaults of a kind.
pub fn of(group: &str, kind: &str) -> fn(&mut Object) {
    match group {
        "" => core::of(kind),
        "apps" | "batch" => workloads::of(kind),
        _ => groups::of(group, kind),
    }
}

fn unset(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::String(s)) => s.is_empty(),
        _ => false,
    }
}

/// Sets a member that is absent, null or an empty text.
fn fill(map: &mut Map, key: &str, value: impl Into<Value>) {
    if unset(map.get(key)) {
        map.insert(key, value);
    }
}

/// Sets a number that is absent or zero.
fn fill_zero(map: &mut Map, key: &str, value: i64) {
    if map.int(key).unwrap_or(0) == 0 {
        map.insert(key, value);
    }
}

/// Sets a member that is absent, even where an empty text would be a choice.
fn fill_absent(map: &mut Map, key: &str, value: impl Into<Value>) {
    if matches!(map.get(key), None | Some(Value::Null)) {
        map.insert(key, value);
    }
}

/// The map at `key`, if there is one.
fn inner<'a>(map: &'a mut Map, key: &str) -> Option<&'a mut Map> {
    map.get_mut(key)?.as_object_mut()
}

/// Every map of a list.
fn each(map: &mut Map, key: &str, mut f: impl FnMut(&mut Map)) {
    if let Some(Value::Array(list)) = map.get_mut(key) {
        list.iter_mut().filter_map(Value::as_object_mut).for_each(&mut f);
    }
}

fn has_items(map: &Map, key: &str) -> bool {
    match map.get(key) {
        Some(Value::Array(a)) => !a.is_empty(),
        Some(Value::Object(m)) => !m.is_empty(),
        _ => false,
    }
}

/// Resource amounts are kept to thousandths: finer ones are rounded up.
fn round_resources(map: &mut Map, key: &str) {
    let Some(list) = inner(map, key) else { return };
    for value in list.values_mut() {
        let Some(q) = value.as_str().and_then(|s| keelson_api::Quantity::parse(s).ok()) else {
            continue;
        };
        if !q.is_whole_milli() {
            let rounded = keelson_api::Quantity::from_milli(q.milli_value(), q.format());
            *value = rounded.to_string().into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn defaulted(group: &str, kind: &str, v: Value) -> Object {
        let mut o = Object::try_from(v).unwrap();
        of(group, kind)(&mut o);
        o
    }

    #[test]
    fn a_pod_gets_what_upstream_gives_it() {
        let pod = defaulted(
            "",
            "Pod",
            value!({"metadata": {"name": "a"}, "spec": {"hostNetwork": true, "containers": [{
                "name": "c", "image": "nginx", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1"}},
                "livenessProbe": {"httpGet": {"port": 80}},
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
            }], "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}]}}),
        );
        let want = value!({
            "hostNetwork": true,
            "containers": [{
                "name": "c", "image": "nginx", "ports": [{"containerPort": 80, "hostPort": 80}],
                "imagePullPolicy": "Always",
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
                    "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v1"}}}]
            }],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}],
            "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {}, "schedulerName": "default-scheduler",
            "terminationGracePeriodSeconds": 30, "enableServiceLinks": true
        });
        assert_eq!(pod.get("spec"), Some(&want));
    }

    #[test]
    fn a_deployment_and_a_service_too() {
        let d = defaulted(
            "apps",
            "Deployment",
            value!({"spec": {"template": {"spec": {"containers": []}}}}),
        );
        assert_eq!(
            d.at(&["spec", "strategy"]),
            Some(&value!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}))
        );
        assert_eq!(
            d.at(&["spec", "template", "spec", "enableServiceLinks"]),
            None,
            "templates don't get what only pods get"
        );
        let s = defaulted(
            "",
            "Service",
            value!({"spec": {"ports": [{"port": 80, "targetPort": 0}]}}),
        );
        assert_eq!(
            s.get("spec"),
            Some(
                &value!({"ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}], "sessionAffinity": "None",
                "type": "ClusterIP", "internalTrafficPolicy": "Cluster"})
            )
        );
    }

    #[test]
    fn pull_policies_follow_tags() {
        for (image, latest) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1", false),
            ("host:5000/nginx", true),
            ("[fd00::1]/nginx", true),
            ("[fd00::1]:5000/nginx", true),
            ("[host]/nginx", false),
            ("Host/nginx", true),
            (
                "nginx@sha256:0123456789012345678901234567890123456789012345678901234567890123",
                false,
            ),
            ("", false),
            ("a.b-c__d--e", true),
            ("a.-b", false),
            ("a".repeat(247).as_str(), true),
            ("a".repeat(248).as_str(), false),
            (
                "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
                false,
            ),
        ] {
            assert_eq!(pod::pull_policy(image) == "Always", latest, "{image}");
        }
    }
}
