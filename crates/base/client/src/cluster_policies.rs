//! `ClusterNetworkPolicy` of `policy.networking.k8s.io/v1alpha2`, a custom resource. Rules of both directions are one type here: what they
//! have in common is all but the names of their lists.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};

pub const GROUP: &str = "policy.networking.k8s.io";
pub const VERSION: &str = "v1alpha2";
/// The name of the kind's definition.
pub const DEFINITION: &str = "clusternetworkpolicies.policy.networking.k8s.io";

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterNetworkPolicy {
    pub metadata: ObjectMeta,
    pub spec: ClusterPolicySpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<ClusterPolicyStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterPolicyStatus {
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterPolicySpec {
    /// `Admin` or `Baseline`.
    pub tier: String,
    pub priority: i32,
    pub subject: ClusterPeer,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<ClusterRule>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<ClusterRule>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterRule {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `Accept`, `Deny` or `Pass`.
    pub action: String,
    /// Of ingress.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<ClusterPeer>,
    /// Of egress.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<ClusterPeer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub protocols: Vec<ClusterProtocol>,
}

/// One of them is set. None: it is something that this version doesn't know.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterPeer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPods>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub domain_names: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NamespacedPods {
    pub namespace_selector: LabelSelector,
    pub pod_selector: LabelSelector,
}

/// One of them is set.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterProtocol {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Transport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<Transport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sctp: Option<Transport>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub destination_named_port: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Transport {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<PortMatch>,
}

/// One of them is set.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortMatch {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<PortRange>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortRange {
    pub start: i32,
    pub end: i32,
}

impl ClusterRule {
    pub fn peers(&self) -> impl Iterator<Item = &ClusterPeer> {
        self.from.iter().chain(&self.to)
    }

    /// How people find it: its name, or its place.
    pub fn shown(&self, index: usize) -> String {
        match self.name.as_str() {
            "" => format!("{}", index + 1),
            name => format!("{} ({name})", index + 1),
        }
    }
}

crate::custom_kinds! {
    ClusterNetworkPolicy, GROUP, VERSION, "ClusterNetworkPolicy", "clusternetworkpolicies", false;
}
