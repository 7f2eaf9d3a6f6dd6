//! The two programs whose work is compared, each over a kube-apiserver and an etcd of its own.

use crate::peer::{MANAGER, Peer, free_port};
use anyhow::Result;
use std::path::Path;
use std::process::Command;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Ours,
    Peer,
}

impl Which {
    pub fn name(self) -> &'static str {
        match self {
            Which::Ours => "ours",
            Which::Peer => "peer",
        }
    }
}

/// Starts a server and a manager over it.
pub async fn start(which: Which, bin: &Path, program: &Path) -> Result<Peer> {
    let mut peer = Peer::named(bin, which.name()).await?;
    let port = free_port()?.to_string();
    let kubeconfig = peer.path(&format!("{MANAGER}.kubeconfig"));
    let (ca, ca_key, sa) = (peer.path("ca.crt"), peer.path("ca.key"), peer.path("sa.key"));
    let options = [
        ("kubeconfig", kubeconfig.as_str()),
        ("authentication-kubeconfig", kubeconfig.as_str()),
        ("authorization-kubeconfig", kubeconfig.as_str()),
        ("use-service-account-credentials", "true"),
        ("leader-elect", "false"),
        ("bind-address", "127.0.0.1"),
        ("secure-port", &port),
        ("root-ca-file", &ca),
        ("service-account-private-key-file", &sa),
        ("cluster-signing-cert-file", &ca),
        ("cluster-signing-key-file", &ca_key),
        ("allocate-node-cidrs", "true"),
        ("cluster-cidr", "10.244.0.0/16"),
        ("node-monitor-grace-period", "10s"),
        ("node-startup-grace-period", "10s"),
        ("node-monitor-period", "1s"),
        ("horizontal-pod-autoscaler-sync-period", "2s"),
        ("kube-api-qps", "1000"),
        ("kube-api-burst", "2000"),
    ];
    match which {
        Which::Peer => peer.run(&bin.join("kube-controller-manager"), "manager", &options)?,
        Which::Ours => {
            let mut command = Command::new(program);
            command.arg("controller-manager");
            peer.start_program(command, "manager", &options)?;
        }
    }
    Ok(peer)
}
