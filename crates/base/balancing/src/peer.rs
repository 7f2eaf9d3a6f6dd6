//! `BGPPeer` of `keelson.dev/v1`, a custom resource of ours: a router that nodes tell of addresses.

use crate::{GROUP, VERSION};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct BgpPeer {
    pub metadata: ObjectMeta,
    pub spec: PeerSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<PeerStatus>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerSpec {
    #[serde(rename = "localASN")]
    pub local_asn: u32,
    #[serde(rename = "peerASN")]
    pub peer_asn: u32,
    pub peer_address: String,
    pub peer_port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_address: Option<String>,
    /// Zero: the peer is never given up for its silence.
    pub hold_time_seconds: u16,
    /// A third of the hold time, without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive_time_seconds: Option<u16>,
    /// The longest time between two attempts.
    pub connect_retry_seconds: u16,
    /// How many hops away a peer of another autonomous system may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ebgp_multihop: Option<u8>,
    /// How many hops away the peer may be, by what comes from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_security_hops: Option<u8>,
    /// The key of [`PASSWORDS`] that has the session's password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_key: Option<String>,
    pub graceful_restart: GracefulRestart,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
}

impl Default for PeerSpec {
    fn default() -> Self {
        PeerSpec {
            local_asn: 0,
            peer_asn: 0,
            peer_address: String::new(),
            peer_port: 179,
            source_address: None,
            hold_time_seconds: 90,
            keepalive_time_seconds: None,
            connect_retry_seconds: 10,
            ebgp_multihop: None,
            ttl_security_hops: None,
            password_key: None,
            graceful_restart: GracefulRestart::default(),
            node_selector: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GracefulRestart {
    pub enabled: bool,
    pub restart_time_seconds: u16,
}

impl Default for GracefulRestart {
    fn default() -> Self {
        GracefulRestart {
            enabled: true,
            restart_time_seconds: 30,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerStatus {
    /// How many nodes have, or try to have, a session with it.
    pub nodes: i64,
    pub established: i64,
    /// Those that aren't established first; no more than [`PeerStatus::MOST`].
    pub sessions: Vec<NodeSession>,
}

impl PeerStatus {
    pub const MOST: usize = 256;
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct NodeSession {
    pub node: String,
    #[serde(flatten)]
    pub session: Session,
}

/// How a session is, as its node says.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Session {
    /// [`Session::ESTABLISHED`], [`Session::CONNECT`], [`Session::IDLE`] or [`Session::UNKNOWN`].
    pub state: String,
    pub since: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Routes that the peer has from the node.
    pub announced: i64,
    /// UPDATE messages of the peer, which count for nothing.
    pub received_updates: i64,
}

impl Default for Session {
    fn default() -> Self {
        Session {
            state: Session::UNKNOWN.into(),
            since: Time(Default::default()),
            error: None,
            announced: 0,
            received_updates: 0,
        }
    }
}

impl Session {
    pub const ESTABLISHED: &'static str = "Established";
    /// It is tried.
    pub const CONNECT: &'static str = "Connect";
    /// It can't be.
    pub const IDLE: &'static str = "Idle";
    /// Its node is silent.
    pub const UNKNOWN: &'static str = "Unknown";
}

/// What a node says of its sessions, by the peer's name, stands in this annotation of its Node: only the node itself and administrators write it.
pub const SESSIONS: &str = "keelson.dev/bgp-sessions";
/// The longest annotation that is read; those of [`MOST_SESSIONS`] are shorter.
const LONGEST: usize = 64 * 1024;
/// Of how many sessions a node tells.
pub const MOST_SESSIONS: usize = 64;

pub type Sessions = BTreeMap<String, Session>;

/// What an annotation says; nothing, if it isn't such.
pub fn read_sessions(text: &str) -> Option<Sessions> {
    (text.len() <= LONGEST)
        .then(|| serde_json::from_str(text).ok())
        .flatten()
}

/// Where passwords of sessions are: one Secret, for every node reads it.
pub const PASSWORDS: &str = "keelson-bgp";
pub const PASSWORDS_NAMESPACE: &str = "kube-system";

keelson_client::custom_kinds! {
    BgpPeer, GROUP, VERSION, "BGPPeer", "bgppeers", false;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer that can't be read would be none: whoever wrote its status, it must not depend on that.
    #[test]
    fn what_the_definition_asks_of_a_session_is_enough() {
        let status: PeerStatus = serde_json::from_str(r#"{"sessions": [{"node": "a", "state": "Idle"}]}"#).unwrap();
        assert_eq!(status.sessions[0].session.state, Session::IDLE);
    }
}
