//! HorizontalPodAutoscaler: `v1` knows one CPU target; the rest of `v2` travels in annotations.

use super::{Converter, metrics};
use crate::internal;
use async_trait::async_trait;
use keelson_api::{ApiError, ApiResult, Map, Object, Value, builtin, value};
use keelson_machinery::canonical;

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
        (_, "autoscaling/v1") => Ok(to_v1(o)),
        (_, "autoscaling/v2") => Ok(to_v2(o)),
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

fn annotate(o: &mut Object, key: &str, text: String) {
    o.set_at(&["metadata", "annotations", key], text);
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

pub fn to_v1(mut o: Object) -> Object {
    for key in [METRICS, CURRENT, CONDITIONS, BEHAVIOR] {
        take_annotation(&mut o, key);
    }
    let all = list(&mut o, &["spec", "metrics"]);
    let (cpu, others): (Vec<Value>, Vec<Value>) = all.into_iter().partition(|m| is_cpu(m, "target"));
    if let Some(t) = cpu
        .first()
        .and_then(|m| m.at(&["resource", "target", "averageUtilization"]))
    {
        o.set_at(&["spec", "targetCPUUtilizationPercentage"], t.clone());
    }
    if !others.is_empty() {
        annotate(&mut o, METRICS, metrics::array(others.iter().map(metrics::wanted)));
    }
    if let Some(b) = o.remove_at(&["spec", "behavior"]) {
        let shown = internal::shown("autoscaling.HorizontalPodAutoscalerBehavior", Some(&b));
        annotate(&mut o, BEHAVIOR, shown);
    }
    let current = list(&mut o, &["status", "currentMetrics"]);
    if let Some(v) = current
        .iter()
        .rfind(|m| is_cpu(m, "current"))
        .and_then(|m| m.at(&["resource", "current", "averageUtilization"]))
    {
        o.set_at(&["status", "currentCPUUtilizationPercentage"], v.clone());
    }
    if !current.is_empty() {
        annotate(&mut o, CURRENT, metrics::array(current.iter().map(metrics::seen)));
    }
    let conditions = list(&mut o, &["status", "conditions"]);
    if !conditions.is_empty() {
        annotate(
            &mut o,
            CONDITIONS,
            metrics::array(conditions.iter().map(metrics::condition)),
        );
    }
    if o.obj("status").is_some() {
        for key in ["currentReplicas", "desiredReplicas"] {
            o.object_mut("status").entry_or_insert_with(key, || Value::Int(0));
        }
    }
    o.insert("apiVersion", "autoscaling/v1");
    o
}

/// What an annotation said as `v2` holds it there; `None` if it can't: anybody may write one.
fn typed(at: &[&str], value: impl Into<Value>) -> Option<Value> {
    let schema = builtin::builtin_kind_at("autoscaling/v2", "HorizontalPodAutoscaler")?;
    let mut object = Value::Object(Map::new());
    object.set_at(at, value);
    canonical::canonicalize(&mut object, &schema).ok()?;
    object.remove_at(at)
}

/// The CPU utilisation that is wanted where nothing is.
const DEFAULT_CPU: i64 = 80;

pub fn to_v2(mut o: Object) -> Object {
    if o.api_version() == "autoscaling/v2" {
        return o;
    }
    let each = |kept: Option<Value>, at: &[&str], read: fn(&Value) -> Value| match kept {
        Some(Value::Array(a)) => match typed(at, a.iter().map(read).collect::<Vec<_>>()) {
            Some(Value::Array(all)) => Some(all),
            _ => None,
        },
        Some(Value::Null) => Some(Vec::new()),
        _ => None,
    };
    let kept = take_annotation(&mut o, METRICS);
    let mut all = each(kept, &["spec", "metrics"], metrics::read_wanted).unwrap_or_default();
    let wanted = o.remove_at(&["spec", "targetCPUUtilizationPercentage"]);
    if let Some(t) = wanted.or_else(|| all.is_empty().then_some(Value::Int(DEFAULT_CPU))) {
        let mut cpu = value!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization"}}});
        cpu.set_at(&["resource", "target", "averageUtilization"], t);
        all.push(cpu);
    }
    o.set_at(&["spec", "metrics"], all);
    let kept = take_annotation(&mut o, BEHAVIOR).map(|b| metrics::read_behavior(&b));
    if let Some(b) = kept.and_then(|b| typed(&["spec", "behavior"], b))
        && b.as_object().is_some_and(|b| !b.is_empty())
    {
        o.set_at(&["spec", "behavior"], b);
    }
    let cpu_now = o.remove_at(&["status", "currentCPUUtilizationPercentage"]);
    let kept = take_annotation(&mut o, CURRENT);
    match (each(kept, &["status", "currentMetrics"], metrics::read_seen), cpu_now) {
        (Some(current), _) => o.set_at(&["status", "currentMetrics"], current),
        (None, Some(v)) => {
            let mut m = value!({"type": "Resource", "resource": {"name": "cpu", "current": {}}});
            m.set_at(&["resource", "current", "averageUtilization"], v);
            o.set_at(&["status", "currentMetrics"], vec![m]);
        }
        (None, None) => {}
    }
    let kept = take_annotation(&mut o, CONDITIONS);
    if let Some(all) = each(kept, &["status", "conditions"], Value::clone) {
        o.set_at(&["status", "conditions"], all);
    }
    o.insert("apiVersion", "autoscaling/v2");
    o
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
        let v1 = to_v1(v2.clone());
        assert_eq!(
            v1.at(&["spec", "targetCPUUtilizationPercentage"]),
            Some(&Value::Int(80))
        );
        assert_eq!(
            v1.annotation(METRICS),
            Some(r#"[{"type":"Resource","resource":{"name":"memory","targetAverageUtilization":50}}]"#)
        );
        let mut back = v2;
        back.at_mut(&["spec", "metrics"])
            .and_then(Value::as_array_mut)
            .unwrap()
            .swap(0, 1);
        assert_eq!(to_v2(v1), back);
    }

    #[test]
    fn annotations_that_hold_something_else_are_left_out() {
        for (key, text) in [
            (METRICS, r#"[{"type":"Resource","resource":{"name":5}}]"#),
            (
                METRICS,
                r#"[{"type":"Resource","resource":{"name":"memory","targetAverageUtilization":"x"}}]"#,
            ),
            (
                METRICS,
                r#"[{"type":"Pods","pods":{"metricName":"m","targetAverageValue":"x"}}]"#,
            ),
            (METRICS, "{}"),
            (CURRENT, r#"[{"type":{}}]"#),
            (CONDITIONS, r#"[{"lastTransitionTime":"yesterday"}]"#),
            (BEHAVIOR, r#"{"ScaleUp":{"StabilizationWindowSeconds":"x"}}"#),
            (BEHAVIOR, "5"),
        ] {
            let mut v1 =
                Object::try_from(value!({"apiVersion": "autoscaling/v1", "spec": {"maxReplicas": 1}})).unwrap();
            let without = to_v2(v1.clone());
            annotate(&mut v1, key, text.into());
            let mut v2 = to_v2(v1);
            v2.remove("metadata");
            assert_eq!(v2, without, "{key}: {text}");
        }
    }

    #[test]
    fn what_v1_keeps_is_as_upstream_writes_it() {
        let v2 = Object::try_from(value!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "behavior": {"scaleUp": {"selectPolicy": "Max", "policies": [
                    {"type": "Pods", "value": 4, "periodSeconds": 15}]}},
                "metrics": [{"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c",
                    "target": {"type": "AverageValue", "averageValue": "100m"}}}]},
        }))
        .unwrap();
        let v1 = to_v1(v2.clone());
        assert_eq!(
            v1.annotation(METRICS),
            Some(
                r#"[{"type":"ContainerResource","containerResource":{"name":"cpu","targetAverageValue":"100m","container":"c"}}]"#
            )
        );
        assert_eq!(
            v1.annotation(BEHAVIOR),
            Some(
                r#"{"ScaleUp":{"StabilizationWindowSeconds":null,"SelectPolicy":"Max","Policies":[{"Type":"Pods","Value":4,"PeriodSeconds":15}],"Tolerance":null},"ScaleDown":null}"#
            )
        );
        assert_eq!(to_v2(v1), v2);
        let bare = Object::try_from(value!({"apiVersion": "autoscaling/v1", "spec": {"maxReplicas": 1}})).unwrap();
        let metrics = to_v2(bare);
        assert_eq!(
            metrics.at(&["spec", "metrics"]),
            Some(&value!([{"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": 80}}}]))
        );
    }
}
