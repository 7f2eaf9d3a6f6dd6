use super::*;
use crate::testing::pod_like;
use keelson_api::value;

fn canon(v: Value) -> (Value, Report) {
    let mut v = v;
    let report = canonicalize(&mut v, &pod_like()).unwrap();
    (v, report)
}

#[test]
fn empties_go_and_zero_values_come() {
    let (v, report) = canon(value!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "labels": {}, "finalizers": [], "uid": "", "annotations": null},
        "spec": {"replicas": 0, "paused": false, "containers": [{"image": "x", "ports": [{}], "command": []}]}
    }));
    assert_eq!(
        v,
        value!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "creationTimestamp": null},
            "spec": {"replicas": 0, "containers": [{"name": "", "image": "x", "ports": [{"containerPort": 0}]}], "strategy": {}},
            "status": {}
        })
    );
    assert!(report.unknown.is_empty());
}

#[test]
fn unknown_fields_are_named_by_path() {
    let (v, report) = canon(value!({
        "zap": 1, "metadata": {"labels": {"x": "y"}},
        "spec": {"foo": 1, "containers": [{"name": "a"}, {"name": "b", "bar": {"x": 1}}]}
    }));
    assert_eq!(
        report.strict_errors(),
        [
            "unknown field \"spec.containers[1].bar\"",
            "unknown field \"spec.foo\"",
            "unknown field \"zap\""
        ]
    );
    assert_eq!(v.at(&["spec", "foo"]), None);
}

#[test]
fn wrong_types_are_refused_in_gos_words() {
    for (v, want) in [
        (
            value!({"spec": {"replicas": "3"}}),
            "json: cannot unmarshal string into Go struct field PodSpec.spec.replicas of type int32",
        ),
        (
            value!({"spec": {"replicas": 3000000000_i64}}),
            "json: cannot unmarshal number 3000000000 into Go struct field PodSpec.spec.replicas of type int32",
        ),
        (
            value!({"spec": {"containers": {"a": 1}}}),
            "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (
            value!({"spec": {"containers": [{"ports": [{"containerPort": true}]}]}}),
            "json: cannot unmarshal bool into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
        ),
        (
            value!({"metadata": {"labels": {"a": 1}}}),
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            value!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": true}}}}),
            "json: cannot unmarshal bool into Go struct field RollingUpdate.spec.strategy.rollingUpdate.maxSurge of type int32",
        ),
    ] {
        let mut v = v;
        assert_eq!(canonicalize(&mut v, &pod_like()).unwrap_err().0, want);
    }
}

#[test]
fn what_does_not_convert_is_told_in_the_converters_words() {
    let converted = |v: Value| {
        let mut v = v;
        canonicalize_from(&mut v, &pod_like(), None, Wording::Unstructured).map(|_| v)
    };
    for (v, want) in [
        (value!({"metadata": {"name": 5}}), "cannot convert int64 to string"),
        (value!({"metadata": {"name": true}}), "unrecognized type: string"),
        (value!({"metadata": {"labels": "x"}}), "cannot restore map from string"),
        (
            value!({"metadata": {"finalizers": {"a": 1}}}),
            "cannot restore slice from map",
        ),
        (value!({"spec": "text"}), "cannot restore struct from: string"),
        (value!({"spec": {"replicas": "3"}}), "unrecognized type: int32"),
        (value!({"spec": {"replicas": 1.5}}), "cannot convert float64 to int32"),
        (
            value!({"metadata": {"creationTimestamp": 5}}),
            "json: cannot unmarshal number into Go value of type string",
        ),
    ] {
        assert_eq!(converted(v).unwrap_err().0, want);
    }
    let cut = converted(value!({"spec": {"replicas": 4294967297_i64}})).unwrap();
    assert_eq!(cut.at(&["spec", "replicas"]), Some(&Value::from(1)));
}

#[test]
fn defaults_are_filled_where_absent_or_zero() {
    let mut v =
        value!({"spec": {"containers": [{"ports": [{"containerPort": 1}, {"protocol": "UDP"}, {"protocol": ""}]}]}});
    apply_defaults(&mut v, &pod_like());
    assert_eq!(
        v.at(&["spec", "containers"]).unwrap().as_array().unwrap()[0],
        value!({"ports": [{"containerPort": 1, "protocol": "TCP"}, {"protocol": "UDP"}, {"protocol": "TCP"}]})
    );
}

#[test]
fn canonical_form_is_stable() {
    let (once, _) = canon(value!({"spec": {"containers": [{"name": "a", "limits": {"cpu": "1000m"}}]}}));
    let (twice, _) = canon(once.clone());
    assert_eq!(once, twice);
}

#[test]
fn scalars_take_their_canonical_form() {
    let (v, _) = canon(value!({
        "spec": {"containers": [{"name": "a", "limits": {"cpu": "1000m", "memory": 1024, "x": "0.5Gi"}}]},
        "status": {"startTime": "2030-01-02T03:04:05.678+01:00"}
    }));
    let limits = v.at(&["spec", "containers"]).unwrap().as_array().unwrap()[0]
        .get("limits")
        .unwrap()
        .clone();
    assert_eq!(limits, value!({"cpu": "1", "memory": "1024", "x": "512Mi"}));
    assert_eq!(
        v.at(&["status", "startTime"]),
        Some(&Value::from("2030-01-02T02:04:05Z"))
    );
    let mut bad = value!({"spec": {"containers": [{"limits": {"cpu": "x"}}]}});
    let e = canonicalize(&mut bad, &pod_like()).unwrap_err();
    assert!(e.0.starts_with("quantities must match the regular expression"), "{e}");
}
