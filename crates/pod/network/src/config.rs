//! What the pod network of a node is told.

use ipnet::Ipv4Net;
use std::path::PathBuf;

#[derive(Clone, Debug)]
pub struct Config {
    /// Directory for address reservations and host-port records.
    pub state_dir: PathBuf,
    /// The range of all pods of the cluster; traffic leaving it is masqueraded.
    pub cluster_cidr: Ipv4Net,
    /// This node's range, when known before the API says so.
    pub pod_cidr: Option<Ipv4Net>,
    /// Bytes; 0: the kernel's default.
    pub mtu: u32,
}
