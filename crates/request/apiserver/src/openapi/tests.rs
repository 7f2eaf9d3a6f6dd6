use super::*;
use keelson_registry::resources;

fn inner() -> Arc<Inner> {
    OpenApi::new(Arc::new(ResourceTable::new(resources::rows()))).inner
}

fn parse(gzip: &[u8]) -> Value {
    serde_json::from_slice(&inflate(gzip)).unwrap()
}

#[test]
fn version_3_has_kinds_extensions_and_descriptions() {
    let doc = parse(&inner().v3("apps", "v1").gzip);
    let spec = doc
        .at(&["components", "schemas", "io.k8s.api.apps.v1.DeploymentSpec"])
        .unwrap();
    assert_eq!(spec.at(&["required"]).unwrap().as_array().unwrap().len(), 2);
    let strategy = spec.at(&["properties", "strategy"]).unwrap();
    assert_eq!(
        strategy.get("x-kubernetes-patch-strategy").and_then(Value::as_str),
        Some("retainKeys")
    );
    assert!(strategy.get("description").is_some() && strategy.get("allOf").is_some());
    let kind = doc.at(&[
        "components",
        "schemas",
        "io.k8s.api.apps.v1.Deployment",
        "x-kubernetes-group-version-kind",
    ]);
    assert_eq!(
        kind.unwrap(),
        &value!([{"group": "apps", "kind": "Deployment", "version": "v1"}])
    );
    let patch = doc
        .at(&[
            "paths",
            "/apis/apps/v1/namespaces/{namespace}/deployments/{name}",
            "patch",
        ])
        .unwrap();
    let names: Vec<&str> = patch
        .get("parameters")
        .unwrap()
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|p| p.get("name")?.as_str())
        .collect();
    assert!(names.contains(&"fieldValidation") && names.contains(&"dryRun"));
    assert!(
        doc.at(&[
            "components",
            "schemas",
            "io.k8s.apimachinery.pkg.api.resource.Quantity",
            "oneOf"
        ])
        .is_some()
    );
}

#[test]
fn every_reference_of_version_2_leads_somewhere() {
    let doc = parse(&inner().v2().gzip);
    let definitions = doc.get("definitions").unwrap().as_object().unwrap();
    let mut open = vec![&doc];
    let mut count = 0;
    while let Some(v) = open.pop() {
        match v {
            Value::Object(m) => {
                if let Some(name) = m.str("$ref").and_then(|r| r.strip_prefix("#/definitions/")) {
                    assert!(definitions.contains_key(name), "{name}");
                    count += 1;
                }
                open.extend(m.values());
            }
            Value::Array(a) => open.extend(a),
            _ => {}
        }
    }
    assert!(
        count > 1000 && definitions.len() > 500,
        "{count} references, {} definitions",
        definitions.len()
    );
}

#[test]
fn custom_kinds_come_and_go_with_their_hashes() {
    let openapi = OpenApi::new(Arc::new(ResourceTable::new(resources::rows())));
    let before = openapi.inner.v2().hash;
    let kind = CustomKind {
        group: "example.com".into(),
        version: "v1".into(),
        kind: "Widget".into(),
        list_kind: "WidgetList".into(),
        plural: "widgets".into(),
        namespaced: true,
        schema: Some(value!({"type": "object", "properties": {"spec": {"type": "object"}}})),
        verbs: vec!["get".into(), "list".into(), "patch".into()],
        ..CustomKind::default()
    };
    openapi.publish("widgets.example.com", vec![kind]);
    let with = openapi.inner.v2();
    assert_ne!(before, with.hash);
    let doc = parse(&with.gzip);
    assert!(
        doc.at(&["definitions", "com.example.v1.Widget", "properties", "spec"])
            .is_some()
    );
    assert!(
        doc.at(&["paths", "/apis/example.com/v1/namespaces/{namespace}/widgets/{name}"])
            .is_some()
    );
    assert!(
        openapi
            .inner
            .group_versions()
            .contains(&("example.com".into(), "v1".into()))
    );
    openapi.publish("widgets.example.com", vec![]);
    assert_eq!(openapi.inner.v2().hash, before);
}

#[test]
fn the_protobuf_form_holds_paths_and_definitions() {
    let bytes = proto_v2::encode(&value!({
        "swagger": "2.0", "info": {"title": "t", "version": "v"},
        "definitions": {"a.B": {"type": "object", "x-kubernetes-group-version-kind": [{"kind": "B"}]}},
    }));
    // swagger = 1, info = 2, paths = 8, definitions = 9, security definitions = 13
    let expected: &[u8] = b"\x0a\x032.0\x12\x06\x0a\x01t\x12\x01v\x42\x00\x4a";
    assert_eq!(&bytes[..expected.len()], expected);
    let extension = br#"[{"kind":"B"}]"#;
    assert!(bytes.windows(extension.len()).any(|w| w == extension));
}
