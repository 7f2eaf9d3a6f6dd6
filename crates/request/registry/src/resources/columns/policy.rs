//! Rows of access, certificates, admission, flow control and devices.

use super::cells::{AGE, Col, NAME, NONE, Row, UNKNOWN, UNSET, flag, human, joined, number, text, wide};
use keelson_api::{Map, Value};

const CREATED_AT: Col = Col {
    name: "Created At",
    kind: "date",
    format: "",
    priority: 0,
    cell: |r| r.object.creation_timestamp().into(),
};
const CREATED: &[Col] = &[NAME, CREATED_AT];
const BINDING: &[Col] = &[
    NAME,
    text("Role", |r| {
        format!("{}/{}", r.str("roleRef.kind"), r.str("roleRef.name")).into()
    }),
    AGE,
    wide("Users", |r| subjects(r, "User")),
    wide("Groups", |r| subjects(r, "Group")),
    wide("ServiceAccounts", |r| subjects(r, "ServiceAccount")),
];
const CSR: &[Col] = &[
    NAME,
    AGE,
    text("SignerName", |r| r.str_or("spec.signerName", NONE)),
    text("Requestor", |r| r.str("spec.username").into()),
    text("RequestedDuration", |r| {
        match r.at("spec.expirationSeconds").and_then(Value::as_i64) {
            Some(seconds) => human(seconds).into(),
            None => NONE.into(),
        }
    }),
    text("Condition", csr_condition),
];
const WEBHOOKS: &[Col] = &[NAME, number("Webhooks", |r| r.list("webhooks").len().into()), AGE];
const PARAM_KIND: Col = text("ParamKind", |r| match r.str("spec.paramKind.kind") {
    "" => UNSET.into(),
    kind => format!("{}/{kind}", r.str("spec.paramKind.apiVersion")).into(),
});
const VALIDATING_POLICY: &[Col] = &[
    NAME,
    number("Validations", |r| r.list("spec.validations").len().into()),
    PARAM_KIND,
    AGE,
];
const MUTATING_POLICY: &[Col] = &[
    NAME,
    number("Mutations", |r| r.list("spec.mutations").len().into()),
    PARAM_KIND,
    AGE,
];
const POLICY_BINDING: &[Col] = &[
    NAME,
    text("PolicyName", |r| r.str("spec.policyName").into()),
    text("ParamRef", |r| {
        let (namespace, name) = (r.str("spec.paramRef.namespace"), r.str("spec.paramRef.name"));
        match (namespace, name, r.at("spec.paramRef")) {
            (_, _, None) => UNSET.into(),
            ("", name, _) => format!("*/{name}").into(),
            (namespace, name, _) => format!("{namespace}/{name}").into(),
        }
    }),
    AGE,
];
const PRIORITY_CLASS: &[Col] = &[
    NAME,
    number("Value", |r| r.int("value").into()),
    flag("Global-Default", |r| r.bool("globalDefault").into()),
    AGE,
    text("PreemptionPolicy", |r| r.str("preemptionPolicy").into()),
];
const MIGRATION: &[Col] = &[
    Col { format: "", ..NAME },
    text("Resource", |r| {
        match (r.str("spec.resource.resource"), r.str("spec.resource.group")) {
            (resource, "") => resource.into(),
            (resource, group) => format!("{resource}.{group}").into(),
        }
    }),
    text("Status", |r| {
        let of = |c: &Value, key: &str| c.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
        let told = r.list("status.conditions").iter().rev().find(|c| {
            of(c, "status") == "True" && matches!(of(c, "type").as_str(), "Running" | "Failed" | "Succeeded")
        });
        told.map_or("Unknown".into(), |c| of(c, "type").into())
    }),
];
const RUNTIME_CLASS: &[Col] = &[NAME, text("Handler", |r| r.str("handler").into()), AGE];
const FLOW_SCHEMA: &[Col] = &[
    NAME,
    text("PriorityLevel", |r| {
        r.str("spec.priorityLevelConfiguration.name").into()
    }),
    text("MatchingPrecedence", |r| r.int("spec.matchingPrecedence").into()),
    text("DistinguisherMethod", |r| {
        r.str_or("spec.distinguisherMethod.type", NONE)
    }),
    AGE,
    text("MissingPL", |r| {
        let dangling = |c: &&Value| c.get("type").and_then(Value::as_str) == Some("Dangling");
        r.list("status.conditions")
            .iter()
            .find(dangling)
            .and_then(|c| c.get("status")?.as_str())
            .unwrap_or("?")
            .into()
    }),
];
const PRIORITY_LEVEL: &[Col] = &[
    NAME,
    text("Type", |r| r.str("spec.type").into()),
    text("NominalConcurrencyShares", |r| {
        r.at("spec.limited.nominalConcurrencyShares")
            .map_or(NONE.into(), Value::clone)
    }),
    text("Queues", |r| queuing(r, "queues")),
    text("HandSize", |r| queuing(r, "handSize")),
    text("QueueLengthLimit", |r| queuing(r, "queueLengthLimit")),
    AGE,
];
const API_SERVICE: &[Col] = &[
    NAME,
    text("Service", |r| match r.str("spec.service.name") {
        "" => "Local".into(),
        name => format!("{}/{name}", r.str("spec.service.namespace")).into(),
    }),
    text("Available", |r| {
        let available = |c: &&Value| c.get("type").and_then(Value::as_str) == Some("Available");
        match r
            .list("status.conditions")
            .iter()
            .find(available)
            .and_then(Value::as_object)
        {
            Some(c) if c.str("status") == Some("False") => {
                format!("False ({})", c.str("reason").unwrap_or_default()).into()
            }
            Some(c) => c.str("status").unwrap_or_default().into(),
            None => UNKNOWN.into(),
        }
    }),
    AGE,
];
const TRUST_BUNDLE: &[Col] = &[NAME, text("SignerName", |r| r.str_or("spec.signerName", NONE))];
const CLAIM: &[Col] = &[
    NAME,
    text("State", |r| {
        let mut states = Vec::new();
        if r.object.deletion_timestamp().is_some() {
            states.push("deleted");
        }
        match r.at("status.allocation") {
            None if r.object.deletion_timestamp().is_none() => states.push("pending"),
            None => {}
            Some(_) => {
                states.push("allocated");
                if !r.list("status.reservedFor").is_empty() {
                    states.push("reserved");
                }
            }
        }
        joined(&states, "")
    }),
    AGE,
];
const NAME_AGE: &[Col] = &[NAME, AGE];
const TAINT_RULE: &[Col] = &[
    NAME,
    text("Key", |r| r.str("spec.taint.key").into()),
    text("Value", |r| r.str("spec.taint.value").into()),
    text("Effect", |r| r.str("spec.taint.effect").into()),
    text("TimeAdded", |r| match r.str("spec.taint.timeAdded") {
        "" => "".into(),
        time => r.since(time).into(),
    }),
    AGE,
];
const DEFINITION: &[Col] = &[
    NAME,
    text("Scope", |r| r.str("spec.scope").into()),
    text("Versions", |r| {
        let is = |version: &&Value, key: &str| version.get(key).and_then(Value::as_bool) == Some(true);
        let served = r.list("spec.versions").iter().filter(|v| is(v, "served"));
        let mut names: Vec<String> = served
            .map(|v| {
                let name = v.get("name").and_then(Value::as_str).unwrap_or_default();
                format!("{name}{}", if is(&v, "storage") { "(storage)" } else { "" })
            })
            .collect();
        names.sort();
        names.join(",").into()
    }),
    CREATED_AT,
    wide("Group", |r| r.str("spec.group").into()),
    wide("Kind", |r| r.str("spec.names.kind").into()),
    wide("ShortNames", |r| r.strings("spec.names.shortNames").join(",").into()),
    Col {
        priority: 1,
        ..flag("Established", |r| {
            let is = |c: &Value, key: &str, value: &str| c.get(key).and_then(Value::as_str) == Some(value);
            let mut all = r.list("status.conditions").iter();
            all.any(|c| is(c, "type", "Established") && is(c, "status", "True"))
                .into()
        })
    },
];
const SLICE: &[Col] = &[
    NAME,
    text("Node", |r| r.str_or("spec.nodeName", UNSET)),
    text("Driver", |r| r.str("spec.driver").into()),
    text("Pool", |r| r.str("spec.pool.name").into()),
    AGE,
];

pub fn groups(group: &str, kind: &str) -> Option<&'static [Col]> {
    Some(match (group, kind) {
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => BINDING,
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => CREATED,
        ("certificates.k8s.io", "CertificateSigningRequest") => CSR,
        ("certificates.k8s.io", "ClusterTrustBundle") => TRUST_BUNDLE,
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => WEBHOOKS,
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => VALIDATING_POLICY,
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicy") => MUTATING_POLICY,
        ("admissionregistration.k8s.io", _) => POLICY_BINDING,
        ("scheduling.k8s.io", "PriorityClass") => PRIORITY_CLASS,
        ("storagemigration.k8s.io", "StorageVersionMigration") => MIGRATION,
        ("node.k8s.io", "RuntimeClass") => RUNTIME_CLASS,
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => FLOW_SCHEMA,
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => PRIORITY_LEVEL,
        ("apiregistration.k8s.io", "APIService") => API_SERVICE,
        ("apiextensions.k8s.io", "CustomResourceDefinition") => DEFINITION,
        ("resource.k8s.io", "DeviceTaintRule") => TAINT_RULE,
        ("resource.k8s.io", "ResourceClaim") => CLAIM,
        ("resource.k8s.io", "ResourceSlice") => SLICE,
        ("resource.k8s.io", _) => NAME_AGE,
        _ => return None,
    })
}

fn subjects(r: &Row, kind: &str) -> Value {
    let each = |s: &Map| {
        let name = s.str("name").unwrap_or_default();
        match s.str("namespace").filter(|_| kind == "ServiceAccount") {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.to_string(),
        }
    };
    let of_kind = r
        .list("subjects")
        .iter()
        .filter_map(Value::as_object)
        .filter(|s| s.str("kind") == Some(kind));
    of_kind.map(each).collect::<Vec<_>>().join(", ").into()
}

fn csr_condition(r: &Row) -> Value {
    let has = |kind: &str| {
        r.list("status.conditions")
            .iter()
            .any(|c| c.get("type").and_then(Value::as_str) == Some(kind))
    };
    let mut words = Vec::new();
    if has("Denied") {
        words.push("Denied");
    } else if has("Approved") {
        words.push("Approved");
    } else {
        words.push("Pending");
    }
    if has("Failed") {
        words.push("Failed");
    }
    if !r.str("status.certificate").is_empty() {
        words.push("Issued");
    }
    words.join(",").into()
}

fn queuing(r: &Row, key: &str) -> Value {
    r.at(&format!("spec.limited.limitResponse.queuing.{key}"))
        .map_or(NONE.into(), Value::clone)
}
