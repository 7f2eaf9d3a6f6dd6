//! Who owns whom: every object by its uid, and the dependents of every uid. Pure; knows nothing of the server.
//!
//! The graph only decides whom to look at. Whether an owner is really gone, and whether an object is really to be
//! deleted, is asked of the server each time: the graph may lag.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_client::ResourceId;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

#[derive(Clone, Debug)]
pub struct Node {
    pub resource: Arc<ResourceId>,
    pub namespace: String,
    pub name: String,
    pub owners: Vec<OwnerReference>,
    pub deleting: bool,
    pub foreground: bool,
    pub orphan: bool,
}

impl Node {
    pub fn new(resource: Arc<ResourceId>, meta: &ObjectMeta) -> Self {
        let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|f| f == finalizer);
        Node {
            resource,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
        }
    }

    /// Ends only after the dependents that block it.
    pub fn waits(&self) -> bool {
        self.deleting && self.foreground
    }

    /// Whether a reference in `namespace` means this object.
    fn is_meant(&self, reference: &OwnerReference, namespace: &str) -> bool {
        let group = reference.api_version.split_once('/').map_or("", |(g, _)| g);
        reference.kind == self.resource.kind
            && group == self.resource.group
            && reference.name == self.name
            && (self.namespace.is_empty() || self.namespace == namespace)
    }
}

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// The object may have to be deleted, or to be let go.
    Check(String),
    /// The object's dependents are to be made independent of it.
    Orphan(String),
}

#[derive(Default)]
pub struct Graph {
    nodes: HashMap<String, Node>,
    dependents: HashMap<String, BTreeSet<String>>,
}

impl Graph {
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    pub fn dependents(&self, uid: &str) -> impl Iterator<Item = (&String, &Node)> {
        let uids = self.dependents.get(uid);
        uids.into_iter()
            .flatten()
            .filter_map(|uid| self.nodes.get_key_value(uid))
    }

    /// The dependents without whose end the owner can't end.
    pub fn blocking<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = (&'a String, &'a Node)> {
        self.dependents(uid).filter(move |(_, node)| {
            node.owners
                .iter()
                .any(|o| o.uid == uid && o.block_owner_deletion == Some(true))
        })
    }

    /// Whether all owners are known to be there, as they are referred to, and not waiting for this object's end.
    pub fn is_solid(&self, node: &Node) -> bool {
        node.owners.iter().all(|owner| {
            self.nodes
                .get(&owner.uid)
                .is_some_and(|o| o.is_meant(owner, &node.namespace) && !o.waits())
        })
    }

    /// Owners known to be in another namespace: such references are mistakes.
    pub fn misplaced(&self, node: &Node) -> Vec<OwnerReference> {
        let elsewhere = |owner: &&OwnerReference| {
            self.nodes
                .get(&owner.uid)
                .is_some_and(|o| !o.namespace.is_empty() && o.namespace != node.namespace)
        };
        node.owners.iter().filter(elsewhere).cloned().collect()
    }

    /// An object appeared or changed.
    pub fn put(&mut self, uid: &str, node: Node) -> Vec<Task> {
        let old = self.nodes.remove(uid);
        let before: &[OwnerReference] = old.as_ref().map_or(&[], |o| &o.owners);
        let mut tasks = Vec::new();
        let blocks = |refs: &[OwnerReference], uid: &str| {
            refs.iter()
                .any(|o| o.uid == uid && o.block_owner_deletion == Some(true))
        };
        for owner in before {
            if blocks(before, &owner.uid) && !blocks(&node.owners, &owner.uid) {
                tasks.push(Task::Check(owner.uid.clone()));
            }
            if !node.owners.iter().any(|o| o.uid == owner.uid) {
                self.unlink(&owner.uid, uid);
            }
        }
        let changed = before != node.owners.as_slice();
        for owner in &node.owners {
            self.dependents
                .entry(owner.uid.clone())
                .or_default()
                .insert(uid.to_string());
        }
        if changed && !node.owners.is_empty() && !self.is_solid(&node) {
            tasks.push(Task::Check(uid.to_string()));
        }
        if node.deleting && node.orphan {
            tasks.push(Task::Orphan(uid.to_string()));
        } else if node.waits() {
            if old.as_ref().is_none_or(|o| !o.waits()) {
                tasks.extend(self.dependents(uid).map(|(uid, _)| Task::Check(uid.clone())));
            }
            tasks.push(Task::Check(uid.to_string()));
        }
        if old.is_none() {
            // Those who came first may refer to it by another name.
            let strays = self
                .dependents(uid)
                .filter(|(_, d)| !d.owners.iter().any(|o| o.uid == uid && node.is_meant(o, &d.namespace)));
            tasks.extend(strays.map(|(uid, _)| Task::Check(uid.clone())));
        }
        self.nodes.insert(uid.to_string(), node);
        tasks
    }

    /// An object is gone.
    pub fn remove(&mut self, uid: &str) -> Vec<Task> {
        let Some(node) = self.nodes.remove(uid) else {
            return Vec::new();
        };
        let mut tasks: Vec<Task> = self.dependents(uid).map(|(uid, _)| Task::Check(uid.clone())).collect();
        for owner in &node.owners {
            self.unlink(&owner.uid, uid);
            if self.nodes.get(&owner.uid).is_some_and(Node::waits) {
                tasks.push(Task::Check(owner.uid.clone()));
            }
        }
        tasks
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(set) = self.dependents.get_mut(owner) {
            set.remove(dependent);
            if set.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(uid: &str, blocks: bool) -> OwnerReference {
        OwnerReference {
            uid: uid.into(),
            name: uid.into(),
            kind: "K".into(),
            api_version: "v1".into(),
            block_owner_deletion: Some(blocks),
            ..Default::default()
        }
    }

    fn node(name: &str, owners: &[OwnerReference], state: &str) -> Node {
        Node {
            resource: Arc::new(ResourceId::fixed("", "v1", "K", "ks", true)),
            namespace: "ns".into(),
            name: name.into(),
            owners: owners.to_vec(),
            deleting: !state.is_empty(),
            foreground: state == "foreground",
            orphan: state == "orphan",
        }
    }

    fn show(tasks: Vec<Task>) -> Vec<String> {
        tasks
            .into_iter()
            .map(|t| match t {
                Task::Check(uid) => format!("check {uid}"),
                Task::Orphan(uid) => format!("orphan {uid}"),
            })
            .collect()
    }

    #[test]
    fn a_background_deletion_is_followed() {
        let mut graph = Graph::default();
        assert_eq!(show(graph.put("a", node("a", &[], ""))), Vec::<String>::new());
        assert_eq!(
            show(graph.put("b", node("b", &[reference("a", true)], ""))),
            Vec::<String>::new()
        );
        assert_eq!(
            show(graph.put("c", node("c", &[reference("b", true)], ""))),
            Vec::<String>::new()
        );
        assert_eq!(show(graph.remove("a")), ["check b"]);
        assert_eq!(show(graph.remove("b")), ["check c"]);
        assert_eq!(show(graph.remove("c")), Vec::<String>::new());
        assert_eq!((graph.len(), graph.dependents.len()), (0, 0), "nothing is left behind");
    }

    #[test]
    fn an_owner_that_isnt_known_is_asked_for() {
        let mut graph = Graph::default();
        assert_eq!(
            show(graph.put("b", node("b", &[reference("a", true)], ""))),
            ["check b"]
        );
        assert_eq!(
            show(graph.put("a", node("a", &[], ""))),
            Vec::<String>::new(),
            "it came after all"
        );
        assert_eq!(
            show(graph.put("x", node("x", &[reference("a", false), reference("gone", false)], ""))),
            ["check x"]
        );
    }

    #[test]
    fn an_owner_of_another_name_or_namespace_is_a_mistake() {
        let mut graph = Graph::default();
        graph.put("b", node("b", &[reference("a", true)], ""));
        assert_eq!(show(graph.put("a", node("other", &[], ""))), ["check b"]);
        let mut far = node("far", &[], "");
        far.namespace = "elsewhere".into();
        graph.put("far", far);
        let stray = node("s", &[reference("far", false)], "");
        assert_eq!(graph.misplaced(&stray).len(), 1);
        assert_eq!(show(graph.put("s", stray)), ["check s"]);
    }

    #[test]
    fn foreground_waits_for_those_that_block() {
        let mut graph = Graph::default();
        graph.put("a", node("a", &[], ""));
        graph.put("b", node("b", &[reference("a", true)], ""));
        graph.put("c", node("c", &[reference("a", false)], ""));
        assert_eq!(
            show(graph.put("a", node("a", &[], "foreground"))),
            ["check b", "check c", "check a"]
        );
        assert_eq!(
            graph.blocking("a").map(|(uid, _)| uid.as_str()).collect::<Vec<_>>(),
            ["b"]
        );
        assert_eq!(
            show(graph.put("b", node("b", &[reference("a", false)], ""))),
            ["check a", "check b"],
            "it doesn't block any more"
        );
        assert_eq!(show(graph.remove("b")), ["check a"]);
        assert_eq!(show(graph.put("a", node("a", &[], "orphan"))), ["orphan a"]);
    }
}
