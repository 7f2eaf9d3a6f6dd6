//! Claims and volumes as a cluster has them.

use crate::support::Node;
use serde_json::{Value, json};

/// A claim and a volume `pv-<name>` bound to each other; `spec` is the volume's.
pub fn bound_claim(node: &Node, name: &str, mut spec: Value) {
    let claim = node.api.create(
        "namespaces/default/persistentvolumeclaims",
        json!({"metadata": {"name": name, "namespace": "default"},
            "spec": {"volumeName": format!("pv-{name}")}, "status": {"phase": "Bound"}}),
    );
    spec["claimRef"] = json!({"namespace": "default", "name": name, "uid": claim["metadata"]["uid"]});
    node.api.create(
        "persistentvolumes",
        json!({"metadata": {"name": format!("pv-{name}")}, "spec": spec, "status": {"phase": "Bound"}}),
    );
}
