//! Objects that upstream takes, and what it says about those it refuses.

use crate::codec::complete;
use crate::context::Cx;
use crate::resources::rows;
use crate::user::UserInfo;
use keelson_api::{Object, Value, value};
use std::sync::Arc;

pub(in crate::resources) fn request(group: &str, kind: &str) -> Cx {
    let def = rows()
        .into_iter()
        .find(|d| d.gvr.group == group && d.kind == kind)
        .unwrap();
    Cx::new(Arc::new(def), Arc::new(UserInfo::default()), "default", "")
}

pub(super) fn read(cx: &Cx, v: Value) -> Object {
    let (mut o, unknown) = complete(&cx.def.schema, Some(&*cx.def.strategy), v).unwrap();
    assert!(unknown.is_empty(), "{unknown:?}");
    if cx.def.namespaced && o.namespace().is_empty() {
        o.set_meta("namespace", "default");
    }
    o.set_meta("uid", "11111111-2222-3333-4444-555555555555");
    o
}

pub(super) fn shown(causes: Vec<keelson_api::Cause>) -> Vec<String> {
    causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
}

pub(super) fn create(group: &str, kind: &str, v: Value) -> Vec<String> {
    let cx = request(group, kind);
    let mut o = read(&cx, v);
    cx.def.strategy.prepare_create(&cx, &mut o);
    shown(cx.def.strategy.validate(&cx, &o))
}

pub(super) fn update(group: &str, kind: &str, before: Value, change: impl FnOnce(&mut Object)) -> Vec<String> {
    updated(request(group, kind), before, change)
}

/// The same of what `/status` is sent.
pub(super) fn update_status(group: &str, kind: &str, before: Value, status: Value) -> Vec<String> {
    let mut cx = request(group, kind);
    cx.subresource = "status".into();
    updated(cx, before, |o| o.set_at(&["status"], status))
}

fn updated(cx: Cx, before: Value, change: impl FnOnce(&mut Object)) -> Vec<String> {
    let mut old = read(&cx, before);
    cx.def.strategy.prepare_create(&cx, &mut old);
    let mut new = old.clone();
    change(&mut new);
    cx.def.strategy.prepare_update(&cx, &mut new, &old);
    shown(cx.def.strategy.validate_update(&cx, &new, &old))
}

pub(super) fn pod() -> Value {
    value!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}})
}

fn container(c: Value) -> Vec<String> {
    let mut pod = pod();
    pod.set_at(&["spec", "containers"], vec![c]);
    pod.set_at(&["spec", "volumes"], value!([{"name": "v", "emptyDir": {}}]));
    create("", "Pod", pod)
}

fn template(labels: Value) -> Value {
    value!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}})
}

const DNS_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

#[test]
fn plain_objects_are_sound() {
    let labels = value!({"app": "web"});
    let none: [String; 0] = [];
    for (group, kind, v) in [
        ("", "Pod", pod()),
        ("", "ConfigMap", value!({"metadata": {"name": "a"}, "data": {"k": "v"}})),
        (
            "",
            "Secret",
            value!({"metadata": {"name": "a"}, "stringData": {"k": "v"}}),
        ),
        (
            "",
            "Service",
            value!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}], "selector": labels}}),
        ),
        (
            "",
            "Service",
            value!({"metadata": {"name": "a"}, "spec": {"type": "ExternalName", "externalName": "a.b"}}),
        ),
        ("", "Namespace", value!({"metadata": {"name": "a"}})),
        ("", "ServiceAccount", value!({"metadata": {"name": "a"}})),
        (
            "",
            "Node",
            value!({"metadata": {"name": "a"}, "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}),
        ),
        (
            "",
            "ReplicationController",
            value!({"metadata": {"name": "a"}, "spec": {"template": template(labels.clone())}}),
        ),
        (
            "",
            "LimitRange",
            value!({"metadata": {"name": "a"}, "spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}, "min": {"cpu": "100m"}}]}}),
        ),
        (
            "",
            "ResourceQuota",
            value!({"metadata": {"name": "a"}, "spec": {"hard": {"pods": "5", "requests.cpu": "1", "count/deployments.apps": "2"}}}),
        ),
        (
            "",
            "PersistentVolumeClaim",
            value!({"metadata": {"name": "a"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
        ),
        (
            "",
            "PersistentVolume",
            value!({"metadata": {"name": "a"}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/tmp/x"}}}),
        ),
        (
            "",
            "Event",
            value!({"metadata": {"name": "a.17"}, "involvedObject": {"kind": "Pod", "namespace": "default", "name": "a"}, "reason": "x"}),
        ),
        (
            "",
            "Endpoints",
            value!({"metadata": {"name": "a"}, "subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]}),
        ),
        (
            "apps",
            "Deployment",
            value!({"metadata": {"name": "a"}, "spec": {"selector": {"matchLabels": labels}, "template": template(labels.clone())}}),
        ),
        (
            "apps",
            "ReplicaSet",
            value!({"metadata": {"name": "a"}, "spec": {"selector": {"matchLabels": labels}, "template": template(labels.clone())}}),
        ),
        (
            "apps",
            "DaemonSet",
            value!({"metadata": {"name": "a"}, "spec": {"selector": {"matchLabels": labels}, "template": template(labels.clone())}}),
        ),
        (
            "apps",
            "StatefulSet",
            value!({"metadata": {"name": "a"}, "spec": {"serviceName": "a", "selector": {"matchLabels": labels}, "template": template(labels.clone())}}),
        ),
        (
            "apps",
            "ControllerRevision",
            value!({"metadata": {"name": "a"}, "revision": 1, "data": {"a": 1}}),
        ),
        (
            "batch",
            "Job",
            value!({"metadata": {"name": "a"}, "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}}}}),
        ),
        (
            "batch",
            "CronJob",
            value!({"metadata": {"name": "a"}, "spec": {"schedule": "*/1 * * * *", "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "c", "image": "x"}]}}}}}}),
        ),
        (
            "networking.k8s.io",
            "NetworkPolicy",
            value!({"metadata": {"name": "a"}, "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}], "ports": [{"port": 80, "endPort": 90}]}]}}),
        ),
        (
            "networking.k8s.io",
            "Ingress",
            value!({"metadata": {"name": "a"}, "spec": {"rules": [{"host": "*.a.b", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "a", "port": {"number": 80}}}}]}}]}}),
        ),
        (
            "networking.k8s.io",
            "IngressClass",
            value!({"metadata": {"name": "a"}, "spec": {"controller": "a.io/b"}}),
        ),
        (
            "discovery.k8s.io",
            "EndpointSlice",
            value!({"metadata": {"name": "a"}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80, "name": "http"}]}),
        ),
        (
            "policy",
            "PodDisruptionBudget",
            value!({"metadata": {"name": "a"}, "spec": {"minAvailable": "50%", "selector": {"matchLabels": labels}}}),
        ),
        (
            "autoscaling",
            "HorizontalPodAutoscaler",
            value!({"metadata": {"name": "a"}, "spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "a"}}}),
        ),
        (
            "rbac.authorization.k8s.io",
            "Role",
            value!({"metadata": {"name": "a:b"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}),
        ),
        (
            "rbac.authorization.k8s.io",
            "RoleBinding",
            value!({"metadata": {"name": "a"}, "roleRef": {"kind": "Role", "name": "a"}, "subjects": [{"kind": "User", "name": "x"}]}),
        ),
        (
            "scheduling.k8s.io",
            "PriorityClass",
            value!({"metadata": {"name": "a"}, "value": 7}),
        ),
        (
            "node.k8s.io",
            "RuntimeClass",
            value!({"metadata": {"name": "a"}, "handler": "runc"}),
        ),
        (
            "coordination.k8s.io",
            "Lease",
            value!({"metadata": {"name": "a"}, "spec": {"leaseDurationSeconds": 30}}),
        ),
        (
            "storage.k8s.io",
            "StorageClass",
            value!({"metadata": {"name": "a"}, "provisioner": "a.b/c"}),
        ),
        (
            "storage.k8s.io",
            "CSIDriver",
            value!({"metadata": {"name": "a.b"}, "spec": {}}),
        ),
        (
            "admissionregistration.k8s.io",
            "ValidatingWebhookConfiguration",
            value!({"metadata": {"name": "a"}, "webhooks": [{"name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"], "clientConfig": {"service": {"name": "a", "namespace": "b", "path": "/x"}}, "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]}]}),
        ),
        (
            "apiregistration.k8s.io",
            "APIService",
            value!({"metadata": {"name": "v1.a.b"}, "spec": {"group": "a.b", "version": "v1", "groupPriorityMinimum": 10, "versionPriority": 10, "service": {"name": "a", "namespace": "b"}, "insecureSkipTLSVerify": true}}),
        ),
    ] {
        assert_eq!(create(group, kind, v), none, "{group} {kind}");
    }
}

#[test]
fn pods_are_refused_in_upstreams_words() {
    assert_eq!(
        create(
            "",
            "Pod",
            value!({"metadata": {"name": "A_b"}, "spec": {"containers": []}})
        )[1..],
        ["spec.containers: Required value"]
    );
    assert_eq!(
        container(value!({"name": "C", "image": "x"})),
        [format!("spec.containers[0].name: Invalid value: \"C\": {DNS_LABEL}")]
    );
    assert_eq!(
        container(
            value!({"name": "c", "image": "x", "ports": [{"containerPort": 70000}], "imagePullPolicy": "Sometimes"})
        ),
        [
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ]
    );
    assert_eq!(
        container(value!({"name": "c", "image": "x", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}})),
        ["spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"]
    );
    assert_eq!(
        container(
            value!({"name": "c", "image": "x", "volumeMounts": [{"name": "w", "mountPath": "/a"}, {"name": "v", "mountPath": "/a", "subPath": "/x"}]})
        ),
        [
            "spec.containers[0].volumeMounts[0].name: Not found: \"w\"",
            "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique",
            "spec.containers[0].volumeMounts.subPath: Invalid value: \"/x\": must be a relative path",
        ]
    );
    assert_eq!(
        container(
            value!({"name": "c", "image": "x", "livenessProbe": {"exec": {"command": []}, "tcpSocket": {"port": 1}, "successThreshold": 2}})
        ),
        [
            "spec.containers[0].livenessProbe.exec.command: Required value",
            "spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ]
    );
    let of_file = |volume: &str| {
        let file = value!({"volumeName": volume, "path": "a.env", "key": "A"});
        let mut pod = pod();
        let env = value!([{"name": "A", "valueFrom": {"fileKeyRef": file}}]);
        pod.set_at(
            &["spec", "containers"],
            value!([{"name": "c", "image": "x", "env": env}]),
        );
        pod.set_at(
            &["spec", "volumes"],
            value!([{"name": "own", "emptyDir": {}}, {"name": "host", "hostPath": {"path": "/"}}]),
        );
        create("", "Pod", pod)
    };
    let at = "spec.containers[0].env[0].valueFrom.fileKeyRef.volumeName";
    assert!(of_file("own").is_empty());
    assert_eq!(of_file("none"), [format!("{at}: Not found: \"none\"")]);
    assert_eq!(
        of_file("host"),
        [format!(
            "{at}: Invalid value: \"host\": referenced volume must be of type emptyDir"
        )]
    );
    let mut sysctls = pod();
    sysctls.set_at(
        &["spec", "securityContext"],
        value!({"sysctls": [{"name": "foo-", "value": "x"}, {"name": "kernel.shmmax", "value": "1"}]}),
    );
    assert_eq!(
        create("", "Pod", sysctls),
        [
            "spec.securityContext.sysctls[0].name: Invalid value: \"foo-\": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$"
        ]
    );
}

#[test]
fn little_of_a_pod_may_change() {
    let image = update("", "Pod", pod(), |p| {
        let Some(Value::Array(list)) = p.at_mut(&["spec", "containers"]) else {
            return;
        };
        list[0].set_at(&["image"], "nginx:2");
    });
    assert!(image.is_empty(), "{image:?}");
    let policy = update("", "Pod", pod(), |p| p.set_at(&["spec", "restartPolicy"], "Never"));
    assert_eq!(policy.len(), 1);
    assert!(
        policy[0]
            .starts_with("spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"),
        "{policy:?}"
    );
    let added = update("", "Pod", pod(), |p| {
        p.set_at(&["spec", "tolerations"], value!([{"key": "a", "operator": "Exists"}]));
    });
    assert!(added.is_empty(), "{added:?}");
}

#[test]
fn what_is_immutable_says_so() {
    let frozen = value!({"metadata": {"name": "a"}, "immutable": true, "data": {"a": "1"}});
    assert_eq!(
        update("", "ConfigMap", frozen, |o| o.set_at(&["data", "a"], "2")),
        ["data: Forbidden: field is immutable when `immutable` is set"]
    );
    let labels = value!({"app": "web"});
    let deployment = value!({"metadata": {"name": "a"}, "spec": {"selector": {"matchLabels": labels}, "template": template(labels.clone())}});
    let errs = update("apps", "Deployment", deployment, |o| {
        for path in [
            &["spec", "selector", "matchLabels", "b"][..],
            &["spec", "template", "metadata", "labels", "b"][..],
        ] {
            o.set_at(path, "1");
        }
    });
    assert_eq!(
        errs,
        ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"web\",\"b\":\"1\"}}: field is immutable"]
    );
    let class = value!({"metadata": {"name": "a"}, "value": 7});
    assert_eq!(
        update("scheduling.k8s.io", "PriorityClass", class, |o| o
            .set_at(&["value"], 8i64)),
        ["value: Forbidden: may not be changed in an update."]
    );
}

#[test]
fn other_kinds_are_refused_in_upstreams_words() {
    assert_eq!(
        create("", "ConfigMap", value!({"metadata": {"name": "a"}, "data": {"": "v"}})),
        [
            "data[]: Invalid value: \"\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
        ]
    );
    assert_eq!(
        create(
            "apps",
            "Deployment",
            value!({"metadata": {"name": "a"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template(value!({"a": "c"}))}})
        ),
        ["spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`"]
    );
    assert_eq!(
        create(
            "",
            "Service",
            value!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}, {"port": 81}]}})
        ),
        [
            "spec.ports[0].name: Required value",
            "spec.ports[1].name: Required value"
        ]
    );
    assert_eq!(
        create(
            "batch",
            "Job",
            value!({"metadata": {"name": "a"}, "spec": {"template": {"spec": {"containers": [{"name": "c", "image": "x"}]}}}})
        ),
        ["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""]
    );
    assert_eq!(
        create(
            "rbac.authorization.k8s.io",
            "Role",
            value!({"metadata": {"name": "a"}, "rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]})
        ),
        ["rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs"]
    );
}

/// Objects written by the published Go types.
const GOLDEN: &str = include_str!("../../../../../base/api/tests/golden.txt");

#[test]
fn what_is_stored_reads_back_as_it_was() {
    use crate::codec::{decode_stored, encode_stored};
    let rows = rows();
    let mut seen = 0;
    for line in GOLDEN.lines() {
        let mut columns = line.split('\t');
        let (api_version, kind) = columns.next().unwrap().rsplit_once(',').unwrap();
        let Some(def) = rows
            .iter()
            .find(|d| d.api_version() == api_version && d.kind == kind && d.is_storage_version())
        else {
            continue;
        };
        let json = columns.next().unwrap();
        let value: Value = serde_json::from_str(json).unwrap();
        let Ok((object, _)) = complete(&def.schema, Some(&*def.strategy), value) else {
            continue;
        };
        let storage = def.storage.as_ref().unwrap();
        let back = decode_stored(storage, b"", &encode_stored(storage, &object, None).unwrap(), 1).unwrap();
        for (key, value) in &object.0 {
            assert_eq!(back.get(key), Some(value), "{kind}.{key}");
        }
        assert_eq!(back, object, "{kind}");
        let (again, _) = complete(&def.schema, Some(&*def.strategy), back.clone().into()).unwrap();
        assert_eq!(again, back, "{kind} changes when it is sent back as it was read");
        seen += 1;
    }
    assert!(seen > 100, "{seen}");
}

fn projected(source: Value) -> Vec<String> {
    let mut pod = pod();
    pod.set_at(
        &["spec", "volumes"],
        value!([{"name": "v", "projected": {"sources": [source]}}]),
    );
    create("", "Pod", pod)
}

#[test]
fn certificates_of_pods_live_an_hour_at_least_and_not_for_ever() {
    let asked = |signer: &str, seconds: i64| {
        projected(value!({"podCertificate": {"signerName": signer, "keyType": "ED25519",
            "credentialBundlePath": "bundle.pem", "maxExpirationSeconds": seconds}}))
    };
    let path = "spec.volumes[0].projected.sources[0].podCertificate.maxExpirationSeconds";
    assert_eq!(asked("example.com/a", 3600).len(), 0);
    assert_eq!(asked("example.com/a", 91 * 86400).len(), 0);
    assert_eq!(
        asked("example.com/a", 3599),
        [format!(
            "{path}: Invalid value: 3599: if provided, maxExpirationSeconds must be >= 3600"
        )]
    );
    assert_eq!(
        asked("example.com/a", 91 * 86400 + 1),
        [format!(
            "{path}: Invalid value: 7862401: if provided, maxExpirationSeconds must be <= 7862400"
        )]
    );
    assert_eq!(
        asked("kubernetes.io/a", 86401),
        [format!(
            "{path}: Invalid value: 86401: if provided, maxExpirationSeconds must be <= 86400"
        )]
    );
}

#[test]
fn certificates_of_pods_say_how_and_where() {
    let path = "spec.volumes[0].projected.sources[0].podCertificate";
    assert_eq!(
        projected(value!({"podCertificate": {"signerName": "a", "keyType": "DSA", "userAnnotations": {"k": "v"}}})),
        [
            format!(
                "{path}.signerName: Invalid value: \"a\": must be a fully qualified domain and path of the form 'example.com/signer-name'"
            ),
            format!(
                "{path}.userAnnotations: Invalid value: \"k\": must be a domain-prefixed key (such as \"acme.io/foo\")"
            ),
            format!(
                "{path}.keyType: Unsupported value: \"DSA\": supported values: \"RSA3072\", \"RSA4096\", \"ECDSAP256\", \"ECDSAP384\", \"ECDSAP521\", \"ED25519\""
            ),
            format!(
                "{path}: Required value: specify at least one of credentialBundlePath, keyPath, and certificateChainPath"
            ),
        ]
    );
    let twice = value!({"podCertificate": {"signerName": "a.io/b", "keyType": "ED25519", "keyPath": "x", "certificateChainPath": "x"}});
    assert_eq!(
        projected(twice),
        ["spec.volumes[0].projected: Invalid value: \"x\": conflicting duplicate paths"]
    );
}

#[test]
fn init_containers_are_resized_in_what_they_use() {
    let resized = |policy: &str, cpu: &str, image: &str| {
        let cx = request("", "Pod");
        let container = |cpu: &str, image: &str| {
            value!({"name": "i", "image": image, "resources": {"requests": {"cpu": cpu}},
                "resizePolicy": [{"resourceName": "cpu", "restartPolicy": policy}]})
        };
        let with = |container: Value| {
            let mut pod = pod();
            pod.set_at(&["spec", "initContainers"], vec![container]);
            read(&cx, pod)
        };
        let (old, new) = (with(container("1", "a")), with(container(cpu, image)));
        let mut e = super::check::Errs::default();
        super::pod_update::resize(&new, &old, &mut e);
        shown(e.list.into())
    };
    assert_eq!(resized("NotRequired", "2", "a"), [""; 0]);
    assert_eq!(
        resized("RestartContainer", "2", "a"),
        [
            "spec.initContainers[0]: Forbidden: non-sidecar init containers with a resize policy of RestartContainer cannot be resized"
        ]
    );
    assert_eq!(
        resized("NotRequired", "2", "b"),
        ["spec.initContainers[0]: Forbidden: only cpu and memory resources for init or sidecar containers are mutable"]
    );
}

#[test]
fn an_address_of_an_old_form_stays_where_it_was() {
    let cx = request("", "Service");
    let with = |ip: &str| {
        let status = value!({"loadBalancer": {"ingress": [{"ip": ip}]}});
        let service = value!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}, "status": status});
        read(&cx, service)
    };
    let told = |new: &str, old: &str| shown(super::status(&cx, &with(new), &with(old)));
    assert_eq!(told("010.0.0.1", "010.0.0.1"), [""; 0]);
    assert_eq!(
        told("010.0.0.1", "10.0.0.1"),
        ["status.loadBalancer.ingress[0].ip: Invalid value: \"010.0.0.1\": must not have leading 0s"]
    );
    assert_eq!(told("010.0.0.x", "010.0.0.x").len(), 1);
}

#[test]
fn controllers_of_ingresses_have_a_path_below_their_domain() {
    let told = |controller: &str| {
        let class = value!({"metadata": {"name": "a"}, "spec": {"controller": (controller)}});
        create("networking.k8s.io", "IngressClass", class)
    };
    assert_eq!(told("a.io/b/c"), [""; 0]);
    assert_eq!(
        told("b"),
        ["spec.controller: Invalid value: \"b\": must be a domain-prefixed path (such as \"acme.io/foo\")"]
    );
    let wrong = told("a.io/b c");
    let why = "spec.controller: Invalid value: \"b c\": Invalid path (regex used for validation is ";
    assert!(wrong.len() == 1 && wrong[0].starts_with(why), "{wrong:?}");
}

/// As many as a request can bring: each compared with each took minutes.
#[test]
fn long_lists_are_looked_up() {
    let mut e = super::check::Errs::default();
    let begun = std::time::Instant::now();

    let values: Vec<Value> = (1..=30_000_i64).map(Value::from).collect();
    let policy = value!({"rules": [{"action": "Ignore", "onExitCodes": {"operator": "In", "values": values}}]});
    let job = value!({"metadata": {"name": "j"}, "spec": {"podFailurePolicy": policy, "template": {}}});
    let job = Object::try_from(job).unwrap();
    (super::jobs::JOB.object)(&request("batch", "Job"), &job, &mut e);

    let addresses: Vec<Value> = (0..30_000)
        .map(|i| value!({"type": "InternalDNS", "address": (format!("a{i}"))}))
        .collect();
    let node = Object::try_from(value!({"metadata": {"name": "n"}, "status": {"addresses": addresses}})).unwrap();
    (super::nodes::NODE.status)(&request("", "Node"), &node, &node, &mut e);

    let listed = |place: &str, with: &str| -> Vec<Value> {
        let one = |i: usize| {
            let mut one = value!({"name": (format!("{with}{i}"))});
            one.set_at(&[place], format!("/{with}{i}"));
            one
        };
        (0..30_000).map(one).collect()
    };
    let container = value!({"volumeDevices": (listed("devicePath", "d")), "volumeMounts": (listed("mountPath", "m"))});
    let container = container.as_object().unwrap();
    let facts = super::container::PodFacts {
        volumes: Default::default(),
        claims: Default::default(),
        grace: None,
        restart_policy: "Always",
        host_users: true,
    };
    super::container_mounts::mounts(&mut e, container, &facts);
    super::container_mounts::devices(&mut e, container, &facts);

    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    let has = |text: &str| e.list.iter().filter(|cause| cause.message.starts_with(text)).count();
    // What is past the bound of complaints is counted, not told.
    assert_eq!((has("Too many: 30000"), has("Duplicate")), (1, 0));
    assert!(has("Not found") > 1000 && e.list.len() > 60_000, "{}", e.list.len());
}
