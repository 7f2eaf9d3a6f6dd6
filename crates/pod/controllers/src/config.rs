//! What the controllers are told from outside.

use anyhow::bail;
use keelson_client::Telling;
use keelson_client::leader::Election;
use keelson_pki::ServiceAccountKeys;
use std::sync::Arc;
use std::time::Duration;

/// What kube-controller-manager's flags say of autoscalers, with its defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Autoscaling {
    /// How often an autoscaler is looked at.
    pub period: Duration,
    /// How far usage may be off, as a part of one, if an autoscaler says nothing else.
    pub tolerance: f64,
    /// How long a higher recommendation keeps replicas, if an autoscaler says nothing else.
    pub downscale_window: Duration,
    /// So long after its start a pod's CPU counts only if it was measured while the pod was ready.
    pub cpu_initialization: Duration,
    /// A pod that became unready within this time of its start has never been ready.
    pub initial_readiness: Duration,
}

impl Default for Autoscaling {
    fn default() -> Self {
        Autoscaling {
            period: Duration::from_secs(15),
            tolerance: 0.1,
            downscale_window: Duration::from_secs(300),
            cpu_initialization: Duration::from_secs(300),
            initial_readiness: Duration::from_secs(30),
        }
    }
}

#[derive(Clone)]
pub struct Config {
    /// The certificate that verifies the API server, for `kube-root-ca.crt`. Empty: not published.
    pub root_ca_pem: String,
    /// The CA that signs certificate requests. Empty: nothing is signed.
    pub signing_cert_pem: String,
    pub signing_key_pem: String,
    /// The key that signs service accounts' tokens. None: Secrets for such aren't filled.
    pub account_keys: Option<Arc<ServiceAccountKeys>>,
    /// How long signed certificates are valid at most.
    pub signing_duration: Duration,
    /// The address ranges of pods, at most one a family: no load balancer's address is of them.
    pub cluster_cidrs: Vec<String>,
    /// Nodes get shares of these ranges.
    pub allocate_node_cidrs: bool,
    /// How large a node's share is.
    pub node_mask_v4: u8,
    pub node_mask_v6: u8,
    /// A node whose lease is older than this isn't ready.
    pub node_grace: Duration,
    /// The same for a node that never reported.
    pub node_startup_grace: Duration,
    /// Ports that no service of type LoadBalancer can have on the nodes, and whose they are. None: such services get no
    /// addresses from here.
    pub load_balancer: Option<crate::Reserved>,
    /// Pools give addresses to such services, too; their definition is in the cluster.
    pub pools: bool,
    /// Snapshots of volumes are made; their definitions are in the cluster.
    pub snapshots: bool,
    /// Statuses of the cluster's network policies are written; their definition is in the cluster.
    pub cluster_policies: bool,
    /// Workloads that ask for it are rolled out anew when what they are configured by changes.
    pub reload: bool,
    /// Namespaces whose ConfigMaps and Secrets may be shared with others. Empty: none.
    pub share_from: Vec<String>,
    pub autoscaling: Autoscaling,
    /// Finished pods beyond this number are deleted, the oldest first.
    pub terminated_pods: usize,
    /// `*` for all, a name, or `-name` for all but it.
    pub controllers: Vec<String>,
    /// This candidate, and what it is for. None: there is only one, and it leads.
    pub leader_election: Option<Election>,
    /// Where queues and requests are counted.
    pub telling: Telling,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            root_ca_pem: String::new(),
            signing_cert_pem: String::new(),
            signing_key_pem: String::new(),
            account_keys: None,
            signing_duration: Duration::from_secs(365 * 24 * 3600),
            cluster_cidrs: vec!["10.244.0.0/16".into()],
            allocate_node_cidrs: true,
            node_mask_v4: 24,
            node_mask_v6: 64,
            node_grace: Duration::from_secs(50),
            node_startup_grace: Duration::from_secs(60),
            load_balancer: Some(Vec::new()),
            pools: false,
            snapshots: false,
            cluster_policies: false,
            reload: false,
            share_from: Vec::new(),
            autoscaling: Autoscaling::default(),
            terminated_pods: 12500,
            controllers: vec!["*".into()],
            leader_election: None,
            telling: Telling::default(),
        }
    }
}

impl Config {
    pub fn is_enabled(&self, name: &str) -> bool {
        if self.controllers.iter().any(|c| c.strip_prefix('-') == Some(name)) {
            return false;
        }
        self.controllers.iter().any(|c| c == "*" || c == name)
    }

    pub fn check(&self) -> anyhow::Result<()> {
        for name in &self.controllers {
            let name = name.strip_prefix('-').unwrap_or(name);
            if name != "*" && !crate::names().any(|known| known == name) {
                let known: Vec<_> = crate::names().collect();
                bail!("there is no controller {name:?}; the names are {}", known.join(", "));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection() {
        let config = |names: &[&str]| Config {
            controllers: names.iter().map(|n| n.to_string()).collect(),
            ..Default::default()
        };
        assert!(config(&["*"]).is_enabled("namespace"));
        assert!(!config(&["*", "-namespace"]).is_enabled("namespace"));
        assert!(!config(&["job"]).is_enabled("namespace"));
        assert!(config(&["nonsense"]).check().is_err());
        assert!(config(&["*", "-namespace"]).check().is_ok());
    }
}
