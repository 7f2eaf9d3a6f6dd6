//! What one metric of an autoscaler asks for: fetched, counted, and as it is shown in the status.

use super::metrics::Metrics;
use super::replicas::{Basis, Tolerances, by_average, by_share, by_utilization, by_value};
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscaler, MetricIdentifier, MetricSpec,
    MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use keelson_api::Quantity;
use keelson_api::quantity::Format;
use keelson_client::labels;

pub struct Proposal {
    pub replicas: i32,
    /// The metric's name in conditions and events.
    pub name: String,
    pub status: MetricStatus,
}

/// Why a metric asks for nothing: the reason of an event and a condition, what they say, and what is said of it elsewhere.
#[derive(Debug)]
pub struct Failure {
    pub reason: &'static str,
    pub text: String,
    pub prefix: String,
}

/// The sizes that a target has and reports, and the selector of its pods.
pub struct Target<'a> {
    pub status_replicas: i32,
    pub selector: &'a str,
    pub basis: Basis<'a>,
}

/// How far usage may be off: as the autoscaler says, or else `usual`.
pub fn tolerances(hpa: &HorizontalPodAutoscaler, usual: f64) -> Tolerances {
    let behavior = hpa.spec.behavior.as_ref();
    let read = |text: &Text| Quantity::parse(&text.0).ok().map(|q| q.as_f64());
    let down = behavior
        .and_then(|b| b.scale_down.as_ref())
        .and_then(|r| r.tolerance.as_ref());
    let up = behavior
        .and_then(|b| b.scale_up.as_ref())
        .and_then(|r| r.tolerance.as_ref());
    Tolerances {
        down: down.and_then(read).unwrap_or(usual),
        up: up.and_then(read).unwrap_or(usual),
    }
}

fn milli(text: &Text) -> Result<i64, String> {
    Quantity::parse(&text.0)
        .map(|q| q.milli_value())
        .map_err(|e| e.to_string())
}

fn shown(milli: i64, format: Format) -> Option<Text> {
    Some(Text(Quantity::from_milli(milli, format).to_string()))
}

fn average(milli: i64) -> MetricValueStatus {
    MetricValueStatus {
        average_value: shown(milli, Format::DecimalSi),
        ..Default::default()
    }
}

/// A metric with its selector, as Go prints one.
fn external_name(metric: &str, of: Option<&LabelSelector>) -> String {
    match of {
        None => format!("external metric {metric}(nil)"),
        Some(of) => format!("external metric {metric}(&LabelSelector{{{}}})", labels::format(of)),
    }
}

pub async fn propose(metrics: &Metrics<'_>, spec: &MetricSpec, target: &Target<'_>) -> Result<Proposal, Failure> {
    let (reason, prefix, result) = match spec.type_.as_str() {
        "Resource" => {
            let name = spec.resource.as_ref().map(|r| r.name.as_str()).unwrap_or_default();
            let prefix = format!("failed to get {name} resource metric value");
            ("FailedGetResourceMetric", prefix, resource(metrics, spec, target).await)
        }
        "ContainerResource" => {
            let container = spec.container_resource.as_ref().map(|r| r.container.as_str());
            let prefix = format!("failed to get {} container metric value", container.unwrap_or_default());
            let result = container_resource(metrics, spec, target).await;
            ("FailedGetContainerResourceMetric", prefix, result)
        }
        "Pods" => {
            let prefix = "failed to get pods metric value".to_string();
            ("FailedGetPodsMetric", prefix, pods(metrics, spec, target).await)
        }
        "Object" => {
            let prefix = "failed to get object metric value".to_string();
            ("FailedGetObjectMetric", prefix, object(metrics, spec, target).await)
        }
        "External" => {
            let name = spec
                .external
                .as_ref()
                .map(|e| e.metric.name.as_str())
                .unwrap_or_default();
            let prefix = format!("failed to get {name} external metric value");
            ("FailedGetExternalMetric", prefix, external(metrics, spec, target).await)
        }
        other => {
            let text = format!("unknown metric source type {other:?}");
            return Err(Failure {
                reason: "InvalidMetricSourceType",
                prefix: String::new(),
                text,
            });
        }
    };
    let (replicas, name, mut status) = result.map_err(|text| Failure { reason, text, prefix })?;
    status.type_ = spec.type_.clone();
    Ok(Proposal { replicas, name, status })
}

type Found = Result<(i32, String, MetricStatus), String>;

const MISSING: &str = "the metric source of this type is not set";

async fn of_resource(
    metrics: &Metrics<'_>,
    name: &str,
    wanted: &MetricTarget,
    container: Option<&str>,
    target: &Target<'_>,
) -> Result<(i32, String, MetricValueStatus), String> {
    let format = if name == "memory" {
        Format::BinarySi
    } else {
        Format::DecimalSi
    };
    let get = async || {
        let samples = metrics.resource(name, container, target.selector).await;
        samples.map_err(|e| format!("unable to get metrics for resource {name}: {e}"))
    };
    if let Some(value) = &wanted.average_value {
        let failed = |e| format!("failed to get {name} usage: {e}");
        let samples = get().await.map_err(failed)?;
        let (replicas, raw) = by_average(&target.basis, milli(value)?, name, samples).map_err(failed)?;
        let status = MetricValueStatus {
            average_value: shown(raw, format),
            ..Default::default()
        };
        return Ok((replicas, format!("{name} resource"), status));
    }
    let Some(utilization) = wanted.average_utilization else {
        return Err(
            "invalid resource metric source: neither an average utilization target nor an average value (usage) target was set"
                .into(),
        );
    };
    let failed = |e| format!("failed to get {name} utilization: {e}");
    let samples = get().await.map_err(failed)?;
    let found = by_utilization(&target.basis, utilization, name, container, samples);
    let (replicas, (percent, raw)) = found.map_err(failed)?;
    let status = MetricValueStatus {
        average_utilization: Some(percent),
        average_value: shown(raw, format),
        value: None,
    };
    let of = if container.is_some() {
        "container resource"
    } else {
        "resource"
    };
    Ok((
        replicas,
        format!("{name} {of} utilization (percentage of request)"),
        status,
    ))
}

async fn resource(metrics: &Metrics<'_>, spec: &MetricSpec, target: &Target<'_>) -> Found {
    let source = spec.resource.as_ref().ok_or(MISSING)?;
    let (replicas, name, current) = of_resource(metrics, &source.name, &source.target, None, target).await?;
    let status = MetricStatus {
        resource: Some(ResourceMetricStatus {
            name: source.name.clone(),
            current,
        }),
        ..Default::default()
    };
    Ok((replicas, name, status))
}

async fn container_resource(metrics: &Metrics<'_>, spec: &MetricSpec, target: &Target<'_>) -> Found {
    let source = spec.container_resource.as_ref().ok_or(MISSING)?;
    let container = Some(source.container.as_str());
    let (replicas, name, current) = of_resource(metrics, &source.name, &source.target, container, target).await?;
    let status = MetricStatus {
        container_resource: Some(ContainerResourceMetricStatus {
            name: source.name.clone(),
            container: source.container.clone(),
            current,
        }),
        ..Default::default()
    };
    Ok((replicas, name, status))
}

async fn pods(metrics: &Metrics<'_>, spec: &MetricSpec, target: &Target<'_>) -> Found {
    let source = spec.pods.as_ref().ok_or(MISSING)?;
    let name = &source.metric.name;
    let samples = metrics
        .pods(name, source.metric.selector.as_ref(), target.selector)
        .await;
    let samples = samples.map_err(|e| format!("unable to get metric {name}: {e}"))?;
    let wanted = source.target.average_value.as_ref().map_or(Ok(0), milli)?;
    let (replicas, usage) = by_average(&target.basis, wanted, "", samples)?;
    let status = MetricStatus {
        pods: Some(PodsMetricStatus {
            metric: identifier(&source.metric),
            current: average(usage),
        }),
        ..Default::default()
    };
    Ok((replicas, format!("pods metric {name}"), status))
}

fn identifier(metric: &MetricIdentifier) -> MetricIdentifier {
    MetricIdentifier {
        name: metric.name.clone(),
        selector: metric.selector.clone(),
    }
}

async fn object(metrics: &Metrics<'_>, spec: &MetricSpec, target: &Target<'_>) -> Found {
    let source = spec.object.as_ref().ok_or(MISSING)?;
    let (name, described) = (&source.metric.name, &source.described_object);
    let of = source.metric.selector.as_ref();
    let status = |current| MetricStatus {
        object: Some(ObjectMetricStatus {
            described_object: described.clone(),
            metric: identifier(&source.metric),
            current,
        }),
        ..Default::default()
    };
    let get = async || {
        let usage = metrics.object(name, of, described).await;
        let (kind, ns) = (&described.kind, metrics.namespace);
        usage.map_err(|e| format!("unable to get metric {name} on {kind} {ns}/{}: {e}", described.name))
    };
    match (
        source.target.type_.as_str(),
        &source.target.value,
        &source.target.average_value,
    ) {
        ("Value", Some(value), _) => {
            let usage = get().await?;
            let replicas = by_value(&target.basis, milli(value)?, usage)?;
            let current = MetricValueStatus {
                value: shown(usage, Format::DecimalSi),
                ..Default::default()
            };
            Ok((replicas, format!("{} metric {name}", described.kind), status(current)))
        }
        ("AverageValue", _, Some(value)) => {
            let usage = get()
                .await
                .map_err(|e| format!("failed to get {name} object metric: {e}"))?;
            let (replicas, share) = by_share(target.status_replicas, target.basis.tolerances, milli(value)?, usage);
            Ok((replicas, external_name(name, of), status(average(share))))
        }
        _ => Err("invalid object metric source: neither a value target nor an average value target was set".into()),
    }
}

async fn external(metrics: &Metrics<'_>, spec: &MetricSpec, target: &Target<'_>) -> Found {
    let source = spec.external.as_ref().ok_or(MISSING)?;
    let name = &source.metric.name;
    let of = source.metric.selector.as_ref();
    let status = |current| MetricStatus {
        external: Some(ExternalMetricStatus {
            metric: identifier(&source.metric),
            current,
        }),
        ..Default::default()
    };
    let get = async || {
        let usage = metrics.external(name, of).await;
        let of = of.map_or_else(
            || "nil".into(),
            |of| format!("&LabelSelector{{{}}}", labels::format(of)),
        );
        usage.map_err(|e| format!("unable to get external metric {}/{name}/{of}: {e}", metrics.namespace))
    };
    if let Some(value) = &source.target.average_value {
        let usage = get()
            .await
            .map_err(|e| format!("failed to get {name} external metric: {e}"))?;
        let (replicas, share) = by_share(target.status_replicas, target.basis.tolerances, milli(value)?, usage);
        return Ok((replicas, external_name(name, of), status(average(share))));
    }
    let Some(value) = &source.target.value else {
        return Err(
            "invalid external metric source: neither a value target nor an average value target was set".into(),
        );
    };
    let usage = get()
        .await
        .map_err(|e| format!("failed to get external metric {name}: {e}"))?;
    let found = by_value(&target.basis, milli(value)?, usage);
    let replicas = found.map_err(|e| format!("failed to get external metric {name}: {e}"))?;
    let current = MetricValueStatus {
        value: shown(usage, Format::DecimalSi),
        ..Default::default()
    };
    Ok((replicas, external_name(name, of), status(current)))
}
