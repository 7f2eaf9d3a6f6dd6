//! The same of what objects have become: their statuses, and what an update leaves as it is.

use super::super::tests::{create, pod, update, update_status};
use keelson_api::{Value, value};

const NONE: [&str; 0] = [];

fn template() -> Value {
    value!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn set(claim: Value) -> Value {
    value!({"metadata": {"name": "found"}, "spec": {"serviceName": "a.b", "selector": {"matchLabels": {"a": "b"}},
        "template": (template()), "volumeClaimTemplates": [{"metadata": {"name": "v"}, "spec": (claim)}]}})
}

#[test]
fn what_a_set_was_made_with_is_judged_once() {
    let told = create(
        "apps",
        "StatefulSet",
        set(value!({"dataSource": {"apiGroup": "a_b", "kind": "K", "name": "n"}})),
    );
    let fields: Vec<&str> = told.iter().filter_map(|t| t.split_once(": ")).map(|(f, _)| f).collect();
    let claim = "spec.volumeClaimTemplates[0].spec";
    let wanted = [
        format!("{claim}.accessModes"),
        format!("{claim}.resources[storage]"),
        format!("{claim}.dataSource.apiGroup"),
        "spec.serviceName".into(),
    ];
    assert_eq!(fields, wanted);
    assert_eq!(
        update("apps", "StatefulSet", set(value!({})), |o| o
            .set_at(&["spec", "replicas"], 2i64)),
        NONE
    );
}

#[test]
fn a_jobs_labels_are_drawn_once() {
    let job = || value!({"metadata": {"name": "found"}, "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    let lost = |o: &mut keelson_api::Object| o.set_at(&["metadata", "uid"], "other");
    assert_eq!(update("batch", "Job", job(), lost), NONE);
    let mut indexed = job();
    indexed.set_at(&["spec", "completionMode"], "Indexed");
    indexed.set_at(&["spec", "completions"], 2i64);
    indexed.set_at(&["spec", "parallelism"], 2i64);
    let told = update("batch", "Job", indexed, |o| drop(o.remove_at(&["spec", "completions"])));
    assert_eq!(
        told,
        ["spec.completions: Required value: when completion mode is Indexed"]
    );
}

#[test]
fn counts_are_of_what_a_kind_counts() {
    let of = |kind: &str, status: Value| {
        let object = value!({"metadata": {"name": "found"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": (template())}});
        update_status("apps", kind, object, status)
    };
    assert_eq!(
        of("DaemonSet", value!({"desiredNumberScheduled": -1})),
        ["status.desiredNumberScheduled: Invalid value: -1: must be greater than or equal to 0"]
    );
    let ready = value!({"replicas": 2, "readyReplicas": 1, "availableReplicas": 2});
    let why = "status.availableReplicas: Invalid value: 2: cannot be greater than";
    assert_eq!(
        of("StatefulSet", ready.clone()),
        [format!("{why} status.readyReplicas")]
    );
    assert_eq!(of("Deployment", ready.clone()), [format!("{why} readyReplicas")]);
    assert_eq!(of("ReplicaSet", ready), [format!("{why} readyReplicas")]);
}

#[test]
fn of_rollouts() {
    let strategy = value!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "abc", "maxSurge": 1}});
    let set = value!({"metadata": {"name": "found"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": (template()), "updateStrategy": (strategy)}});
    let told = create("apps", "DaemonSet", set);
    assert!(
        told.len() == 1 && told[0].contains("a valid percent string"),
        "{told:?}"
    );
}

#[test]
fn of_claims() {
    let claim = |spec: Value| {
        let mut claim = value!({"metadata": {"name": "found"}, "spec": (spec)});
        claim.set_at(&["spec", "accessModes"], value!(["ReadWriteOnce"]));
        claim.set_at(&["spec", "resources"], value!({"requests": {"storage": "1500m"}}));
        claim
    };
    assert_eq!(create("", "PersistentVolumeClaim", claim(value!({}))), NONE);
    let source = value!({"kind": "PersistentVolumeClaim", "name": "c"});
    let same = value!({"apiGroup": "", "kind": "PersistentVolumeClaim", "name": "c"});
    let told = create(
        "",
        "PersistentVolumeClaim",
        claim(value!({"dataSource": (source), "dataSourceRef": (same)})),
    );
    assert_eq!(told, ["spec: Invalid value: {}: must match dataSourceRef"]);
    let status = value!({"capacity": {"storage": "-1"}, "allocatedResources": {"storage": "1", "cpu": "1", "": "1"},
        "allocatedResourceStatuses": {"storage": "Done", "x.io/y": "NodeResizePending"}});
    let told = update_status("", "PersistentVolumeClaim", claim(value!({})), status);
    let starts = [
        "status.capacity[storage]: Invalid value: -1: must be a valid resource quantity",
        "status.allocatedResourceStatuses: Unsupported value: \"storage\": supported values: \"ControllerResizeInProgress\"",
        "status.allocatedResources: Invalid value: \"\": name part must be non-empty",
        "status.allocatedResources: Invalid value: \"\": name part must consist of",
        "status.allocatedResources: Unsupported value: \"cpu\": supported values: \"storage\"",
    ];
    assert_eq!(told.len(), starts.len(), "{told:?}");
    assert!(told.iter().zip(starts).all(|(t, s)| t.starts_with(s)), "{told:?}");
}

#[test]
fn of_volumes() {
    let with = |source: Value| {
        let mut volume = value!({"metadata": {"name": "found", "annotations": {"volume.beta.kubernetes.io/mount-options": "ro"}},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}});
        for (key, of) in source.as_object().cloned().unwrap_or_default() {
            volume.set_at(&["spec", &key], of);
        }
        create("", "PersistentVolume", volume)
    };
    assert_eq!(with(value!({"nfs": {"server": "a", "path": "/x"}})), NONE);
    assert_eq!(
        with(value!({"hostPath": {"path": "/x"}})),
        [
            "metadata.annotations.volume.beta.kubernetes.io/mount-options: Forbidden: may not specify mount options for this volume type"
        ]
    );
    let node =
        |id: &str| value!({"metadata": {"name": "found"}, "spec": {"drivers": [{"name": "a.b", "nodeID": (id)}]}});
    assert_eq!(create("storage.k8s.io", "CSINode", node(&"n".repeat(256))), NONE);
    let told = update("storage.k8s.io", "CSINode", node("n"), |o| {
        o.set_at(&["spec", "drivers"], value!([{"name": "a.b", "nodeID": "m"}]))
    });
    assert_eq!(
        told,
        [
            r#"spec.drivers: Invalid value: {"Name":"a.b","NodeID":"m","TopologyKeys":null,"Allocatable":null}: field is immutable"#
        ]
    );
}

#[test]
fn of_pods_claims_and_volumes() {
    let of = |spec: Value| {
        let mut found = pod();
        for (key, value) in spec.as_object().cloned().unwrap_or_default() {
            found.set_at(&["spec", &key], value);
        }
        found
    };
    let claims = value!([{"name": "a", "resourceClaimName": "x"}, {"name": "a", "resourceClaimName": "y"}]);
    assert_eq!(
        create("", "Pod", of(value!({"resourceClaims": (claims)}))),
        ["spec.resourceClaims[1].name: Duplicate value: \"a\""]
    );
    let image = |reference: &str| of(value!({"volumes": [{"name": "i", "image": {"reference": (reference)}}]}));
    assert_eq!(
        create("", "Pod", image("")),
        ["spec.volumes[0].image.reference: Required value"]
    );
    let label = |o: &mut keelson_api::Object| o.set_at(&["metadata", "labels"], value!({"a": "b"}));
    assert_eq!(update("", "Pod", image(""), label), NONE, "what was taken once stays");
    let init = value!([{"name": "i", "image": "i", "restartPolicyRules": [{}]}]);
    assert_eq!(
        create("", "Pod", of(value!({"initContainers": (init)}))),
        [
            "spec.initContainers[0].restartPolicy: Required value: must specify restartPolicy when restart rules are used"
        ]
    );
    let few = value!({"resources": {"requests": {"cpu": "1"}}, "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "2"}}}]});
    assert_eq!(
        create("", "Pod", of(few)),
        [
            "spec.resources.requests[cpu]: Invalid value: \"1\": must be greater than or equal to aggregate container requests of 2"
        ]
    );
}

#[test]
fn of_secrets_and_finalizers() {
    let secret = |kind: &str, data: Value| {
        create(
            "",
            "Secret",
            value!({"metadata": {"name": "found"}, "type": (kind), "data": (data)}),
        )
    };
    assert_eq!(
        secret("kubernetes.io/ssh-auth", value!({"ssh-privatekey": ""})),
        ["data[ssh-privatekey]: Required value"]
    );
    assert_eq!(
        secret("kubernetes.io/dockercfg", value!({".dockercfg": (Value::Null)})),
        ["data[.dockercfg]: Invalid value: \"<secret contents redacted>\": unexpected end of JSON input"]
    );
    let finalized = value!({"metadata": {"name": "found", "finalizers": ["own"]}, "handler": "runc"});
    assert_eq!(create("node.k8s.io", "RuntimeClass", finalized), NONE);
    let told = update_status(
        "",
        "Pod",
        value!({"metadata": {"name": "web", "finalizers": ["own"]}, "spec": {"containers": [{"name": "c", "image": "i"}]}}),
        value!({"phase": "Running"}),
    );
    assert!(told.iter().any(|t| t.starts_with("metadata.finalizers[0]")), "{told:?}");
}
