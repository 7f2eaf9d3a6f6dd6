//! `keelson wait`: until the node is Ready and the system services answer.

use crate::client::{block_on, kubeconfig};
use anyhow::{Context, bail};
use clap::Args;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_api::duration::length;
use keelson_client::objects::Objects;
use keelson_client::rest::Rest;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

#[derive(Args)]
pub struct Options {
    /// Kubeconfig of the cluster [default: $KUBECONFIG, or /var/lib/keelson/admin.kubeconfig]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Longest time to wait, such as 60s or 2m
    #[arg(long, default_value = "60s", value_parser = duration)]
    timeout: Duration,
    /// Say what is being waited for
    #[arg(long)]
    progress: bool,
}

/// As Go writes durations; a number alone is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    seconds.map_or_else(|| length(text).map_err(|e| e.to_string()), Ok)
}

/// Between two looks; the server may not be listening yet, so there is nothing to watch.
const PAUSE: Duration = Duration::from_millis(50);

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let path = kubeconfig(options.kubeconfig);
    block_on(async {
        let mut last = String::new();
        let looking = async {
            loop {
                match look(&path).await {
                    Ok(()) => return,
                    Err(why) => {
                        let why = format!("{why:#}");
                        if options.progress && why != last {
                            eprintln!("waiting: {why}");
                        }
                        last = why;
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        if tokio::time::timeout(options.timeout, looking).await.is_err() {
            bail!("not ready after {:?}: {last}", options.timeout);
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// `Err` says what is still missing.
pub async fn look(path: &Path) -> anyhow::Result<()> {
    if !path.exists() {
        bail!("the server has not written {} yet", path.display());
    }
    let client = keelson_client::from_kubeconfig(path, None)
        .await
        .context("no usable kubeconfig yet")?;
    let rest = Rest::new(client, "keelson-wait");
    // What nodes and services are said to be may have been said before the server was started anew.
    rest.get("/readyz", "*/*").await.context("the API is not ready yet")?;
    let nodes: Vec<Node> = Objects::new(&rest).list("", "", "").await?;
    if nodes.is_empty() {
        bail!("no node has registered yet");
    }
    for node in &nodes {
        let conditions = node
            .status
            .as_ref()
            .and_then(|s| s.conditions.as_deref())
            .unwrap_or_default();
        let name = node.metadata.name.as_deref().unwrap_or_default();
        match conditions.iter().find(|c| c.type_ == "Ready") {
            Some(c) if c.status == "True" => {}
            Some(c) => bail!(
                "node {name} is not Ready: {}",
                c.message.as_deref().unwrap_or("no reason given")
            ),
            None => bail!("node {name} has not reported yet"),
        }
    }
    let services: Objects<Service> = Objects::new(&rest);
    if services.find("default", "kubernetes").await?.is_none() {
        bail!("service default/kubernetes does not exist yet");
    }
    if services.find("kube-system", "kube-dns").await?.is_some() {
        let slices: Vec<EndpointSlice> = Objects::new(&rest)
            .list("kube-system", "kubernetes.io/service-name=kube-dns", "")
            .await?;
        let ready = slices
            .iter()
            .flat_map(|s| s.endpoints.iter().flatten())
            .any(|e| e.conditions.as_ref().is_none_or(|c| c.ready.unwrap_or(true)));
        if !ready {
            bail!("service kube-system/kube-dns has no ready endpoint yet");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["5 parsecs", "-1s", "99999999999999999999h", "nan"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
