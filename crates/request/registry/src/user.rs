//! Who asks: what authentication found out about the sender of a request.

use keelson_api::{Map, Str, Value};
use std::collections::BTreeMap;

pub const SYSTEM_MASTERS: &str = "system:masters";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const ANONYMOUS: &str = "system:anonymous";
pub const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";
pub const NODES: &str = "system:nodes";
pub const NODE_PREFIX: &str = "system:node:";
/// Who makes volumes of a node's own disk: one name a node, all in one group.
pub const LOCAL_STORAGE: &str = "system:keelson:local-storage";
const LOCAL_STORAGE_PREFIX: &str = "system:keelson:local-storage:";

/// An authenticated identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    pub name: Str,
    pub uid: Str,
    pub groups: Vec<Str>,
    pub extra: BTreeMap<Str, Vec<Str>>,
}

impl UserInfo {
    pub fn new(name: &str, groups: &[&str]) -> Self {
        UserInfo {
            name: name.into(),
            groups: groups.iter().map(|g| Str::from(*g)).collect(),
            ..Self::default()
        }
    }
    /// The API server itself: bypasses authorisation.
    pub fn api_server() -> Self {
        Self::new("system:apiserver", &[SYSTEM_MASTERS, AUTHENTICATED])
    }
    pub fn anonymous() -> Self {
        Self::new(ANONYMOUS, &[UNAUTHENTICATED])
    }
    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let groups = [
            SERVICE_ACCOUNTS.into(),
            format!("{SERVICE_ACCOUNTS}:{namespace}").into(),
            AUTHENTICATED.into(),
        ]
        .to_vec();
        UserInfo {
            name: format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}").into(),
            uid: uid.into(),
            groups,
            ..Self::default()
        }
    }
    /// The identity a component's name stands for: `system:node:<n>` gets the nodes' group, a service account its groups.
    pub fn from_identity(identity: &str) -> Self {
        if let Some((namespace, name)) = split_service_account(identity) {
            return Self::service_account(namespace, name, "");
        }
        let mut user = Self::new(identity, &[]);
        if identity.starts_with(NODE_PREFIX) {
            user.groups.push(NODES.into());
        }
        if identity.starts_with(LOCAL_STORAGE_PREFIX) {
            user.groups.push(LOCAL_STORAGE.into());
        }
        if identity == "system:apiserver" || identity == "kubernetes-admin" {
            user.groups.push(SYSTEM_MASTERS.into());
        }
        user.groups.push(AUTHENTICATED.into());
        user
    }
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
    pub fn is_anonymous(&self) -> bool {
        self.name == ANONYMOUS || self.in_group(UNAUTHENTICATED)
    }
    /// The name of the node, for a kubelet.
    pub fn node_name(&self) -> Option<&str> {
        self.name.strip_prefix(NODE_PREFIX).filter(|_| self.in_group(NODES))
    }
    /// The name of the node, for who makes volumes of its disk.
    pub fn local_storage_node(&self) -> Option<&str> {
        let node = self.name.strip_prefix(LOCAL_STORAGE_PREFIX);
        node.filter(|n| !n.is_empty() && self.in_group(LOCAL_STORAGE))
    }
    /// The name of who makes volumes of a node's disk.
    pub fn local_storage_of(node: &str) -> String {
        format!("{LOCAL_STORAGE_PREFIX}{node}")
    }
    /// Namespace and name, for a service account.
    pub fn service_account_name(&self) -> Option<(&str, &str)> {
        split_service_account(&self.name)
    }
    /// `authentication.k8s.io/v1 UserInfo`
    pub fn to_value(&self) -> Value {
        let mut m = Map::new();
        if !self.extra.is_empty() {
            m.push(
                "extra",
                self.extra.iter().map(|(k, v)| (k.clone(), strings(v))).collect::<Map>(),
            );
        }
        if !self.groups.is_empty() {
            m.push("groups", strings(&self.groups));
        }
        if !self.uid.is_empty() {
            m.push("uid", self.uid.clone());
        }
        m.push("username", self.name.clone());
        Value::Object(m)
    }
    pub fn from_value(v: &Value) -> Self {
        let list = |v: &Value| {
            v.as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(Str::from)
                .collect()
        };
        let text = |k: &str| v.get(k).and_then(Value::as_str).unwrap_or_default().into();
        UserInfo {
            name: v
                .get("username")
                .or_else(|| v.get("user"))
                .and_then(Value::as_str)
                .unwrap_or_default()
                .into(),
            uid: text("uid"),
            groups: v.get("groups").map(list).unwrap_or_default(),
            extra: v
                .get("extra")
                .and_then(Value::as_object)
                .map(|m| m.iter().map(|(k, v)| (k.clone(), list(v))).collect())
                .unwrap_or_default(),
        }
    }
}

fn split_service_account(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix(SERVICE_ACCOUNT_PREFIX)?
        .split_once(':')
        .filter(|(ns, n)| !ns.is_empty() && !n.is_empty() && !n.contains(':'))
}

fn strings(list: &[Str]) -> Vec<Value> {
    list.iter().cloned().map(Value::String).collect()
}
