//! Definitions of custom resources as kube-apiserver stores them: in v1beta1, which nobody serves any more. What all versions
//! have in common stands there once for all of them.

use keelson_api::{Map, Object, Value};

pub const API_VERSION: &str = "apiextensions.k8s.io/v1beta1";

/// What v1beta1 has at the top, and its name in each version of v1.
const SHARED: [(&str, &str); 4] = [
    ("subresources", "subresources"),
    ("validation", "schema"),
    ("additionalPrinterColumns", "additionalPrinterColumns"),
    ("selectableFields", "selectableFields"),
];

/// The same definition in v1.
pub fn to_v1(mut object: Object) -> Object {
    object.insert("apiVersion", "apiextensions.k8s.io/v1");
    let Some(Value::Object(spec)) = object.get("spec").cloned() else {
        return object;
    };
    object.insert("spec", to_v1_spec(spec));
    object
}

fn to_v1_spec(mut spec: Map) -> Map {
    let first = spec.remove("version");
    let mut versions: Vec<Map> = match spec.remove("versions") {
        Some(Value::Array(versions)) => versions.into_iter().filter_map(map).collect(),
        _ => Vec::new(),
    };
    if let (true, Some(name)) = (versions.is_empty(), first) {
        let mut only = Map::new();
        only.insert("name", name);
        only.insert("served", true);
        only.insert("storage", true);
        versions.push(only);
    }
    for (shared, each) in SHARED {
        let Some(value) = spec.remove(shared).filter(|v| !v.is_null()) else {
            continue;
        };
        for version in &mut versions {
            version.insert(each, value.clone());
        }
    }
    for version in &mut versions {
        if let Some(Value::Array(columns)) = version.remove("additionalPrinterColumns") {
            let columns = columns.into_iter().filter_map(map).map(column);
            version.insert(
                "additionalPrinterColumns",
                columns.map(Value::Object).collect::<Vec<_>>(),
            );
        }
    }
    spec.insert("versions", versions.into_iter().map(Value::Object).collect::<Vec<_>>());
    if let Some(conversion) = spec.remove("conversion").and_then(map) {
        spec.insert("conversion", to_v1_conversion(conversion));
    }
    // Not said means yes in v1beta1, and no in v1.
    if spec.remove("preserveUnknownFields") != Some(Value::Bool(false)) {
        spec.insert("preserveUnknownFields", true);
    }
    spec
}

fn column(mut column: Map) -> Map {
    if let Some(path) = column.remove("JSONPath") {
        column.insert("jsonPath", path);
    }
    column
}

fn to_v1_conversion(mut conversion: Map) -> Map {
    let parts = [
        ("clientConfig", conversion.remove("webhookClientConfig")),
        (
            "conversionReviewVersions",
            conversion.remove("conversionReviewVersions"),
        ),
    ];
    let mut webhook = Map::new();
    for (name, part) in parts {
        if let Some(part) = part.filter(|v| !v.is_null()) {
            webhook.insert(name, part);
        }
    }
    if !webhook.is_empty() {
        conversion.insert("webhook", webhook);
    }
    conversion
}

fn map(value: Value) -> Option<Map> {
    match value {
        Value::Object(map) => Some(map),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn spec(v1beta1: Value) -> Value {
        let object = value!({"apiVersion": API_VERSION, "kind": "CustomResourceDefinition", "spec": v1beta1});
        let v1 = to_v1(Object::try_from(object).unwrap());
        assert_eq!(v1.api_version(), "apiextensions.k8s.io/v1");
        v1.get("spec").unwrap().clone()
    }

    #[test]
    fn what_is_common_goes_into_each_version() {
        let found = spec(value!({
            "group": "x.io", "version": "v1", "preserveUnknownFields": false,
            "versions": [{"name": "v1", "served": true, "storage": true}, {"name": "v2", "served": true, "storage": false}],
            "validation": {"openAPIV3Schema": {"type": "object"}},
            "subresources": {"status": {}},
            "additionalPrinterColumns": [{"name": "A", "type": "string", "JSONPath": ".spec.a"}],
            "conversion": {
                "strategy": "Webhook", "conversionReviewVersions": ["v1"], "webhookClientConfig": {"url": "https://x/"},
            },
        }));
        let version = |name: &str, storage: bool| {
            value!({
                "name": name, "served": true, "storage": storage,
                "schema": {"openAPIV3Schema": {"type": "object"}},
                "subresources": {"status": {}},
                "additionalPrinterColumns": [{"name": "A", "type": "string", "jsonPath": ".spec.a"}],
            })
        };
        let wanted = value!({
            "group": "x.io",
            "versions": [version("v1", true), version("v2", false)],
            "conversion": {
                "strategy": "Webhook",
                "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {"url": "https://x/"}},
            },
        });
        assert_eq!(found, wanted);
    }

    #[test]
    fn what_differs_stays_where_it_is() {
        let found = spec(value!({
            "version": "v1",
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}},
                    "additionalPrinterColumns": [{"name": "A", "type": "string", "JSONPath": ".spec.a"}]},
                {"name": "v2", "served": false, "storage": false},
            ],
            "conversion": {"strategy": "None"},
        }));
        let wanted = value!({
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}},
                    "additionalPrinterColumns": [{"name": "A", "type": "string", "jsonPath": ".spec.a"}]},
                {"name": "v2", "served": false, "storage": false},
            ],
            "conversion": {"strategy": "None"},
            "preserveUnknownFields": true,
        });
        assert_eq!(found, wanted);
        let old = spec(value!({"version": "v1beta1", "validation": {"openAPIV3Schema": {"type": "object"}}}));
        let only = old.at(&["versions"]).and_then(Value::as_array).unwrap()[0].clone();
        assert_eq!(
            only,
            value!({"name": "v1beta1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}})
        );
    }
}
