//! What the three metrics APIs answer: resources of pods, metrics of pods and of objects, metrics from outside.
//!
//! They are served by extensions of the API server, so all that is known here is their wire form. Errors are in the words
//! that upstream's clients use, for they end in conditions and events.

use super::replicas::{Sample, Samples};
use super::target::Kinds;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use keelson_api::Quantity;
use keelson_client::rest::{Error, JSON, with_query};
use keelson_client::{Rest, labels};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

const CUSTOM: &str = "custom.metrics.k8s.io";
const EXTERNAL: &str = "external.metrics.k8s.io";
/// Of custom metrics, the versions that are understood.
const CUSTOM_VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];
/// How long a custom metric was measured, if it doesn't say.
const WINDOW: SignedDuration = SignedDuration::from_secs(60);

pub struct Metrics<'a> {
    pub rest: &'a Rest,
    pub kinds: &'a Kinds,
    pub namespace: &'a str,
}

#[derive(Deserialize)]
struct List<T> {
    #[serde(default = "none")]
    items: Option<Vec<T>>,
}

fn none<T>() -> Option<Vec<T>> {
    None
}

#[derive(Deserialize)]
struct PodMetrics {
    metadata: Name,
    timestamp: Option<Timestamp>,
    #[serde(default)]
    window: String,
    #[serde(default)]
    containers: Option<Vec<ContainerMetrics>>,
}

#[derive(Default, Deserialize)]
struct Name {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct ContainerMetrics {
    #[serde(default)]
    name: String,
    #[serde(default)]
    usage: BTreeMap<String, Text>,
}

#[derive(Deserialize)]
struct MetricValue {
    #[serde(rename = "describedObject", default)]
    described: Name,
    timestamp: Option<Timestamp>,
    #[serde(rename = "windowSeconds", alias = "window")]
    window: Option<i64>,
    value: Text,
}

#[derive(Deserialize)]
struct Group {
    name: String,
    #[serde(default)]
    versions: Vec<Version>,
    #[serde(rename = "preferredVersion")]
    preferred: Option<Version>,
}

#[derive(Deserialize)]
struct Groups {
    #[serde(default)]
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

fn milli(text: &Text) -> Result<i64, String> {
    Quantity::parse(&text.0)
        .map(|q| q.milli_value())
        .map_err(|e| e.to_string())
}

fn selector(selector: Option<&LabelSelector>) -> String {
    selector.map(labels::format).unwrap_or_default()
}

impl Metrics<'_> {
    async fn get<T: DeserializeOwned>(&self, uri: &str, what: &str) -> Result<T, String> {
        let body = self.rest.get(uri, JSON).await.map_err(|error| told(&error, what))?;
        serde_json::from_slice(&body).map_err(|error| error.to_string())
    }

    /// What pods, or one container of each, use of a resource.
    pub async fn resource(&self, resource: &str, container: Option<&str>, pods: &str) -> Result<Samples, String> {
        let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods", self.namespace);
        let uri = with_query(&path, &[("labelSelector", pods)]);
        let list: Result<List<PodMetrics>, String> = self.get(&uri, "pods.metrics.k8s.io").await;
        let list = list.map_err(|e| format!("unable to fetch metrics from resource metrics API: {e}"))?;
        let items = list.items.unwrap_or_default();
        if items.is_empty() {
            return Err("no metrics returned from resource metrics API".into());
        }
        let mut samples = Samples::new();
        for pod in items {
            let containers = pod.containers.unwrap_or_default();
            let value = match container {
                Some(name) => match containers
                    .iter()
                    .find(|c| c.name == name)
                    .and_then(|c| c.usage.get(resource))
                {
                    Some(used) => milli(used)?,
                    None => continue,
                },
                None => {
                    let used: Option<Vec<&Text>> = containers.iter().map(|c| c.usage.get(resource)).collect();
                    let Some(used) = used.filter(|u| !u.is_empty()) else {
                        continue;
                    };
                    used.into_iter().map(milli).sum::<Result<i64, String>>()?
                }
            };
            let window = keelson_api::duration::parse(&pod.window).unwrap_or(0);
            let sample = Sample {
                value,
                at: pod.timestamp.unwrap_or_default(),
                window: SignedDuration::from_nanos(window),
            };
            samples.insert(pod.metadata.name, sample);
        }
        Ok(samples)
    }

    /// The preferred version of the custom metrics API.
    async fn custom_version(&self) -> Result<String, String> {
        let groups: Groups = self.get("/apis", "").await?;
        let Some(group) = groups.groups.into_iter().find(|g| g.name == CUSTOM) else {
            return Err(format!("no custom metrics API ({CUSTOM}) registered"));
        };
        let mut versions = group.preferred.into_iter().chain(group.versions);
        let known = versions.find(|v| CUSTOM_VERSIONS.contains(&v.version.as_str()));
        known
            .map(|v| v.version)
            .ok_or_else(|| "no known available metric versions found".into())
    }

    async fn custom(&self, path: &str, query: &[(&str, &str)], what: &str) -> Result<Vec<MetricValue>, String> {
        let version = self.custom_version().await?;
        let uri = with_query(&format!("/apis/{CUSTOM}/{version}/namespaces/{path}"), query);
        let list: List<MetricValue> = self.get(&uri, what).await?;
        Ok(list.items.unwrap_or_default())
    }

    /// A metric of each pod.
    pub async fn pods(&self, metric: &str, of: Option<&LabelSelector>, pods: &str) -> Result<Samples, String> {
        let path = format!("{}/pods/*/{metric}", self.namespace);
        let query = [("labelSelector", pods), ("metricLabelSelector", &selector(of))];
        let values = self.custom(&path, &query, &format!("pods.{CUSTOM} *")).await;
        let values = values.map_err(|e| format!("unable to fetch metrics from custom metrics API: {e}"))?;
        if values.is_empty() {
            return Err("no metrics returned from custom metrics API".into());
        }
        let mut samples = Samples::new();
        for value in values {
            let sample = Sample {
                value: milli(&value.value)?,
                at: value.timestamp.unwrap_or_default(),
                window: value.window.map_or(WINDOW, SignedDuration::from_secs),
            };
            samples.insert(value.described.name, sample);
        }
        Ok(samples)
    }

    /// A metric of one object, in thousandths.
    pub async fn object(
        &self,
        metric: &str,
        of: Option<&LabelSelector>,
        object: &CrossVersionObjectReference,
    ) -> Result<i64, String> {
        let value = self.object_value(metric, of, object).await;
        value.map_err(|e| format!("unable to fetch metrics from custom metrics API: {e}"))
    }

    async fn object_value(
        &self,
        metric: &str,
        of: Option<&LabelSelector>,
        object: &CrossVersionObjectReference,
    ) -> Result<i64, String> {
        let group = object
            .api_version
            .as_deref()
            .and_then(|v| v.split_once('/'))
            .map_or("", |(g, _)| g);
        let (path, what) = if group.is_empty() && object.kind == "Namespace" {
            (
                format!("{}/metrics/{metric}", self.namespace),
                format!("metrics.{CUSTOM} {metric}"),
            )
        } else {
            let id = self.kinds.find(self.rest, group, &object.kind).await.map_err(|e| {
                let kind = if group.is_empty() {
                    object.kind.clone()
                } else {
                    format!("{}.{group}", object.kind)
                };
                format!("unable to map kind {kind} to resource: {e}")
            })?;
            let resource = if group.is_empty() {
                id.plural.to_string()
            } else {
                format!("{}.{group}", id.plural)
            };
            let name = &object.name;
            (
                format!("{}/{resource}/{name}/{metric}", self.namespace),
                format!("{resource}.{CUSTOM} {name}"),
            )
        };
        let values = self
            .custom(&path, &[("metricLabelSelector", &selector(of))], &what)
            .await?;
        match &values[..] {
            [value] => milli(&value.value),
            _ => Err(format!(
                "the custom metrics API server returned {} results when we asked for exactly one",
                values.len()
            )),
        }
    }

    /// The values of a metric that is of no object here, summed up, in thousandths.
    pub async fn external(&self, metric: &str, of: Option<&LabelSelector>) -> Result<i64, String> {
        let path = format!("/apis/{EXTERNAL}/v1beta1/namespaces/{}/{metric}", self.namespace);
        let uri = with_query(&path, &[("labelSelector", &selector(of))]);
        let list: Result<List<MetricValue>, String> = self.get(&uri, &format!("{metric}.{EXTERNAL}")).await;
        let list = list.map_err(|e| format!("unable to fetch metrics from external metrics API: {e}"))?;
        let items = list.items.unwrap_or_default();
        if items.is_empty() {
            return Err("no metrics returned from external metrics API".into());
        }
        items
            .iter()
            .try_fold(0i64, |sum, item| Ok(sum.saturating_add(milli(&item.value)?)))
    }
}

/// The server's own words; where it answered with none that are an API's, those of upstream's client.
fn told(error: &Error, what: &str) -> String {
    let Error::Api(status) = error else {
        return error.to_string();
    };
    if status.reason != "Unknown" {
        return status.message.clone();
    }
    let general = match status.code {
        404 => "the server could not find the requested resource".to_string(),
        503 => "the server is currently unable to handle the request".to_string(),
        504 => {
            "the server was unable to return a response in the time allotted, but may still be processing the request"
                .to_string()
        }
        code if code >= 500 => {
            let said = &status.message;
            format!("an error on the server ({said:?}) has prevented the request from succeeding")
        }
        _ => return status.message.clone(),
    };
    if what.is_empty() {
        general
    } else {
        format!("{general} (get {what})")
    }
}
