//! The OpenAPI document of the group: what `kubectl explain` says of it.

use serde_json::{Value, json};

pub const PATH: &str = "/openapi/v3/apis/metrics.k8s.io/v1beta1";

const NAME: &str = "io.k8s.metrics.pkg.apis.metrics.v1beta1";

fn leads_to(kind: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{NAME}.{kind}")})
}

/// A kind: its metadata, when and over what time it was measured, and what is its own.
fn kind(name: &str, told: &str, own: (&str, Value)) -> Value {
    json!({
        "description": told,
        "type": "object",
        "required": ["timestamp", "window", own.0],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "timestamp": {"description": "The end of the time in which it was measured.", "type": "string", "format": "date-time"},
            "window": {"description": "The length of that time.", "type": "string"},
            own.0: own.1,
        },
        "x-kubernetes-group-version-kind": [{"group": "metrics.k8s.io", "version": "v1beta1", "kind": name}],
    })
}

fn list(of: &str) -> Value {
    json!({
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "items": {"type": "array", "items": leads_to(of)},
        },
        "x-kubernetes-group-version-kind": [{"group": "metrics.k8s.io", "version": "v1beta1", "kind": format!("{of}List")}],
    })
}

pub fn document() -> Value {
    let usage = json!({"description": "Cores in use, and bytes of memory.", "type": "object",
        "additionalProperties": {"type": "string"}});
    let containers = json!({"type": "array", "items": leads_to("ContainerMetrics")});
    let schema = |kind: &str| format!("{NAME}.{kind}");
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes metrics", "version": "v1beta1"},
        "paths": {},
        "components": {"schemas": {
            schema("ContainerMetrics"): {"type": "object", "required": ["name", "usage"],
                "properties": {"name": {"type": "string"}, "usage": usage.clone()}},
            schema("NodeMetrics"): kind("NodeMetrics", "What a node uses.", ("usage", usage)),
            schema("NodeMetricsList"): list("NodeMetrics"),
            schema("PodMetrics"): kind("PodMetrics", "What a pod's containers use.", ("containers", containers)),
            schema("PodMetricsList"): list("PodMetrics"),
        }},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_schema_leads_to_is_there() {
        let document = document();
        let text = document.to_string();
        let schemas = &document["components"]["schemas"];
        let led: Vec<&str> = text.split("#/components/schemas/").skip(1).collect();
        assert_eq!(led.len(), 3);
        for to in led {
            assert!(schemas[to.split('"').next().unwrap()].is_object(), "{to}");
        }
        let node = &schemas[format!("{NAME}.NodeMetrics")];
        assert_eq!(node["x-kubernetes-group-version-kind"][0]["kind"], "NodeMetrics");
        assert_eq!(node["required"], json!(["timestamp", "window", "usage"]));
    }
}
