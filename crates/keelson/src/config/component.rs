//! Components by the names that `--disable` has for them.

use anyhow::bail;
use std::str::FromStr;

/// A component that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    Addons,
    Agent,
    Dns,
    Ingress,
    LoadBalancer,
    Metrics,
    Policy,
    Proxy,
    Reload,
    Scheduler,
    Snapshots,
    Storage,
    Controllers,
}

impl FromStr for Component {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Component> {
        Ok(match name.trim() {
            "addons" => Component::Addons,
            "agent" => Component::Agent,
            "dns" => Component::Dns,
            "ingress" => Component::Ingress,
            "load-balancer" => Component::LoadBalancer,
            "metrics" => Component::Metrics,
            "policy" => Component::Policy,
            "proxy" => Component::Proxy,
            "reload" => Component::Reload,
            "scheduler" => Component::Scheduler,
            "snapshots" => Component::Snapshots,
            "local-storage" => Component::Storage,
            "controllers" => Component::Controllers,
            other => {
                bail!(
                    "--disable {other}: known are addons, agent, dns, ingress, load-balancer, local-storage, metrics, policy, proxy, reload, scheduler, snapshots and controllers"
                )
            }
        })
    }
}
