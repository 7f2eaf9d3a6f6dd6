//! What kube-apiserver answered where the machine found that ours differed (`tests/differential`).

mod states;

use super::tests::{create, pod, update, update_status};
use keelson_api::{Object, Value, value};

const ADMISSION: &str = "admissionregistration.k8s.io";
const FLOW: &str = "flowcontrol.apiserver.k8s.io";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

fn refusals(group: &str, kind: &str, mut object: Value) -> Vec<String> {
    object.set_at(&["metadata", "name"], "found");
    create(group, kind, object)
}

fn class(parameters: Value) -> Vec<String> {
    let mut parameters = parameters;
    parameters.set_at(&["kind"], "P");
    parameters.set_at(&["name"], "p");
    let spec = value!({"controller": "a.b/c", "parameters": (parameters)});
    refusals("networking.k8s.io", "IngressClass", value!({"spec": (spec)}))
}

#[test]
fn of_networks() {
    let of = |namespace: &str| class(value!({"scope": "Namespace", "namespace": (namespace)}));
    assert_eq!(of("a"), Vec::<String>::new());
    assert_eq!(
        of("/x"),
        [format!("spec.parameters.namespace: Invalid value: \"/x\": {LABEL}")]
    );
    assert_eq!(
        class(value!({"scope": "Namespace"})),
        ["spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'"]
    );
    let ingress = value!({"metadata": {"name": "found", "annotations": {"kubernetes.io/ingress.class": "nginx"}},
        "spec": {"ingressClassName": "other", "rules": [{"host": "010.0.0.1"}]}});
    assert_eq!(
        refusals("networking.k8s.io", "Ingress", ingress),
        [
            "spec.rules[0].host: Invalid value: \"010.0.0.1\": must be a DNS name, not an IP address",
            "annotations.kubernetes.io/ingress.class: Invalid value: \"nginx\": must match `ingressClassName` when both are specified",
        ]
    );
    let cidrs = |list: Value| refusals("networking.k8s.io", "ServiceCIDR", value!({"spec": {"cidrs": (list)}}));
    assert_eq!(
        cidrs(value!(["10.97.0.0/16", "10.98.0.0/16", "10.99.0.0/16"])),
        [
            "spec.cidrs: Invalid value: {\"CIDRs\":[\"10.97.0.0/16\",\"10.98.0.0/16\",\"10.99.0.0/16\"]}: may only hold up to 2 values"
        ]
    );
    let slice = |kind: &str, address: &str| {
        let endpoint = value!({"addresses": [(address)]});
        let slice = value!({"addressType": (kind), "endpoints": [(endpoint)], "ports": []});
        refusals("discovery.k8s.io", "EndpointSlice", slice)
    };
    assert_eq!(
        slice("FQDN", "a"),
        [
            "endpoints[0].addresses[0]: Invalid value: \"a\": should be a domain with at least two segments separated by dots"
        ]
    );
    assert_eq!(
        slice("IPv4", "fd00::1"),
        ["endpoints[0].addresses: Invalid value: \"fd00::1\": must be an IPv4 address"]
    );
    let told = slice("IPv4", "::1");
    assert!(told[0].starts_with("endpoints[0].addresses: Invalid value: \"::1\": must be an IPv4 address"));
    assert!(
        told[1].starts_with("endpoints[0].addresses[0]: Invalid value: \"::1\": "),
        "{told:?}"
    );
    assert_eq!(
        slice("IPv5", "10.0.0.5"),
        ["addressType: Unsupported value: \"IPv5\": supported values: \"FQDN\", \"IPv4\", \"IPv6\""]
    );
}

#[test]
fn of_admission() {
    let policy = |name: &str| value!({"policyName": (name), "validationActions": ["Deny"]});
    let mut twice = policy("p");
    twice.set_at(&["validationActions"], value!(["Audit", "Audit"]));
    twice.set_at(&["paramRef"], value!({"name": "/x", "selector": {}}));
    assert_eq!(
        refusals(ADMISSION, "ValidatingAdmissionPolicyBinding", value!({"spec": (twice)})),
        [
            "spec.paramRef.name: Invalid value: \"/x\": may not contain '/'",
            "spec.paramRef.name: Forbidden: name and selector are mutually exclusive",
            "spec.paramRef.selector: Forbidden: name and selector are mutually exclusive",
            "spec.paramRef.parameterNotFoundAction: Required value",
            "spec.validationActions[1]: Duplicate value: \"Audit\"",
        ]
    );
    let hook = |service: Value, versions: Value| {
        value!({"metadata": {"name": "found"}, "webhooks": [{"name": "a.b.c", "sideEffects": "None",
            "admissionReviewVersions": (versions), "clientConfig": {"service": (service)}}]})
    };
    let kind = "ValidatingWebhookConfiguration";
    assert_eq!(
        refusals(
            ADMISSION,
            kind,
            hook(value!({"name": "s", "path": "5"}), value!(["v1"]))
        ),
        [
            "webhooks[0].clientConfig.service.name: Required value",
            "webhooks[0].clientConfig.service.path: Invalid value: \"5\": must start with a '/'",
            "webhooks[0].clientConfig.service.path: Invalid value: \"5\": segment[0] may not be empty",
        ]
    );
    // What an older server took may stay.
    let sound = value!({"name": "s", "namespace": "n"});
    let relabel = |o: &mut Object| o.set_at(&["metadata", "labels"], value!({"a": "b"}));
    let versions = |list: Value| update(ADMISSION, kind, hook(sound.clone(), list), relabel);
    assert_eq!(versions(value!(["v2"])), Vec::<String>::new());
    let newer = |o: &mut Object| {
        let hooks = o.get_mut("webhooks").and_then(Value::as_array_mut);
        hooks.unwrap()[0].set_at(&["admissionReviewVersions"], value!(["v2"]));
    };
    assert_eq!(
        update(ADMISSION, kind, hook(sound.clone(), value!(["v1"])), newer),
        ["webhooks[0].admissionReviewVersions: Invalid value: [\"v2\"]: must include at least one of v1, v1beta1"]
    );
}

#[test]
fn of_flow_and_budgets() {
    let level = value!({"spec": {"type": "Limited", "exempt": {}, "limited": {"limitResponse":
        {"type": "Reject", "queuing": {"queues": 1, "handSize": 1, "queueLengthLimit": 1}}}}});
    assert_eq!(
        refusals(FLOW, "PriorityLevelConfiguration", level),
        [
            "spec.exempt: Forbidden",
            "spec.limited.limitResponse.queuing: Forbidden"
        ]
    );
    let both = value!({"spec": {"minAvailable": 1, "maxUnavailable": 1}});
    assert_eq!(
        refusals("policy", "PodDisruptionBudget", both),
        [
            "spec: Invalid value: {\"MinAvailable\":1,\"Selector\":null,\"MaxUnavailable\":1,\"UnhealthyPodEvictionPolicy\":null}: minAvailable and maxUnavailable cannot be both set"
        ]
    );
}

#[test]
fn of_storage() {
    let class = |topologies: Value| value!({"provisioner": "a.b", "allowedTopologies": (topologies)});
    let term = value!({"matchLabelExpressions": [{"key": "zone", "values": ["a", "b"]}]});
    let same = value!({"matchLabelExpressions": [{"key": "zone", "values": ["b", "a"]}]});
    let of = |topologies: Value| refusals("storage.k8s.io", "StorageClass", class(topologies));
    assert_eq!(
        of(value!([(term.clone()), (same)])),
        ["allowedTopologies[1].matchLabelExpressions: Duplicate value: \"\""]
    );
    assert_eq!(
        of(value!([{}, {}])).len(),
        5,
        "each as often as there are terms, and the one before"
    );
    let mut before = class(value!([]));
    before.set_at(&["metadata"], value!({"name": "found"}));
    assert_eq!(
        update("storage.k8s.io", "StorageClass", before, |o| o
            .set_at(&["provisioner"], "c.d")),
        ["provisioner: Invalid value: null: field is immutable"]
    );
    let driver = value!({"spec": {"serviceAccountTokenInSecrets": false}});
    assert_eq!(
        refusals("storage.k8s.io", "CSIDriver", driver),
        [
            "spec.serviceAccountTokenInSecrets: Invalid value: false: serviceAccountTokenInSecrets is set but no tokenRequests are specified"
        ]
    );
}

#[test]
fn of_pods() {
    let of = |spec: Value| {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec.set_at(&["containers"], value!([{"name": "c", "image": "i"}]));
        }
        refusals("", "Pod", value!({"spec": (spec)}))
    };
    let using = |claims: Value, of_pod: Value| {
        let container = value!({"name": "c", "image": "i", "resources": {"claims": (claims)}});
        of(value!({"containers": [(container)], "resourceClaims": (of_pod)}))
    };
    let gpu = value!([{"name": "gpu", "resourceClaimName": "a"}]);
    let place = "spec.containers[0].resources.claims";
    assert_eq!(
        using(value!([{"name": "x"}]), value!([])),
        [format!(
            "{place}[0]: Not found: \"x\": must be one of the names in pod.spec.resourceClaims which is empty"
        )]
    );
    assert_eq!(
        using(
            value!([{"name": ""}, {"name": "gpu", "request": "a"}, {"name": "gpu"}, {"name": "gpu"}]),
            gpu
        ),
        [
            format!("{place}[0]: Required value"),
            format!("{place}[2]: Duplicate value: \"gpu\""),
            format!("{place}[3]: Duplicate value: \"gpu\""),
        ]
    );
    assert_eq!(
        of(value!({"os": {"name": "ä"}})),
        ["spec.os: Unsupported value: \"ä\": supported values: \"linux\", \"windows\""]
    );
    assert_eq!(
        of(value!({"resources": {"limits": {"memory": "1Mi"}},
            "containers": [{"name": "c", "image": "i", "resources": {"limits": {"memory": "2Mi"}}}]})),
        [
            "spec.resources.requests: Invalid value: \"2Mi\": must be less than or equal to memory limit of 1Mi",
            "spec.resources.containers[0][memory].limits: Invalid value: \"2Mi\": must be less than or equal to pod limits of 1Mi"
        ]
    );
    assert_eq!(
        of(value!({"containers": [{"name": "c", "image": "i", "restartPolicyRules": [{}]}]})),
        [
            "spec.containers[0].restartPolicy: Required value: must specify restartPolicy when restart rules are used",
            "spec.containers[0].restartPolicyRules[0].action: Unsupported value: \"\": supported values: \"Restart\", \"RestartAllContainers\"",
            "spec.containers[0].restartPolicyRules[0].exitCodes: Required value: must be specified",
        ]
    );
    let searched = of(value!({"dnsConfig": {"searches": ["_a.b_c.d", "../x"]}}));
    assert_eq!(searched.len(), 1);
    assert!(searched[0].contains("'_', '-' or '.'"), "{searched:?}");
}

#[test]
fn of_events() {
    const EVENTS: &str = "events.k8s.io";
    let event = value!({"metadata": {"name": "e", "namespace": "default"}, "eventTime": "2026-01-02T03:04:05.000000Z",
        "reportingController": "a.b/c", "reportingInstance": "i", "action": "Pull", "reason": "R", "type": "Normal",
        "regarding": {"kind": "Pod", "name": "a", "namespace": "default"}});
    assert_eq!(create(EVENTS, "Event", event.clone()), Vec::<String>::new());
    let mut old = event.clone();
    old.set_at(&["deprecatedCount"], 1);
    old.set_at(&["series"], value!({"count": 1}));
    assert_eq!(
        create(EVENTS, "Event", old),
        [
            "series.count: Invalid value: \"\": should be at least 2",
            "series.lastObservedTime: Required value",
            "count: Invalid value: \"\": needs to be unset",
        ]
    );
    assert_eq!(
        update(EVENTS, "Event", event, |o| {
            o.set_at(&["note"], "other");
            o.set_at(&["regarding", "name"], "b");
        }),
        [
            "involvedObject: Invalid value: {\"Kind\":\"Pod\",\"Namespace\":\"default\",\"Name\":\"b\",\"UID\":\"\",\"APIVersion\":\"\",\"ResourceVersion\":\"\",\"FieldPath\":\"\"}: field is immutable",
            "message: Invalid value: \"other\": field is immutable",
        ]
    );
}

#[test]
fn of_services_of_the_api() {
    let service = |name: &str| {
        value!({"metadata": {"name": (name)}, "spec": {"group": "a.b", "version": "v1",
            "groupPriorityMinimum": 1, "versionPriority": 1}})
    };
    let of = |name: &str| create("apiregistration.k8s.io", "APIService", service(name));
    assert_eq!(of("v1.a.b"), Vec::<String>::new());
    assert_eq!(
        of("v2.a.b"),
        ["metadata.name: Invalid value: \"v2.a.b\": must be `spec.version+\".\"+spec.group`: \"v1.a.b\""]
    );
    assert_eq!(of("/x"), ["metadata.name: Invalid value: \"/x\": may not contain '/'"]);
    assert_eq!(
        of(""),
        ["metadata.name: Required value: name or generateName is required"]
    );
}

#[test]
fn of_jobs() {
    let job = value!({"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}},
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": {"containerName": "d", "operator": "In"}}]}}});
    assert_eq!(
        refusals("batch", "Job", job),
        [
            "spec.podFailurePolicy.rules[0].onExitCodes.containerName: Invalid value: \"d\": must be one of the container or initContainer names in the pod template",
            "spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: null: at least one value is required",
        ]
    );
}

#[test]
fn of_autoscalers() {
    for kind in ["", "ä"] {
        let metric = value!({"type": (kind), "object": {}, "pods": {}});
        let scaler = value!({"spec": {"maxReplicas": 1, "metrics": [(metric)]}});
        assert!(!refusals("autoscaling", "HorizontalPodAutoscaler", scaler).is_empty());
    }
}

#[test]
fn of_addresses() {
    let web = |ip: &str, app: &str| {
        let subset = value!({"addresses": [{"ip": (ip)}], "ports": [{"port": 80, "appProtocol": (app)}]});
        refusals("", "Endpoints", value!({"subsets": [(subset)]}))
    };
    let place = "subsets[0].addresses[0].ip: Invalid value";
    assert_eq!(
        web("010.0.0.1", "http"),
        [format!("{place}: \"010.0.0.1\": must not have leading 0s")]
    );
    assert_eq!(web("10.0.0.1", "").len(), 2);
    let before = value!({"metadata": {"name": "web"}, "subsets": [{"addresses": [{"ip": "010.0.0.1"}], "ports": [{"port": 80, "appProtocol": "a b"}]}]});
    let label = |o: &mut Object| o.set_at(&["metadata", "labels", "a"], "b");
    assert_eq!(update("", "Endpoints", before.clone(), label), Vec::<String>::new());
    let moved = |o: &mut Object| o.set_at(&["subsets"], value!([{"addresses": [{"ip": "010.0.0.2"}]}]));
    assert_eq!(update("", "Endpoints", before, moved).len(), 1);

    let of = |status: Value| update_status("", "Pod", pod(), status);
    assert_eq!(
        of(value!({"hostIP": "10.0.0.1", "hostIPs": [{"ip": "fd00::1"}, {"ip": "10.0.0.1"}]})),
        ["status.hostIPs[0].ip: Invalid value: \"fd00::1\": must be equal to `hostIP`"]
    );
    let twice = of(value!({"hostIP": "10.0.0.1", "hostIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]}));
    assert_eq!(twice.len(), 1);
    assert!(
        twice[0].ends_with("may specify no more than one IP for each IP family"),
        "{twice:?}"
    );
    assert_eq!(
        of(value!({"podIP": "x", "podIPs": [{"ip": "x"}]})),
        ["status.podIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"]
    );
}

#[test]
fn of_changes() {
    let before = value!({"metadata": {"name": "found"}});
    assert_eq!(
        update_status("", "Namespace", before.clone(), value!({"phase": "Gone"})),
        ["status.Phase: Invalid value: \"Gone\": may only be 'Active' if `deletionTimestamp` is empty"]
    );
    assert_eq!(
        update("scheduling.k8s.io", "PriorityClass", before, |o| o
            .set_at(&["value"], 2_000_000_000)),
        ["value: Forbidden: may not be changed in an update."]
    );
}
