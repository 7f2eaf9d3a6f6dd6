//! A look at one kubelet: its resource metrics, in the text form of Prometheus.

use crate::usage::{Counted, Look, Name};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// A kubelet that takes longer is left out of an answer.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// Kubelets that are asked at once.
pub const AT_ONCE: usize = 32;

/// The most that a kubelet may say, some 25,000 containers: a node is not trusted with more of this program's memory.
pub const MOST_BYTES: usize = 8 << 20;

/// Where kubelets tell it.
pub const PATH: &str = "/metrics/resource";

/// A kubelet's host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

/// The way to kubelets: as somebody who may get `nodes/metrics`, which is no more than to read.
pub trait Kubelets: Send + Sync {
    /// What the kubelet answers to a GET, if it is not an error, and no more than [`MOST_BYTES`].
    fn get(&self, kubelet: Address, path: &'static str) -> BoxFuture<'_, Result<Bytes, String>>;
}

pub async fn look(kubelets: &dyn Kubelets, kubelet: Option<Address>) -> Result<Look, String> {
    let kubelet = kubelet.ok_or("no preferred addresses found; known addresses: []")?;
    let asked = tokio::time::timeout(PATIENCE, kubelets.get(kubelet, PATH));
    let text = asked.await.map_err(|_| format!("no answer in {PATIENCE:?}"))??;
    let text = std::str::from_utf8(&text).map_err(|e| e.to_string())?;
    let (node, containers) = read(text);
    Ok(Look {
        taken: Instant::now(),
        at: keelson_clock::now(),
        node: node.ok_or("the kubelet says nothing of its node")?,
        containers,
    })
}

/// Lines of other metrics are skipped, as is what can't be read.
fn read(text: &str) -> (Option<Counted>, HashMap<Name, Counted>) {
    let mut node: Option<Counted> = None;
    let mut containers: HashMap<Name, (Counted, bool)> = HashMap::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let Some((metric, labels, value)) = sample(line) else {
            continue;
        };
        match metric {
            "node_cpu_usage_seconds_total" => node.get_or_insert_default().cpu = value,
            "node_memory_working_set_bytes" => node.get_or_insert_default().memory = value as u64,
            _ => {
                let Some(name) = container(&labels) else { continue };
                match metric {
                    "container_cpu_usage_seconds_total" => {
                        let entry = containers.entry(name).or_default();
                        (entry.0.cpu, entry.1) = (value, true);
                    }
                    "container_memory_working_set_bytes" => containers.entry(name).or_default().0.memory = value as u64,
                    "container_start_time_seconds" => containers.entry(name).or_default().0.start = Some(value),
                    _ => {}
                }
            }
        }
    }
    // Of a container that has ended there may be a rest.
    let whole = containers.into_iter().filter(|(_, (_, counts))| *counts);
    (node, whole.map(|(name, (counted, _))| (name, counted)).collect())
}

fn container(labels: &[(&str, &str)]) -> Option<Name> {
    let of = |key: &str| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| v.to_string());
    Some((of("namespace")?, of("pod")?, of("container")?))
}

/// `name{label="value",…} value [timestamp]`. Names of the API need no escapes.
fn sample(line: &str) -> Option<(&str, Vec<(&str, &str)>, f64)> {
    let (name, labels, rest) = match line.split_once('{') {
        Some((name, rest)) => {
            let (labels, rest) = rest.split_once('}')?;
            let pairs = labels.split(',').filter(|p| !p.is_empty());
            let pair = |p: &'_ str| -> Option<(usize, usize)> { p.find("=\"").map(|at| (at, p.len())) };
            let labels = pairs
                .map(|p| pair(p).map(|(at, end)| (&p[..at], p[at + 2..end].trim_end_matches('"'))))
                .collect::<Option<Vec<_>>>()?;
            (name, labels, rest)
        }
        None => {
            let (name, rest) = line.split_once(' ')?;
            (name, Vec::new(), rest)
        }
    };
    let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
    value.is_finite().then_some((name.trim(), labels, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_are_understood() {
        let (node, containers) = read(
            "# HELP node_cpu_usage_seconds_total x\n# TYPE node_cpu_usage_seconds_total counter\n\
             node_cpu_usage_seconds_total 12.5 1700000000000\nnode_memory_working_set_bytes 1.5e+06\n\
             container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 0.25\n\
             container_memory_working_set_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 4096\n\
             container_start_time_seconds{container=\"c\",namespace=\"n\",pod=\"p\"} 1.7e+09\n\
             container_memory_working_set_bytes{container=\"rest\",namespace=\"n\",pod=\"p\"} 4096\n\
             pod_cpu_usage_seconds_total{namespace=\"n\",pod=\"p\"} 0.25\nresource_scrape_error 0\n\
             container_cpu_usage_seconds_total{container=\"nan\",namespace=\"n\",pod=\"p\"} NaN\nbroken{ 3\n",
        );
        assert_eq!(node.map(|n| (n.cpu, n.memory)), Some((12.5, 1_500_000)));
        let name = ("n".to_string(), "p".to_string(), "c".to_string());
        let counted = Counted {
            cpu: 0.25,
            memory: 4096,
            start: Some(1.7e9),
        };
        assert_eq!(containers, HashMap::from([(name, counted)]));
    }
}
