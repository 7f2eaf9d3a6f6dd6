//! Whether the cluster is well as far as this machine goes: asked before anything is changed, and waited for afterwards.

use crate::agent;
use crate::config::Config;
use crate::install::Role;
use crate::servers::{self, Remembered};
use anyhow::{Context, bail, ensure};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use keelson_client::objects::Objects;
use keelson_client::rest::Rest;
use keelson_cri::v1::runtime_service_client::RuntimeServiceClient;
use keelson_cri::v1::{Container, ContainerState, ContainerStatusRequest, ListContainersRequest};
use keelson_cri::{CriClients, CriService};
use std::collections::BTreeMap;
use std::time::Duration;

/// As the kubelet labels containers, and as the runtime says of one whose end nobody saw.
const POD_UID: &str = "io.kubernetes.pod.uid";
const LOST: &str = "Unknown";
/// One question.
const WITHIN: Duration = Duration::from_secs(15);

/// Whom to ask.
pub struct Cluster<'a> {
    role: Role,
    config: &'a Config,
}

/// What has to be there afterwards, too, and what versions are judged by.
#[derive(Debug)]
pub struct Seen {
    pub server: String,
    /// Versions of the other nodes, by name.
    pub others: Vec<(String, String)>,
    /// Those that run: the uids of their pods, by id.
    pub containers: BTreeMap<String, String>,
}

impl<'a> Cluster<'a> {
    pub fn new(role: Role, config: &'a Config) -> Cluster<'a> {
        Cluster { role, config }
    }

    fn runs_pods(&self) -> bool {
        self.role == Role::Agent || self.config.runs(crate::config::Component::Agent)
    }

    async fn rest(&self) -> anyhow::Result<Rest> {
        match self.role {
            Role::Server => {
                let client = keelson_client::from_kubeconfig(&self.config.kubeconfig, None).await;
                Ok(Rest::new(
                    client.context("the administrator's kubeconfig")?,
                    "keelson-upgrade",
                ))
            }
            Role::Agent => agent::own_client(self.config),
        }
    }

    /// What is there; an error if the cluster isn't well.
    pub async fn look(&self) -> anyhow::Result<Seen> {
        bounded(self.look_at_leisure()).await
    }

    async fn look_at_leisure(&self) -> anyhow::Result<Seen> {
        let rest = self.rest().await?;
        rest.get("/readyz", "*/*").await.context("the API isn't ready")?;
        let version: serde_json::Value = serde_json::from_slice(&rest.get("/version", "application/json").await?)?;
        let server = version["gitVersion"].as_str().unwrap_or_default().to_owned();
        if self.runs_pods() {
            self.node_is_ready(&rest, None).await?;
        }
        let others = match self.role {
            // A node sees itself only.
            Role::Agent => Vec::new(),
            Role::Server => {
                self.majority(&rest).await?;
                others(Objects::new(&rest).list("", "", "").await?, &self.config.node_name)
            }
        };
        Ok(Seen {
            server,
            others,
            containers: self.containers().await?,
        })
    }

    /// Whether all is as it was `before`, by what was said since `began`.
    pub async fn is_back(&self, before: &Seen, began: Timestamp) -> anyhow::Result<()> {
        bounded(async {
            let rest = self.rest().await?;
            rest.get("/readyz", "*/*").await.context("the API isn't ready")?;
            if self.runs_pods() {
                self.node_is_ready(&rest, Some(began)).await?;
            }
            let lost = self.lost(before).await?;
            ensure!(
                lost == 0,
                "{lost} of {} containers that ran have been lost",
                before.containers.len()
            );
            Ok(())
        })
        .await
    }

    /// `since`: only what it said after that counts. It says so by its lease, even where its status is what it was.
    async fn node_is_ready(&self, rest: &Rest, since: Option<Timestamp>) -> anyhow::Result<()> {
        let name = &self.config.node_name;
        if let Some(since) = since {
            let lease: Lease = Objects::new(rest).get("kube-node-lease", name).await?;
            let renewed = lease.spec.and_then(|spec| spec.renew_time).map(|time| time.0);
            ensure!(renewed.is_some_and(|at| at > since), "node {name} hasn't reported yet");
        }
        let node: Node = Objects::new(rest)
            .get("", name)
            .await
            .with_context(|| format!("node {name}"))?;
        let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
        match conditions.iter().find(|c| c.type_ == "Ready") {
            Some(c) if c.status == "True" => Ok(()),
            Some(c) => bail!(
                "node {name} isn't Ready: {}",
                c.message.as_deref().unwrap_or("no reason given")
            ),
            None => bail!("node {name} has not reported"),
        }
    }

    /// While this server is away the others have to be able to go on.
    async fn majority(&self, rest: &Rest) -> anyhow::Result<()> {
        let Some(known) = Remembered::read(&self.config.data_dir)?.filter(|known| known.member.is_some()) else {
            return Ok(());
        };
        let ready = servers::ready(rest).await?;
        let members = known.etcd_servers.len();
        ensure!(
            goes_on(members, ready.len()),
            "{} of {members} servers are ready: without this one the others would be no majority. Bring the others back first",
            ready.len()
        );
        Ok(())
    }

    async fn containers(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let all = self.all_containers().await?;
        let running = all
            .into_iter()
            .filter(|c| c.state() == ContainerState::ContainerRunning);
        Ok(running.map(|c| (c.id.clone(), pod_of(&c))).collect())
    }

    async fn all_containers(&self) -> anyhow::Result<Vec<Container>> {
        if !self.runs_pods() {
            return Ok(Vec::new());
        }
        let listed = self
            .runtime()
            .await?
            .list_containers(ListContainersRequest::default())
            .await;
        Ok(listed.context("the containers that run")?.into_inner().containers)
    }

    async fn runtime(&self) -> anyhow::Result<RuntimeServiceClient<CriService>> {
        let socket = format!("unix://{}", self.config.cri_socket().display());
        Ok(CriClients::connect(&socket).await?.runtime)
    }

    /// How many that ran don't, though nobody ended them and they didn't end by themselves.
    async fn lost(&self, before: &Seen) -> anyhow::Result<usize> {
        let all = self.all_containers().await?;
        let mut lost = 0;
        for (id, pod) in &before.containers {
            let Some(container) = all.iter().find(|c| c.id == *id) else {
                // Its pod has been deleted, or goes on without it.
                lost += usize::from(all.iter().any(|c| pod_of(c) == *pod));
                continue;
            };
            if container.state() == ContainerState::ContainerRunning {
                continue;
            }
            let request = ContainerStatusRequest {
                container_id: id.clone(),
                verbose: false,
            };
            // One that goes meanwhile isn't there when it is asked for once more.
            let status = self.runtime().await?.container_status(request).await;
            let status = status.with_context(|| format!("how container {id} ended"))?;
            let reason = status.into_inner().status.map(|s| s.reason);
            lost += usize::from(reason.as_deref() == Some(LOST));
        }
        Ok(lost)
    }
}

fn pod_of(container: &Container) -> String {
    container.labels.get(POD_UID).cloned().unwrap_or_default()
}

async fn bounded<T>(asking: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    match tokio::time::timeout(WITHIN, asking).await {
        Ok(answer) => answer,
        Err(_) => bail!("no answer within {}s", WITHIN.as_secs()),
    }
}

/// Whether so many ready ones can spare one. Of two or fewer none can be spared, and all wait.
fn goes_on(members: usize, ready: usize) -> bool {
    members <= 2 || ready.saturating_sub(1) > members / 2
}

fn others(nodes: Vec<Node>, own: &str) -> Vec<(String, String)> {
    let said = nodes.into_iter().filter_map(|node| {
        let version = node.status?.node_info?.kubelet_version;
        Some((node.metadata.name?, version))
    });
    said.filter(|(name, version)| name != own && !version.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_stays() {
        for (members, ready, goes) in [
            (1, 1, true),
            (2, 2, true),
            (3, 3, true),
            (3, 2, false),
            (4, 4, true),
            (4, 3, false),
            (5, 4, true),
            (5, 3, false),
            (3, 0, false),
        ] {
            assert_eq!(goes_on(members, ready), goes, "{ready} of {members}");
        }
    }
}
