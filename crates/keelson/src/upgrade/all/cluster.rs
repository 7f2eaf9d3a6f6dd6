//! The cluster as the command sees it: its machines, its servers one by one, and the order that they keep. A server that is being
//! upgraded is away for a moment: whoever asks waits for it.

use super::order::{Answer, Kept, LOOK, Order, Report};
use crate::agent;
use crate::install::Role;
use anyhow::{Context, bail, ensure};
use http::Method;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_apiserver::upgrades::{PATH, PIECE};
use keelson_client::objects::{Objects, Patch};
use keelson_client::rest::{JSON, Rest};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a server may be away.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(500);
/// For one answer: a machine that is gone ends no connection.
const ANSWERS: Duration = Duration::from_secs(60);
/// Stands in the certificate of every server.
const NAME: &str = "kubernetes.default.svc";
const AGENT: &str = "keelson-upgrade";

pub struct Cluster {
    kubeconfig: PathBuf,
    rest: Rest,
}

#[derive(Clone, Debug)]
pub struct Machine {
    pub name: String,
    pub addresses: Vec<String>,
    pub ready: bool,
    pub report: Option<Report>,
    pub answer: Option<Answer>,
}

impl Machine {
    pub fn of(node: &Node) -> Machine {
        let status = node.status.as_ref();
        let conditions = status.into_iter().flat_map(|s| s.conditions.iter().flatten());
        let addresses = status.into_iter().flat_map(|s| s.addresses.iter().flatten());
        Machine {
            name: node.metadata.name.clone().unwrap_or_default(),
            addresses: addresses
                .filter(|a| a.type_ == "InternalIP")
                .map(|a| a.address.clone())
                .collect(),
            ready: conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True"),
            report: Report::of(node),
            answer: Answer::of(node),
        }
    }

    pub fn is_server(&self) -> bool {
        self.report.as_ref().is_some_and(|report| report.role == Role::Server)
    }

    pub fn runs(&self) -> &str {
        self.report.as_ref().map_or("", |report| &report.sha256)
    }
}

#[derive(Deserialize)]
struct Standing {
    bytes: u64,
    whole: bool,
}

/// Again while the reason may pass, for so long as a server may be away.
async fn patient<T, F: Future<Output = anyhow::Result<T>>>(mut attempt: impl FnMut() -> F) -> anyhow::Result<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        match tokio::time::timeout(ANSWERS, attempt()).await {
            Ok(Err(error)) if agent::passes(&error) && Instant::now() < until => tokio::time::sleep(PAUSE).await,
            Ok(done) => return done,
            Err(_) if Instant::now() < until => {}
            Err(_) => bail!("no answer within {}s", ANSWERS.as_secs()),
        }
    }
}

impl Cluster {
    pub async fn open(kubeconfig: &Path) -> anyhow::Result<Cluster> {
        let client = keelson_client::from_kubeconfig(kubeconfig, None).await?;
        Ok(Cluster {
            kubeconfig: kubeconfig.into(),
            rest: Rest::new(client, AGENT),
        })
    }

    pub async fn machines(&self, labels: &str) -> anyhow::Result<Vec<Machine>> {
        let listed = || async {
            let nodes: Vec<Node> = Objects::new(&self.rest).list("", labels, "").await?;
            Ok(nodes.iter().map(Machine::of).collect())
        };
        patient(listed).await.context("the cluster's nodes")
    }

    /// Addresses of the servers that are ready.
    pub async fn servers(&self) -> anyhow::Result<Vec<String>> {
        let listed = || async {
            let slices: Vec<EndpointSlice> = Objects::new(&self.rest)
                .list("default", "kubernetes.io/service-name=kubernetes", "")
                .await?;
            let slices: Vec<Arc<EndpointSlice>> = slices.into_iter().map(Arc::new).collect();
            Ok(agent::addresses(&slices))
        };
        patient(listed).await.context("the cluster's servers")
    }

    /// One of them, whichever the kubeconfig names.
    async fn server(&self, address: &str) -> anyhow::Result<Rest> {
        let file = Kubeconfig::read_from(&self.kubeconfig)?;
        let mut config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        config.cluster_url = format!("https://{address}").parse()?;
        config.tls_server_name = Some(NAME.into());
        // It is a machine of the cluster: no way round leads to it.
        config.proxy_url = None;
        Ok(Rest::new(kube::Client::try_from(config)?, AGENT))
    }

    /// Waits until each of these servers says that it is ready.
    pub async fn all_ready(&self, servers: &[String]) -> anyhow::Result<()> {
        for address in servers {
            let rest = self.server(address).await?;
            let asked = || async { Ok(rest.get("/readyz", "*/*").await?) };
            let asked = patient(asked).await;
            asked.with_context(|| format!("the server {address} isn't ready"))?;
        }
        Ok(())
    }

    /// Brings a program to one server.
    pub async fn bring(&self, address: &str, file: &Path, program: &str, size: u64) -> anyhow::Result<()> {
        let rest = self.server(address).await?;
        let path = format!("{PATH}/programs/{program}");
        let standing = || async { Ok(rest.get(&path, JSON).await?) };
        let standing = patient(standing).await;
        let mut standing: Standing = match &standing {
            Ok(text) => serde_json::from_slice(text)?,
            Err(error) if agent::status(error) == Some(404) => {
                bail!("it takes no programs: it runs an older one. Upgrade that machine by itself, this once")
            }
            Err(_) => return standing.map(|_| ()),
        };
        let mut file = File::open(file)?;
        while !standing.whole {
            let mut piece = Vec::new();
            file.seek(SeekFrom::Start(standing.bytes))?;
            (&mut file).take(PIECE as u64).read_to_end(&mut piece)?;
            // All of it may be there, and nobody has looked whether it is the one: then nothing is brought, for that.
            ensure!(
                !piece.is_empty() || standing.bytes == size,
                "the file has become shorter"
            );
            let path = format!("{path}?at={}&size={size}", standing.bytes);
            let brought = || async {
                Ok(rest
                    .call(Method::PUT, &path, "application/octet-stream", piece.clone())
                    .await?)
            };
            let after: Standing = serde_json::from_slice(&patient(brought).await?)?;
            // Of two that bring programs each would begin anew for ever: a server has one.
            ensure!(
                after.whole || after.bytes > standing.bytes,
                "what was brought there is gone: another command brings another program"
            );
            standing = after;
        }
        Ok(())
    }

    pub async fn forget(&self, address: &str) -> anyhow::Result<()> {
        let rest = self.server(address).await?;
        rest.call(Method::DELETE, &format!("{PATH}/programs"), JSON, Vec::new())
            .await?;
        Ok(())
    }

    pub async fn kept(&self) -> anyhow::Result<Kept> {
        let asked = || async { Ok(self.rest.get(&format!("{PATH}/order"), JSON).await?) };
        Ok(serde_json::from_slice(&patient(asked).await?)?)
    }

    /// Gives an order in the place of the one of that revision. If an answer is lost it is looked whether it was given.
    pub async fn give(&self, revision: u64, order: &Order) -> anyhow::Result<Kept> {
        let (path, body) = (format!("{PATH}/order?revision={revision}"), serde_json::to_vec(order)?);
        ensure!(
            body.len() <= PIECE,
            "so many machines at a time can't be asked: name fewer by --selector"
        );
        let given = || async { Ok(self.rest.call(Method::PUT, &path, JSON, body.clone()).await?) };
        match patient(given).await {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(error) if agent::status(&error) == Some(409) => {
                let kept = self.kept().await?;
                match kept.order.as_ref() == Some(order) {
                    true => Ok(kept),
                    false => Err(error.context("another command upgrades this cluster")),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Has a machine look at the order.
    pub async fn have_looked(&self, machine: &str, id: &str) -> anyhow::Result<()> {
        let patch = json!({"metadata": {"annotations": {LOOK: id}}});
        let nodes: Objects<Node> = Objects::new(&self.rest);
        let patched = || async { Ok(nodes.patch("", machine, Patch::Merge(&patch)).await?) };
        patient(patched).await.with_context(|| format!("node {machine}"))?;
        Ok(())
    }
}

/// Why machines can't be upgraded from here, a line each. `all`: every node, `chosen`: those that are to be.
pub fn refusals(all: &[Machine], chosen: &[Machine], servers: &[String]) -> Vec<String> {
    let of_machine = |machine: &Machine| match &machine.report {
        None => Some(format!(
            "{}: it doesn't say what it runs: another kubelet, or a keelson of before this command",
            machine.name
        )),
        Some(report) => {
            let why = report.refused.as_deref()?;
            Some(format!("{}: {}", machine.name, super::order::shown(why)))
        }
    };
    let with_nodes: BTreeSet<&str> = all
        .iter()
        .filter(|machine| machine.is_server())
        .flat_map(|machine| machine.addresses.iter().map(String::as_str))
        .collect();
    let of_server = |address: &String| {
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
        let host = host.trim_matches(['[', ']']);
        let why = "it runs no node, by which it would be asked: upgrade that machine by itself";
        (!with_nodes.contains(host)).then(|| format!("the server {address}: {why}"))
    };
    chosen
        .iter()
        .filter_map(of_machine)
        .chain(servers.iter().filter_map(of_server))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::order::PROGRAM;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_never_answers_is_not_waited_for_for_ever() {
        let began = Instant::now();
        let error = patient(std::future::pending::<anyhow::Result<()>>).await.unwrap_err();
        assert!(error.to_string().contains("no answer"), "{error:#}");
        assert!((PATIENCE..PATIENCE + ANSWERS).contains(&began.elapsed()));
    }

    #[test]
    fn machines_that_can_not_be_asked_are_named() {
        let machine = |name: &str, address: &str, report: Option<serde_json::Value>| {
            let annotations = report.map(|report| json!({PROGRAM: report.to_string()}));
            let node = json!({
                "metadata": {"name": name, "annotations": annotations},
                "status": {"addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
                           "conditions": [{"type": "Ready", "status": "True"}]},
            });
            Machine::of(&serde_json::from_value(node).unwrap())
        };
        let report = |role: &str| json!({"role": role, "version": "0.1.0", "kubernetes": "1.37.2", "sha256": "old"});
        let all = [
            machine("s0", "10.0.0.1", Some(report("server"))),
            machine("s1", "fd00::1", Some(report("server"))),
            machine("a0", "10.0.0.3", Some(report("agent"))),
        ];
        assert!(all[0].ready && all[0].is_server() && !all[2].is_server());
        let servers = ["10.0.0.1:6443".to_owned(), "[fd00::1]:6443".to_owned()];
        assert!(refusals(&all, &all, &servers).is_empty());
        // A server without a node, and an agent's address that claims to be one.
        let servers = ["10.0.0.9:6443".to_owned(), "10.0.0.3:6443".to_owned()];
        assert_eq!(refusals(&all, &all, &servers).len(), 2);
        let mut by_hand = report("agent");
        by_hand["refused"] = "no service\u{1b}[2J of Keelson".into();
        let others = [machine("a1", "10.0.0.4", Some(by_hand)), machine("k", "10.0.0.5", None)];
        let lines = refusals(&all, &others, &[]);
        assert_eq!(lines[0], "a1: no service [2J of Keelson");
        assert!(lines[1].starts_with("k: it doesn't say"), "{lines:?}");
    }
}
