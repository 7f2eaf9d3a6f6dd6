//! What has to be the same on all nodes, as the cluster tells it: ConfigMap `kube-system/keelson-cluster`, written by the
//! server at its start from its own options, read by agents at theirs.

use crate::config::{Component, Config};
use anyhow::Context;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::Error;
use keelson_client::objects::Objects;
use keelson_client::rest::Rest;
use serde::{Deserialize, Serialize};
use std::path::Path;

pub const NAMESPACE: &str = "kube-system";
pub const NAME: &str = "keelson-cluster";

/// Every value is text in JSON too, as a ConfigMap's are.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cluster {
    /// One value, or one of each family with a comma between them.
    pub cluster_cidr: String,
    pub service_cidr: String,
    pub cluster_dns: String,
    pub cluster_domain: String,
    pub network: String,
    /// Components that run on every node, if they do in this cluster: those that don't, divided by commas.
    #[serde(default)]
    pub disabled: String,
}

/// What agents leave out if the servers do.
const EVERYWHERE: [(Component, &str); 4] = [
    (Component::LoadBalancer, "load-balancer"),
    (Component::Ingress, "ingress"),
    (Component::Storage, "local-storage"),
    (Component::Snapshots, "snapshots"),
];

fn joined<T: ToString>(list: &[T]) -> String {
    list.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

/// What such a value stands for.
pub fn parts(text: &str) -> Vec<String> {
    text.split(',').map(String::from).collect()
}

impl Cluster {
    pub fn of(config: &Config) -> Cluster {
        Cluster {
            cluster_cidr: joined(&config.cluster_cidrs),
            service_cidr: joined(&config.service_cidrs),
            cluster_dns: joined(&config.cluster_dns),
            cluster_domain: config.cluster_domain.clone(),
            network: config.network.to_string(),
            disabled: disabled(|component| config.runs(component)),
        }
    }

    /// Names of components that this cluster does without.
    pub fn disabled(&self) -> impl Iterator<Item = &str> {
        self.disabled.split(',').filter(|name| !name.is_empty())
    }

    pub fn config_map(&self) -> anyhow::Result<ConfigMap> {
        Ok(ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.into()),
                namespace: Some(NAMESPACE.into()),
                ..ObjectMeta::default()
            },
            data: Some(serde_json::from_value(serde_json::to_value(self)?)?),
            ..ConfigMap::default()
        })
    }

    /// From the cluster, or as it was when it was last read: a node starts its pods while no server answers.
    pub async fn fetch(rest: &Rest, remembered: &Path) -> anyhow::Result<Cluster> {
        let map = Objects::<ConfigMap>::new(rest).get(NAMESPACE, NAME).await;
        let map = match map {
            Ok(map) => map,
            Err(error) if !unanswered(&error) => return Err(error).context("reading the cluster's settings"),
            Err(error) => {
                let text = keelson_pki::files::read(remembered)?;
                let text = text.ok_or(error).context("reading the cluster's settings")?;
                tracing::warn!("no server answers: going on with the cluster's settings as they last were");
                return serde_json::from_str(&text).with_context(|| format!("reading {}", remembered.display()));
            }
        };
        let data = serde_json::to_value(map.data.unwrap_or_default())?;
        let cluster: Cluster = serde_json::from_value(data)
            .with_context(|| format!("the cluster's settings ({NAMESPACE}/{NAME}) are not those of this version"))?;
        keelson_pki::files::write_public(remembered, &serde_json::to_vec(&cluster)?)?;
        Ok(cluster)
    }
}

fn disabled(runs: impl Fn(Component) -> bool) -> String {
    let left_out = EVERYWHERE.into_iter().filter(|(component, _)| !runs(*component));
    left_out.map(|(_, name)| name).collect::<Vec<_>>().join(",")
}

/// Nobody answered, or somebody who couldn't. An answer that says no is one: a node that was taken out of the cluster, or
/// meets another one, doesn't go on by what it remembers.
fn unanswered(error: &Error) -> bool {
    match error {
        Error::Api(status) => status.code == 429 || status.code >= 500,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_an_answer() {
        let said = |code: u16| {
            let status = serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code});
            Error::Api(Box::new(serde_json::from_value(status).unwrap()))
        };
        for (code, nobody) in [
            (401, false),
            (403, false),
            (404, false),
            (429, true),
            (500, true),
            (503, true),
        ] {
            assert_eq!(unanswered(&said(code)), nobody, "{code}");
        }
        assert!(unanswered(&Error::LinesCodecMaxLineLengthExceeded));
    }

    #[test]
    fn what_a_server_writes_an_agent_reads() {
        let cluster = Cluster {
            cluster_cidr: "10.1.0.0/16,fd00:1::/48".into(),
            service_cidr: "10.2.0.0/16,fd00:2::/112".into(),
            cluster_dns: "10.2.0.10".into(),
            cluster_domain: "example.local".into(),
            network: "host-gw".into(),
            disabled: disabled(|component| component != Component::Snapshots),
        };
        let data = cluster.config_map().unwrap().data.unwrap();
        assert_eq!(data["cluster-cidr"], "10.1.0.0/16,fd00:1::/48");
        let read: Cluster = serde_json::from_value(serde_json::to_value(data).unwrap()).unwrap();
        assert_eq!(read, cluster);
        assert_eq!(read.disabled().collect::<Vec<_>>(), ["snapshots"]);
    }
}
