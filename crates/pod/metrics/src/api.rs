//! Requests and their answers: `nodes` and `pods`, got by name and listed, as objects or as a table.
//!
//! Which pods and nodes there are, and which of them selectors mean, the API server says.

use crate::cluster::{self, Metadata, Node, Nodes, Pod};
use crate::openapi;
use crate::scrape::{self, AT_ONCE, Address, Kubelets};
use crate::usage::{Look, Looks, SHORTEST, Usage};
use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Response, StatusCode, Uri, header};
use keelson_client::rest::{JSON, with_query};
use keelson_client::{Error, Rest};
use kube::core::Status;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

const BASE: &str = "/apis/metrics.k8s.io/v1beta1";
const VERSION: &str = "metrics.k8s.io/v1beta1";
const TABLE: &str = "application/json;as=Table;g=meta.k8s.io;v=v1";

/// Serves the group; its client has to be one that may list pods and nodes.
pub struct MetricsServer {
    rest: Rest,
    kubelets: Arc<dyn Kubelets>,
    /// By node. Held while kubelets are asked, so that one asks for all who want to know.
    looks: Mutex<HashMap<String, Looks>>,
}

/// What a path names.
#[derive(Debug, PartialEq)]
enum Asked<'a> {
    Resources,
    Nodes(Option<&'a str>),
    /// Namespace, and name.
    Pods(Option<&'a str>, Option<&'a str>),
}

fn asked(path: &str) -> Option<Asked<'_>> {
    let rest = path.strip_prefix(BASE)?.trim_matches('/');
    let parts: Vec<&str> = rest.split('/').collect();
    Some(match parts.as_slice() {
        [""] => Asked::Resources,
        ["nodes"] => Asked::Nodes(None),
        ["nodes", name] => Asked::Nodes(Some(name)),
        ["pods"] => Asked::Pods(None, None),
        ["namespaces", namespace, "pods"] => Asked::Pods(Some(namespace), None),
        ["namespaces", namespace, "pods", name] => Asked::Pods(Some(namespace), Some(name)),
        _ => return None,
    })
}

impl MetricsServer {
    pub fn new(client: kube::Client, kubelets: Arc<dyn Kubelets>) -> MetricsServer {
        MetricsServer {
            rest: Rest::new(client, "keelson-metrics"),
            kubelets,
            looks: Mutex::default(),
        }
    }

    /// The answer to a request of somebody who may read.
    pub async fn answer(&self, method: &Method, uri: &Uri, accept: &str) -> Response<Bytes> {
        if uri.path().trim_end_matches('/') == openapi::PATH && method == Method::GET {
            return response(StatusCode::OK, &openapi::document());
        }
        let answered = match asked(uri.path()) {
            None => Err(failure(
                StatusCode::NOT_FOUND,
                "the server could not find the requested resource",
                "NotFound",
            )),
            Some(_) if method != Method::GET || query(uri, "watch").is_some_and(|w| w != "false" && w != "0") => {
                let text = "the server does not allow this method on the requested resource";
                Err(failure(StatusCode::METHOD_NOT_ALLOWED, text, "MethodNotAllowed"))
            }
            Some(asked) => self.found(asked, uri).await,
        };
        match answered {
            Ok(found) => response(StatusCode::OK, &found.shown(accept.contains("as=Table"))),
            Err(status) => {
                let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                let mut body = serde_json::to_value(&status).unwrap_or_default();
                body["kind"] = "Status".into();
                body["apiVersion"] = "v1".into();
                response(code, &body)
            }
        }
    }

    async fn found(&self, asked: Asked<'_>, uri: &Uri) -> Result<Found, Box<Status>> {
        let selectors = [
            ("labelSelector", query(uri, "labelSelector").unwrap_or_default()),
            ("fieldSelector", query(uri, "fieldSelector").unwrap_or_default()),
        ];
        let selectors = selectors.each_ref().map(|(key, value)| (*key, value.as_str()));
        match asked {
            Asked::Resources => Ok(Found::Resources),
            Asked::Nodes(None) => {
                let list: Nodes = self.read(&with_query("/api/v1/nodes", &selectors)).await?;
                Ok(Found::List("NodeMetrics", self.nodes(list.items).await))
            }
            Asked::Nodes(Some(name)) => {
                let node: Node = self.read(&format!("/api/v1/nodes/{name}")).await?;
                let mut of_it = self.nodes(vec![node]).await;
                of_it.pop().map(Found::One).ok_or_else(|| missing("nodes", name))
            }
            Asked::Pods(namespace, None) => {
                let path = match namespace {
                    None => "/api/v1/pods".to_string(),
                    Some(namespace) => format!("/api/v1/namespaces/{namespace}/pods"),
                };
                let pods = self.table(&with_query(&path, &selectors)).await?;
                Ok(Found::List("PodMetrics", self.pods(pods).await?))
            }
            Asked::Pods(namespace, Some(name)) => {
                let namespace = namespace.unwrap_or_default();
                let pod = self
                    .table(&format!("/api/v1/namespaces/{namespace}/pods/{name}"))
                    .await?;
                let mut of_it = self.pods(pod).await?;
                let whole = format!("{namespace}/{name}");
                of_it.pop().map(Found::One).ok_or_else(|| missing("pods", &whole))
            }
        }
    }

    async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, Box<Status>> {
        let bytes = self.rest.get(path, JSON).await.map_err(refused)?;
        serde_json::from_slice(&bytes).map_err(|e| internal(&e.to_string()))
    }

    async fn table(&self, path: &str) -> Result<Vec<Pod>, Box<Status>> {
        let bytes = self.rest.get(path, TABLE).await.map_err(refused)?;
        cluster::pods(&bytes).map_err(|e| internal(&e))
    }

    async fn nodes(&self, nodes: Vec<Node>) -> Vec<Shown> {
        let looks = self.refreshed(&nodes).await;
        let of = |node: Node| {
            let usage = looks.get(&node.metadata.name)?.node()?;
            Some(Shown::node(&node.metadata, usage))
        };
        nodes.into_iter().filter_map(of).collect()
    }

    async fn pods(&self, pods: Vec<Pod>) -> Result<Vec<Shown>, Box<Status>> {
        let nodes: Nodes = self.read("/api/v1/nodes").await?;
        let mut looks = self.refreshed(&nodes.items).await;
        let known: HashSet<&str> = nodes.items.iter().map(|n| n.metadata.name.as_str()).collect();
        looks.retain(|name, _| known.contains(name.as_str()));
        // Of pods that are bound to other nodes a node has nothing to say.
        let used: HashMap<&str, _> = looks
            .iter()
            .map(|(node, looks)| (node.as_str(), looks.pods()))
            .collect();
        let of = |pod: Pod| {
            let Metadata { namespace, name, .. } = &pod.metadata;
            let containers = used.get(pod.node.as_str())?.get(&(namespace.as_str(), name.as_str()))?;
            Some(Shown::pod(&pod.metadata, containers))
        };
        Ok(pods.into_iter().filter_map(of).collect())
    }

    /// Asks those of the nodes' kubelets that haven't been asked just now; of new ones twice.
    async fn refreshed(&self, nodes: &[Node]) -> tokio::sync::MutexGuard<'_, HashMap<String, Looks>> {
        let mut looks = self.looks.lock().await;
        let ready = nodes.iter().filter(|n| n.is_ready());
        let mut wanted: Vec<(&str, Option<Address>)> = ready.map(|n| (n.metadata.name.as_str(), n.kubelet())).collect();
        for wait in [None, Some(SHORTEST)] {
            let now = Instant::now();
            wanted.retain(|(name, _)| !looks.get(*name).is_some_and(|l| l.suffice(now)));
            if wanted.is_empty() {
                break;
            }
            tokio::time::sleep(wait.unwrap_or(Duration::ZERO)).await;
            let asked = wanted.iter().map(|(name, at)| self.look(name.to_string(), at.clone()));
            let asked = futures::stream::iter(asked.collect::<Vec<_>>());
            let answers: Vec<_> = asked.buffer_unordered(AT_ONCE).collect().await;
            let mut again = HashSet::new();
            for (name, answer) in answers {
                match answer {
                    Ok(look) => {
                        looks.entry(name.clone()).or_default().add(look);
                        again.insert(name);
                    }
                    Err(why) => {
                        tracing::debug!(node = name, why, "a kubelet does not tell what its pods use");
                        looks.entry(name).or_default().fail(Instant::now());
                    }
                }
            }
            wanted.retain(|(name, _)| again.contains(*name));
        }
        looks
    }

    async fn look(&self, node: String, kubelet: Option<Address>) -> (String, Result<Look, String>) {
        let look = scrape::look(&*self.kubelets, kubelet).await;
        (node, look)
    }
}

enum Found {
    Resources,
    One(Shown),
    List(&'static str, Vec<Shown>),
}

/// An object, and what of it stands in a table.
struct Shown {
    object: Map<String, Value>,
    kind: &'static str,
    /// Cores and bytes of all containers.
    sum: (f64, u64),
    window: Duration,
}

impl Shown {
    fn node(metadata: &Metadata, usage: Usage) -> Shown {
        let rest = json!({"usage": resources(usage.cpu, usage.memory)});
        Shown::of("NodeMetrics", metadata, &[usage], rest)
    }

    fn pod(metadata: &Metadata, containers: &[(&str, Usage)]) -> Shown {
        let all: Vec<Usage> = containers.iter().map(|(_, u)| *u).collect();
        let each = containers
            .iter()
            .map(|(name, u)| json!({"name": name, "usage": resources(u.cpu, u.memory)}));
        Shown::of(
            "PodMetrics",
            metadata,
            &all,
            json!({"containers": each.collect::<Vec<_>>()}),
        )
    }

    fn of(kind: &'static str, metadata: &Metadata, usages: &[Usage], rest: Value) -> Shown {
        let at = usages.iter().map(|u| u.at).min().unwrap_or_default();
        let window = usages.iter().map(|u| u.window).max().unwrap_or_default();
        let at = at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut meta = json!({"name": &metadata.name, "creationTimestamp": at});
        if !metadata.namespace.is_empty() {
            meta["namespace"] = metadata.namespace.as_str().into();
        }
        if let Some(labels) = &metadata.labels {
            meta["labels"] = labels.clone().into();
        }
        let mut object = Map::new();
        object.insert("metadata".into(), meta);
        object.insert("timestamp".into(), at.into());
        object.insert("window".into(), duration(window).into());
        object.extend(rest.as_object().cloned().unwrap_or_default());
        Shown {
            object,
            kind,
            sum: (
                usages.iter().map(|u| u.cpu).sum(),
                usages.iter().map(|u| u.memory).sum(),
            ),
            window,
        }
    }

    fn whole(self) -> Value {
        let mut object = json!({"kind": self.kind, "apiVersion": VERSION});
        object
            .as_object_mut()
            .into_iter()
            .for_each(|o| o.extend(self.object.clone()));
        object
    }

    fn row(&self) -> Value {
        let (cpu, memory) = self.sum;
        let metadata = &self.object["metadata"];
        json!({
            "cells": [metadata["name"], cores(cpu), bytes_of(memory), duration(self.window)],
            "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata},
        })
    }
}

impl Found {
    fn shown(self, table: bool) -> Value {
        match self {
            Found::Resources => json!({
                "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": VERSION,
                "resources": [
                    {"name": "nodes", "singularName": "", "namespaced": false, "kind": "NodeMetrics", "verbs": ["get", "list"]},
                    {"name": "pods", "singularName": "", "namespaced": true, "kind": "PodMetrics", "verbs": ["get", "list"]},
                ],
            }),
            Found::One(one) if table => rows(&[one]),
            Found::List(_, all) if table => rows(&all),
            Found::One(one) => one.whole(),
            Found::List(kind, all) => json!({
                "kind": format!("{kind}List"), "apiVersion": VERSION, "metadata": {},
                "items": all.into_iter().map(|s| Value::from(s.object)).collect::<Vec<_>>(),
            }),
        }
    }
}

fn rows(all: &[Shown]) -> Value {
    let column = |name: &str, format: &str| json!({"name": name, "type": "string", "format": format, "description": "", "priority": 0});
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {},
        "columnDefinitions": [column("Name", "name"), column("cpu", ""), column("memory", ""), column("Window", "")],
        "rows": all.iter().map(Shown::row).collect::<Vec<_>>(),
    })
}

fn resources(cpu: f64, memory: u64) -> Value {
    json!({"cpu": cores(cpu), "memory": bytes_of(memory)})
}

/// A canonical quantity of nanocores.
fn cores(cores: f64) -> String {
    let mut amount = (cores * 1e9).round() as u64;
    for unit in ["n", "u", "m"] {
        if amount == 0 {
            break;
        }
        if !amount.is_multiple_of(1000) {
            return format!("{amount}{unit}");
        }
        amount /= 1000;
    }
    amount.to_string()
}

/// A canonical quantity with binary units.
fn bytes_of(mut bytes: u64) -> String {
    let mut unit = "";
    for larger in ["Ki", "Mi", "Gi", "Ti"] {
        if bytes == 0 || !bytes.is_multiple_of(1024) {
            break;
        }
        (bytes, unit) = (bytes / 1024, larger);
    }
    format!("{bytes}{unit}")
}

/// As Go writes it, to the millisecond. No window is longer than a few minutes.
fn duration(window: Duration) -> String {
    let millis = window.as_millis();
    let (minutes, millis) = (millis / 60_000, millis % 60_000);
    let seconds = format!("{}.{:03}", millis / 1000, millis % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    match minutes {
        0 => format!("{seconds}s"),
        _ => format!("{minutes}m{seconds}s"),
    }
}

/// The first value of a key of the query.
fn query(uri: &Uri, key: &str) -> Option<String> {
    let pairs = uri.query().unwrap_or_default().split('&');
    let value = pairs
        .filter_map(|p| p.split_once('='))
        .find(|(k, _)| *k == key)?
        .1
        .replace('+', " ");
    Some(percent_decode_str(&value).decode_utf8_lossy().into_owned())
}

fn response(code: StatusCode, body: &Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = code;
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

fn failure(code: StatusCode, message: &str, reason: &str) -> Box<Status> {
    let mut status = Status::failure(message, reason);
    status.code = code.as_u16();
    Box::new(status)
}

fn internal(why: &str) -> Box<Status> {
    failure(StatusCode::INTERNAL_SERVER_ERROR, why, "InternalError")
}

/// The API's own answer, where it gave one.
fn refused(error: Error) -> Box<Status> {
    match error {
        Error::Api(status) => status,
        other => failure(
            StatusCode::SERVICE_UNAVAILABLE,
            &other.to_string(),
            "ServiceUnavailable",
        ),
    }
}

/// It may exist: nothing is known of what it uses.
fn missing(resource: &str, name: &str) -> Box<Status> {
    let text = format!("{resource}.metrics.k8s.io {name:?} not found");
    failure(StatusCode::NOT_FOUND, &text, "NotFound")
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
