//! `LoadBalancerIPPool` of `keelson.dev/v1`, a custom resource of ours.

use crate::{GROUP, VERSION};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};

/// Addresses for services of type LoadBalancer, and how they are announced.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct LoadBalancerIpPool {
    pub metadata: ObjectMeta,
    pub spec: PoolSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<PoolStatus>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PoolSpec {
    /// CIDRs, and ranges from a first to a last one.
    pub addresses: Vec<String>,
    /// Also for services that don't ask for the pool.
    pub auto_assign: bool,
    /// Without the addresses that end in .0 and .255.
    #[serde(rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    pub announce: Announce,
}

impl Default for PoolSpec {
    fn default() -> Self {
        PoolSpec {
            addresses: Vec::new(),
            auto_assign: true,
            avoid_buggy_ips: false,
            service_selector: None,
            namespace_selector: None,
            announce: Announce::default(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Announce {
    /// [`Announce::LAYER2`], [`Announce::BGP`] or [`Announce::NONE`].
    pub protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// Names of links; without any, those that have a node's addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
    /// How peers are told, by BGP; without any, each of them of each address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub advertisements: Vec<Advertisement>,
}

impl Announce {
    /// One node answers for an address, by ARP and NDP.
    pub const LAYER2: &'static str = "Layer2";
    /// Nodes tell routers, by BGP.
    pub const BGP: &'static str = "BGP";
    /// Somebody else leads packets to the nodes.
    pub const NONE: &'static str = "None";
}

impl Default for Announce {
    fn default() -> Self {
        Announce {
            protocol: Announce::LAYER2.into(),
            node_selector: None,
            interfaces: Vec::new(),
            advertisements: Vec::new(),
        }
    }
}

/// Routes to a pool's addresses.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Advertisement {
    /// Names of peers; without any, all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// The length of the prefixes that addresses are told as.
    pub aggregation_length: u8,
    pub aggregation_length_v6: u8,
    pub local_preference: u32,
    /// `A:B`, `A:B:C` (large ones), or a name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub communities: Vec<String>,
}

impl Default for Advertisement {
    fn default() -> Self {
        Advertisement {
            peers: Vec::new(),
            node_selector: None,
            aggregation_length: 32,
            aggregation_length_v6: 128,
            local_preference: 100,
            communities: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct PoolStatus {
    pub conditions: Vec<Condition>,
    #[serde(rename = "assignedIPv4")]
    pub assigned_v4: i64,
    #[serde(rename = "assignedIPv6")]
    pub assigned_v6: i64,
    #[serde(rename = "availableIPv4")]
    pub available_v4: i64,
    #[serde(rename = "availableIPv6")]
    pub available_v6: i64,
}

keelson_client::custom_kinds! {
    LoadBalancerIpPool, GROUP, VERSION, "LoadBalancerIPPool", "loadbalancerippools", false;
}
