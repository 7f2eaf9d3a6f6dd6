//! HorizontalPodAutoscaler: `v1` knows one CPU target; the rest of `v2` travels in annotations.

use super::Converter;
use async_trait::async_trait;
use keelson_api::{ApiError, ApiResult, Map, Object, Value, value};

#[derive(Debug)]
pub struct Autoscalers;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

#[async_trait]
impl Converter for Autoscalers {
    async fn convert(&self, objects: Vec<Object>, api_version: &str) -> ApiResult<Vec<Object>> {
        objects.into_iter().map(|o| one(o, api_version)).collect()
    }
    fn convert_now(&self, object: Object, api_version: &str) -> Option<ApiResult<Object>> {
        Some(one(object, api_version))
    }
}

fn one(o: Object, api_version: &str) -> ApiResult<Object> {
    match (o.api_version(), api_version) {
        (a, b) if a == b => Ok(o),
        (_, "autoscaling/v1") => to_v1(o),
        (_, "autoscaling/v2") => to_v2(o),
        (from, to) => Err(ApiError::internal(format!(
            "no conversion of autoscalers from {from} to {to}"
        ))),
    }
}

/// The CPU utilisation that `v1` has a field for.
fn is_cpu(m: &Value, member: &str) -> bool {
    m.get("type").and_then(Value::as_str) == Some("Resource")
        && m.at(&["resource", "name"]).and_then(Value::as_str) == Some("cpu")
        && m.at(&["resource", member, "averageUtilization"]).is_some()
}

fn annotate(o: &mut Object, key: &str, value: &Value) -> ApiResult<()> {
    let text = serde_json::to_string(value).map_err(ApiError::internal)?;
    o.set_at(&["metadata", "annotations", key], text);
    Ok(())
}

fn take_annotation(o: &mut Object, key: &str) -> Option<Value> {
    let text = o.remove_at(&["metadata", "annotations", key])?;
    if o.annotations().is_some_and(Map::is_empty) {
        o.meta_mut().remove("annotations");
    }
    serde_json::from_str(text.as_str()?).ok()
}

fn list(o: &mut Object, path: &[&str]) -> Vec<Value> {
    match o.remove_at(path) {
        Some(Value::Array(a)) => a,
        _ => Vec::new(),
    }
}

fn to_v1(mut o: Object) -> ApiResult<Object> {
    let (mut others, mut target) = (Vec::new(), None);
    for m in list(&mut o, &["spec", "metrics"]) {
        if target.is_none() && is_cpu(&m, "target") {
            target = m.at(&["resource", "target", "averageUtilization"]).cloned();
        } else {
            others.push(m);
        }
    }
    if let Some(t) = target {
        o.set_at(&["spec", "targetCPUUtilizationPercentage"], t);
    }
    if !others.is_empty() {
        annotate(&mut o, METRICS, &others.into())?;
    }
    if let Some(b) = o.remove_at(&["spec", "behavior"]) {
        annotate(&mut o, BEHAVIOR, &b)?;
    }
    let current = list(&mut o, &["status", "currentMetrics"]);
    if let Some(v) = current
        .iter()
        .find(|m| is_cpu(m, "current"))
        .and_then(|m| m.at(&["resource", "current", "averageUtilization"]))
    {
        o.set_at(&["status", "currentCPUUtilizationPercentage"], v.clone());
    }
    if !current.is_empty() {
        annotate(&mut o, CURRENT, &current.into())?;
    }
    let conditions = list(&mut o, &["status", "conditions"]);
    if !conditions.is_empty() {
        annotate(&mut o, CONDITIONS, &conditions.into())?;
    }
    if o.obj("status").is_some() {
        for key in ["currentReplicas", "desiredReplicas"] {
            o.object_mut("status").entry_or_insert_with(key, || Value::Int(0));
        }
    }
    o.insert("apiVersion", "autoscaling/v1");
    Ok(o)
}

fn to_v2(mut o: Object) -> ApiResult<Object> {
    let mut metrics = match take_annotation(&mut o, METRICS) {
        Some(Value::Array(a)) => a,
        _ => Vec::new(),
    };
    if let Some(t) = o.remove_at(&["spec", "targetCPUUtilizationPercentage"]) {
        let mut cpu = value!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization"}}});
        cpu.set_at(&["resource", "target", "averageUtilization"], t);
        metrics.insert(0, cpu);
    }
    if !metrics.is_empty() {
        o.set_at(&["spec", "metrics"], metrics);
    }
    if let Some(b) = take_annotation(&mut o, BEHAVIOR) {
        o.set_at(&["spec", "behavior"], b);
    }
    let cpu_now = o.remove_at(&["status", "currentCPUUtilizationPercentage"]);
    match (take_annotation(&mut o, CURRENT), cpu_now) {
        (Some(current), _) => o.set_at(&["status", "currentMetrics"], current),
        (None, Some(v)) => {
            let mut m = value!({"type": "Resource", "resource": {"name": "cpu", "current": {}}});
            m.set_at(&["resource", "current", "averageUtilization"], v);
            o.set_at(&["status", "currentMetrics"], vec![m]);
        }
        (None, None) => {}
    }
    if let Some(c) = take_annotation(&mut o, CONDITIONS) {
        o.set_at(&["status", "conditions"], c);
    }
    o.insert("apiVersion", "autoscaling/v2");
    Ok(o)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_target_has_its_field_and_the_rest_an_annotation() {
        let v2 = Object::try_from(value!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}},
                {"type": "Resource", "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 50}}},
            ]},
        }))
        .unwrap();
        let v1 = to_v1(v2.clone()).unwrap();
        assert_eq!(
            v1.at(&["spec", "targetCPUUtilizationPercentage"]),
            Some(&Value::Int(80))
        );
        assert!(v1.annotation(METRICS).unwrap().contains("memory"));
        assert_eq!(to_v2(v1).unwrap(), v2);
    }
}
