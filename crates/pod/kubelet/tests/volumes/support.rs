//! Claims and volumes as a cluster has them.

use crate::support::Node;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

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

/// A driver's volume.
pub fn csi(driver: &str, handle: &str) -> Value {
    json!({"accessModes": ["ReadWriteOnce"], "csi": {"driver": driver, "volumeHandle": handle}})
}

/// What the cluster says of a driver, with the server's defaults.
pub fn driver_object(node: &Node, name: &str, mut spec: Value) {
    for (key, value) in [
        ("fsGroupPolicy", json!("ReadWriteOnceWithFSType")),
        ("volumeLifecycleModes", json!(["Persistent"])),
        ("podInfoOnMount", json!(false)),
        ("requiresRepublish", json!(false)),
    ] {
        if spec[key].is_null() {
            spec[key] = value;
        }
    }
    node.api.create(
        "storage.k8s.io/v1/csidrivers",
        json!({"metadata": {"name": name}, "spec": spec}),
    );
}

/// A directory of its own for a kubelet whose drivers have real sockets; short, for those have short names.
pub struct Home(PathBuf);

impl Home {
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("kl{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Home(dir)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
