//! What of a backup goes back into a cluster that runs: objects of a namespace, or one, as JSON.
//!
//! An object that goes back is a new one: it gets a uid of its own, and whatever the cluster gives (addresses of services, ports of nodes, the
//! node of a pod, status) it gives anew. What names it as its owner, and goes back too, names the new one. What is there stays, unless it is
//! asked for that it becomes what it was.

mod clean;
mod differences;
mod plan;

pub use clean::{clean, owned};
pub use differences::differences;
pub use plan::{Existing, Planned, Step, plan};

use serde_json::Value;

#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// As `kubectl` writes it: `deployments.apps`.
    pub resource: String,
    pub value: Value,
}

impl Object {
    fn text(&self, path: &str) -> &str {
        self.value.pointer(path).and_then(Value::as_str).unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    pub fn namespace(&self) -> &str {
        self.text("/metadata/namespace")
    }

    pub fn uid(&self) -> &str {
        self.text("/metadata/uid")
    }

    /// What is one and the same, whatever it is made of.
    pub fn key(&self) -> (&str, &str, &str) {
        (&self.resource, self.namespace(), self.name())
    }

    fn owners(&self) -> impl Iterator<Item = &Value> {
        let owners = self.value.pointer("/metadata/ownerReferences");
        owners.and_then(Value::as_array).into_iter().flatten()
    }

    fn has_controller(&self) -> bool {
        self.owners().any(|owner| owner["controller"] == true)
    }

    fn annotation(&self, name: &str) -> Option<&Value> {
        self.value.pointer("/metadata/annotations")?.get(name)
    }

    fn label(&self, name: &str) -> Option<&Value> {
        self.value.pointer("/metadata/labels")?.get(name)
    }
}
