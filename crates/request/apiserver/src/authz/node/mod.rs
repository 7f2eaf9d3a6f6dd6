//! The node authorizer: a kubelet may read what the pods bound to it refer to, and write its own objects.
//!
//! What it can't decide is left to RBAC. Reasons are upstream's.

mod graph;

use super::rule::Rule;
use super::{Attributes, Authorizer, Decision, Rules};
use crate::live::{Fields, Sink};
use crate::request::UserInfo;
use crate::request::user::LOCAL_STORAGE;
use graph::{Graph, Kind};
use keelson_api::Object;
use parking_lot::RwLock;
use std::sync::Arc;
use tokio::sync::watch;

pub struct NodeAuthorizer {
    graph: RwLock<Graph>,
    /// Counts changes of the graph, for who waits for a binding to arrive here.
    changes: watch::Sender<u64>,
    /// What every node may do: the rules of `system:node`.
    rules: Vec<Rule>,
}

const NO_RELATION: &str = "no relationship found between node";

impl NodeAuthorizer {
    pub fn new(rules: Vec<Rule>) -> Arc<Self> {
        Arc::new(NodeAuthorizer {
            graph: RwLock::default(),
            changes: watch::Sender::new(0),
            rules,
        })
    }
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
    /// A denial that a binding still on its way here would turn around.
    pub fn may_resolve(decision: &Decision) -> bool {
        matches!(decision, Decision::NoOpinion(reason) if reason.contains(NO_RELATION))
    }

    fn related(&self, node: &str, kind: Kind, a: &Attributes) -> Decision {
        if a.name.is_empty() {
            return no("No Object name found");
        }
        if self.graph.read().has_path(node, kind, &a.namespace, &a.name) {
            allow()
        } else {
            no(format!("{NO_RELATION} '{node}' and this object"))
        }
    }
    fn get(&self, node: &str, kind: Kind, a: &Attributes) -> Decision {
        if a.verb != "get" {
            return no("can only get individual resources of this type");
        }
        if !a.subresource.is_empty() {
            return no("cannot get subresource");
        }
        self.related(node, kind, a)
    }
    fn read_namespaced(&self, node: &str, kind: Kind, a: &Attributes) -> Decision {
        if !matches!(a.verb.as_str(), "get" | "list" | "watch") {
            return no("can only read resources of this type");
        }
        if !a.subresource.is_empty() {
            return no("cannot read subresource");
        }
        if a.namespace.is_empty() {
            return no("can only read namespaced object of this type");
        }
        self.related(node, kind, a)
    }
    fn claim(&self, node: &str, a: &Attributes) -> Decision {
        if a.subresource != "status" {
            return self.get(node, Kind::Claim, a);
        }
        if !matches!(a.verb.as_str(), "update" | "patch") {
            return no("can only get/update/patch this type");
        }
        self.related(node, Kind::Claim, a)
    }
    fn service_account(&self, node: &str, a: &Attributes) -> Decision {
        if a.verb == "get" && a.subresource.is_empty() {
            return self.read_namespaced(node, Kind::ServiceAccount, a);
        }
        if a.verb != "create" || a.name.is_empty() {
            return no("can only create tokens for individual service accounts");
        }
        if a.subresource != "token" {
            return no("can only create token subresource of serviceaccount");
        }
        self.related(node, Kind::ServiceAccount, a)
    }
    fn slice(&self, node: &str, a: &Attributes) -> Decision {
        if !a.subresource.is_empty() {
            return no("cannot authorize ResourceSlice subresources");
        }
        match a.verb.as_str() {
            "create" => allow(),
            "get" | "update" | "patch" | "delete" => self.related(node, Kind::Slice, a),
            "watch" | "list" | "deletecollection" if selects(a, "spec.nodeName", node) => allow(),
            "watch" | "list" | "deletecollection" => {
                no("can only list/watch/deletecollection resourceslices with nodeName field selector")
            }
            _ => no(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }
    fn certificate_request(&self, node: &str, a: &Attributes) -> Decision {
        if !a.subresource.is_empty() {
            return no("nodes may not access the status subresource of PodCertificateRequests");
        }
        match a.verb.as_str() {
            "create" => allow(),
            "get" => self.related(node, Kind::CertificateRequest, a),
            "list" | "watch" if selects(a, "spec.nodeName", node) => allow(),
            "list" | "watch" => no("can only list/watch podcertificaterequests with nodeName field selector"),
            verb => no(format!("nodes may not {verb} podcertificaterequests")),
        }
    }
    fn pod(&self, node: &str, a: &Attributes) -> Decision {
        match (a.subresource.as_str(), a.verb.as_str()) {
            ("", "get") => self.get(node, Kind::Pod, a),
            ("", "list" | "watch") if selects(a, "spec.nodeName", node) => allow(),
            ("", "list" | "watch") if !a.name.is_empty() => self.related(node, Kind::Pod, a),
            ("", "list" | "watch") => no("can only list/watch pods with spec.nodeName field selector"),
            // Mirror pods, status and evictions: the NodeRestriction admission plug-in checks whose pod it is.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => allow(),
            _ => no(""),
        }
    }
}

impl Authorizer for NodeAuthorizer {
    fn authorize(&self, a: &Attributes) -> Decision {
        let Some(node) = a.user.node_name() else { return no("") };
        if node.is_empty() {
            return no(format!("unknown node for user {:?}", a.user.name.as_str()));
        }
        if a.is_resource_request {
            match (a.api_group.as_str(), a.resource.as_str()) {
                ("", "secrets") => return self.read_namespaced(node, Kind::Secret, a),
                ("", "configmaps") => return self.read_namespaced(node, Kind::ConfigMap, a),
                ("", "persistentvolumeclaims") => return self.claim(node, a),
                ("", "persistentvolumes") => return self.get(node, Kind::Volume, a),
                ("resource.k8s.io", "resourceclaims") => return self.get(node, Kind::ResourceClaim, a),
                ("storage.k8s.io", "volumeattachments") => return self.get(node, Kind::Attachment, a),
                ("", "serviceaccounts") => return self.service_account(node, a),
                ("coordination.k8s.io", "leases") => return lease(node, a),
                ("storage.k8s.io", "csinodes") => return csi_node(node, a),
                ("resource.k8s.io", "resourceslices") => return self.slice(node, a),
                ("", "nodes") => return own_node(node, a),
                ("", "pods") => return self.pod(node, a),
                ("certificates.k8s.io", "podcertificaterequests") => return self.certificate_request(node, a),
                // As who makes volumes of its own disk. The NodeRestriction admission plug-in checks which volumes they are.
                ("", "users") if a.verb == "impersonate" && UserInfo::local_storage_of(node) == *a.name => {
                    return allow();
                }
                ("", "groups") if a.verb == "impersonate" && a.name == LOCAL_STORAGE => return allow(),
                _ => {}
            }
        }
        if self.rules.iter().any(|r| r.allows(a)) {
            allow()
        } else {
            no("")
        }
    }

    fn rules(&self, user: &UserInfo, _namespace: &str) -> Rules {
        match user.node_name() {
            None => Rules::default(),
            Some(_) => Rules {
                incomplete: true,
                evaluation_error: "node authorizer does not support user rule resolution".into(),
                ..Rules::default()
            },
        }
    }
}

fn lease(node: &str, a: &Attributes) -> Decision {
    if !matches!(a.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a node lease");
    }
    if a.namespace != "kube-node-lease" {
        return no("can only access leases in the \"kube-node-lease\" system namespace");
    }
    if a.verb != "create" && a.name != node {
        return no("can only access node lease with the same name as the requesting node");
    }
    allow()
}

fn csi_node(node: &str, a: &Attributes) -> Decision {
    if !a.subresource.is_empty() {
        return no("cannot authorize CSINode subresources");
    }
    if !matches!(a.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a CSINode");
    }
    if a.verb != "create" && a.name != node {
        return no("can only access CSINode with the same name as the requesting node");
    }
    allow()
}

fn own_node(node: &str, a: &Attributes) -> Decision {
    match (a.subresource.as_str(), a.verb.as_str()) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => allow(),
        ("", "get" | "list" | "watch") if a.name == node => allow(),
        ("", "get" | "list" | "watch") if a.name.is_empty() => {
            no(format!("node '{node}' cannot read all nodes, only its own Node object"))
        }
        ("", "get" | "list" | "watch") => no(format!(
            "node '{node}' cannot read '{}', only its own Node object",
            a.name
        )),
        _ => no(""),
    }
}

/// Whether the field selector demands `field=value`.
fn selects(a: &Attributes, field: &str, value: &str) -> bool {
    a.field_selector.split(',').any(|term| {
        term.trim()
            .strip_prefix(field)
            .and_then(|rest| rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')))
            .is_some_and(|v| v == value)
    })
}

fn allow() -> Decision {
    Decision::Allow(String::new())
}
fn no(reason: impl Into<String>) -> Decision {
    Decision::NoOpinion(reason.into())
}

/// Feeds one kind of objects into the graph.
struct GraphSink {
    authorizer: Arc<NodeAuthorizer>,
    kind: Kind,
}

impl NodeAuthorizer {
    /// What has to be followed, and where it goes.
    pub fn sinks(self: &Arc<Self>) -> Vec<(&'static str, Arc<dyn Sink>)> {
        [
            ("/api/v1/pods", Kind::Pod),
            ("/api/v1/persistentvolumes", Kind::Volume),
            ("/apis/storage.k8s.io/v1/volumeattachments", Kind::Attachment),
            ("/apis/resource.k8s.io/v1/resourceslices", Kind::Slice),
        ]
        .into_iter()
        .map(|(path, kind)| {
            (
                path,
                Arc::new(GraphSink {
                    authorizer: self.clone(),
                    kind,
                }) as Arc<dyn Sink>,
            )
        })
        .collect()
    }
    fn change(&self, f: impl FnOnce(&mut Graph)) {
        f(&mut self.graph.write());
        self.changes.send_modify(|n| *n += 1);
    }
}

impl Sink for GraphSink {
    fn replace(&self, objects: Vec<Object>) {
        self.authorizer.change(|g| {
            g.clear(self.kind);
            objects.iter().for_each(|o| g.set(self.kind, o));
        });
    }
    fn set(&self, object: Object) {
        self.authorizer.change(|g| g.set(self.kind, &object));
    }
    fn delete(&self, object: Object) {
        self.authorizer
            .change(|g| g.remove(self.kind, object.namespace(), object.name()));
    }
    fn looks_at(&self) -> Fields {
        match self.kind {
            Kind::Pod => graph::OF_PODS,
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn ask(verb: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
        Attributes {
            user: UserInfo::from_identity("system:node:n1"),
            verb: verb.into(),
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
            is_resource_request: true,
            ..Attributes::default()
        }
    }

    #[test]
    fn a_node_reads_what_its_pods_refer_to() {
        let node = NodeAuthorizer::new(vec![]);
        let sinks = node.sinks();
        let pod = value!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {
            "nodeName": "n1", "serviceAccountName": "sa",
            "volumes": [
                {"name": "s", "secret": {"secretName": "vol"}}, {"name": "c", "persistentVolumeClaim": {"claimName": "pvc"}},
                {"name": "p", "projected": {"sources": [{"configMap": {"name": "projected"}}]}},
            ],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env"}}}], "envFrom": [{"configMapRef": {"name": "from"}}]}],
        }});
        assert!(!node.authorize(&ask("get", "secrets", "ns", "vol")).is_allowed());
        sinks[0].1.set(Object::try_from(pod).unwrap());
        for (resource, name) in [
            ("secrets", "vol"),
            ("secrets", "env"),
            ("configmaps", "projected"),
            ("configmaps", "from"),
            ("serviceaccounts", "sa"),
            ("persistentvolumeclaims", "pvc"),
            ("pods", "p"),
        ] {
            assert!(
                node.authorize(&ask("get", resource, "ns", name)).is_allowed(),
                "{resource}/{name}"
            );
        }
        let denied = node.authorize(&ask("get", "secrets", "ns", "other"));
        assert_eq!(
            denied.reason(),
            "no relationship found between node 'n1' and this object"
        );
        assert!(NodeAuthorizer::may_resolve(&denied));
        assert!(!node.authorize(&ask("get", "secrets", "other", "vol")).is_allowed());
        let pv = value!({"metadata": {"name": "pv"}, "spec": {"claimRef": {"namespace": "ns", "name": "pvc"}}});
        sinks[1].1.replace(vec![Object::try_from(pv).unwrap()]);
        assert!(node.authorize(&ask("get", "persistentvolumes", "", "pv")).is_allowed());
        sinks[0]
            .1
            .delete(Object::try_from(value!({"metadata": {"name": "p", "namespace": "ns"}})).unwrap());
        assert!(!node.authorize(&ask("get", "secrets", "ns", "vol")).is_allowed());
        assert!(!node.authorize(&ask("get", "persistentvolumes", "", "pv")).is_allowed());
    }

    #[test]
    fn what_the_graph_looks_at_of_pods_exists() {
        let pods = keelson_api::builtin::builtin_kind_at("v1", "Pod").unwrap();
        assert!(keelson_api::codec::proto::Only::new(&pods, graph::OF_PODS).is_some());
    }

    #[test]
    fn a_node_acts_as_the_maker_of_its_own_volumes_only() {
        let node = NodeAuthorizer::new(vec![]);
        let may = |resource: &str, name: &str| node.authorize(&ask("impersonate", resource, "", name)).is_allowed();
        assert!(may("users", "system:keelson:local-storage:n1"));
        assert!(may("groups", "system:keelson:local-storage"));
        for other in [
            "system:keelson:local-storage:n2",
            "system:keelson:local-storage:",
            "system:node:n2",
            "admin",
        ] {
            assert!(!may("users", other), "{other}");
        }
        assert!(!may("groups", "system:masters"));
    }

    #[test]
    fn lists_need_the_nodes_selector() {
        let node = NodeAuthorizer::new(vec![]);
        let mut a = ask("watch", "pods", "", "");
        assert!(!node.authorize(&a).is_allowed());
        a.field_selector = "spec.nodeName=n1,status.phase!=Failed".into();
        assert!(node.authorize(&a).is_allowed());
        a.field_selector = "spec.nodeName=n12".into();
        assert!(!node.authorize(&a).is_allowed());
        assert!(node.authorize(&ask("get", "nodes", "", "n1")).is_allowed());
        assert!(!node.authorize(&ask("get", "nodes", "", "n2")).is_allowed());
    }
}
