//! What the pod network of a node is told.

use ipnet::IpNet;
use std::path::PathBuf;

#[derive(Clone, Debug)]
pub struct Config {
    /// Directory for address reservations and host-port records.
    pub state_dir: PathBuf,
    /// The ranges of all pods of the cluster, one a family, the primary family's first; traffic leaving them is masqueraded.
    pub cluster_cidrs: Vec<IpNet>,
    /// This node's ranges, when known before the API says so.
    pub pod_cidrs: Vec<IpNet>,
    /// Bytes; 0: the kernel's default.
    pub mtu: u32,
}
