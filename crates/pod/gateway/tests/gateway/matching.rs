//! Which rule is for which request.

use http::HeaderMap;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use keelson_gateway::matching::{Head, find, holds, host};
use keelson_gateway::plan::{World, plan};
use keelson_gateway::table::{PathRule, Pattern, Port, Text, Upstream, When};
use serde_json::{Value, json};
use std::sync::Arc;

fn is_for(when: &When, path: &str) -> bool {
    let headers = HeaderMap::new();
    holds(
        when,
        &Head {
            method: "GET",
            host: "",
            path,
            query: "",
            headers: &headers,
        },
    )
}

/// The examples of the documentation of Ingress.
#[test]
fn paths_match_as_the_api_says() {
    for (kind, path, request, expected) in [
        ("Prefix", "/", "/any/path", true),
        ("Exact", "/foo", "/foo", true),
        ("Exact", "/foo", "/bar", false),
        ("Exact", "/foo", "/foo/", false),
        ("Exact", "/foo/", "/foo", false),
        ("Prefix", "/foo", "/foo", true),
        ("Prefix", "/foo", "/foo/", true),
        ("Prefix", "/foo/", "/foo", true),
        ("Prefix", "/foo/", "/foo/", true),
        ("Prefix", "/aaa/bb", "/aaa/bbb", false),
        ("Prefix", "/aaa/bbb", "/aaa/bbb", true),
        ("Prefix", "/aaa/bbb/", "/aaa/bbb", true),
        ("Prefix", "/aaa/bbb", "/aaa/bbb/", true),
        ("Prefix", "/aaa/bbb", "/aaa/bbb/ccc", true),
        ("Prefix", "/aaa/bbb", "/aaa/bbbxyz", false),
        ("Prefix", "/aaa", "/ccc", false),
    ] {
        let path_rule = match kind {
            "Exact" => PathRule::Exact(path.into()),
            _ => PathRule::prefix(path),
        };
        let when = When {
            path: path_rule,
            ..When::default()
        };
        assert_eq!(is_for(&when, request), expected, "{kind} {path} {request}");
    }
}

#[test]
fn a_pattern_is_one_by_itself_and_for_the_whole_text() {
    for text in ["a)|(b", "(", "a{9999}{9999}"] {
        assert!(Pattern::new(text).is_err(), "{text}");
    }
    let pattern = Pattern::new("/a|/b").unwrap();
    let found = ["/a", "/b", "/ab", "/a/", "x/b"].map(|path| pattern.0.is_match(path));
    assert_eq!(found, [true, true, false, false, false]);
}

#[test]
fn hosts_are_names_without_port() {
    for (authority, expected) in [
        ("Example.ORG", "example.org"),
        ("example.org:8080", "example.org"),
        ("example.org.", "example.org"),
        ("[2001:db8::1]:80", "2001:db8::1"),
        ("192.0.2.1:80", "192.0.2.1"),
        ("", ""),
    ] {
        assert_eq!(host(authority), expected);
    }
}

/// Which service answers, over Ingresses: `host path` → the service's name, or nothing.
fn table(ingresses: &[Value]) -> Port {
    let class = json!({"metadata": {"name": "keelson"}, "spec": {"controller": "keelson.dev/ingress"}});
    let read = |i: &Value| Arc::new(serde_json::from_value::<Ingress>(i.clone()).unwrap());
    let mut world = World {
        ingresses: ingresses.iter().map(read).collect(),
        ingress_classes: vec![Arc::new(serde_json::from_value::<IngressClass>(class).unwrap())],
        ..World::default()
    };
    for name in ["a", "b", "c", "d", "e"] {
        let service = json!({"metadata": {"name": name, "namespace": "n"}, "spec": {"ports": [{"port": 80}]}});
        let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(service).unwrap();
        world
            .services
            .insert(keelson_client::ObjectKey::new("n", name), Arc::new(service));
    }
    let front = keelson_gateway::plan::Front {
        ports: [(80u16.into(), 7680)].into(),
        ..Default::default()
    };
    world.fronts.insert(keelson_gateway::plan::Owner::Ingress, front);
    plan(&world).table.ports[&7680].as_ref().clone()
}

fn ingress(name: &str, created: &str, rules: Value, default: Option<&str>) -> Value {
    let backend = |s: &str| json!({"service": {"name": s, "port": {"number": 80}}});
    let rule = |rule: &Value| {
        let [host, kind, path, service] = [0, 1, 2, 3].map(|i| rule[i].as_str().unwrap());
        let mut all = json!({"http": {"paths": [{"path": path, "pathType": kind, "backend": backend(service)}]}});
        if !host.is_empty() {
            all["host"] = host.into();
        }
        all
    };
    let mut all = json!({"metadata": {"name": name, "namespace": "n", "creationTimestamp": created},
        "spec": {"ingressClassName": "keelson", "rules": rules.as_array().unwrap().iter().map(rule).collect::<Vec<_>>()}});
    if let Some(default) = default {
        all["spec"]["defaultBackend"] = backend(default);
    }
    all
}

fn ask(port: &Port, host: &str, path: &str) -> String {
    let headers = HeaderMap::new();
    let head = Head {
        method: "GET",
        host,
        path,
        query: "",
        headers: &headers,
    };
    let found = find(port, &head).map(|rule| match &*rule.then.backends[0].to {
        Upstream::Endpoints { service, .. } => service.name.clone(),
        other => format!("{other:?}"),
    });
    found.unwrap_or("-".into())
}

const OLD: &str = "2026-01-01T00:00:00Z";
const NEW: &str = "2026-02-01T00:00:00Z";

#[test]
fn the_longest_path_of_the_closest_host_answers_and_defaults_come_last() {
    let port = table(&[
        ingress(
            "one",
            OLD,
            json!([
                ["x.org", "Prefix", "/", "a"],
                ["x.org", "Prefix", "/foo", "b"],
                ["x.org", "Exact", "/foo", "c"]
            ]),
            None,
        ),
        ingress(
            "two",
            NEW,
            json!([["*.x.org", "Prefix", "/", "d"], ["x.org", "Prefix", "/foo", "e"]]),
            Some("e"),
        ),
    ]);
    for (host, path, expected) in [
        ("x.org", "/", "a"),
        ("x.org", "/bar", "a"),
        ("x.org", "/foo", "c"),
        ("x.org", "/foo/", "b"),
        ("y.x.org", "/foo", "d"),
        // A wildcard is one label of an Ingress.
        ("z.y.x.org", "/foo", "e"),
        ("other", "/", "e"),
        ("", "/", "e"),
    ] {
        assert_eq!(ask(&port, host, path), expected, "{host}{path}");
    }
    let port = table(&[ingress("one", OLD, json!([["x.org", "Prefix", "/foo", "a"]]), None)]);
    assert_eq!(ask(&port, "x.org", "/"), "-");
    assert_eq!(ask(&port, "y.org", "/foo"), "-");
}

#[test]
fn the_older_object_has_a_path_that_two_want() {
    let rules = |service: &str| json!([["x.org", "Prefix", "/", service]]);
    let port = table(&[ingress("a", NEW, rules("a"), None), ingress("b", OLD, rules("b"), None)]);
    assert_eq!(ask(&port, "x.org", "/"), "b");
}

#[test]
fn what_is_of_another_class_or_none_is_left_alone() {
    let mut other = ingress("one", OLD, json!([["x.org", "Prefix", "/", "a"]]), None);
    other["spec"]["ingressClassName"] = "nginx".into();
    let mut none = ingress("two", OLD, json!([["x.org", "Prefix", "/", "b"]]), None);
    none["spec"]["ingressClassName"] = Value::Null;
    let mut annotated = none.clone();
    annotated["metadata"]["annotations"] = json!({"kubernetes.io/ingress.class": "keelson"});
    annotated["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"] = "c".into();
    assert_eq!(ask(&table(&[other, none, annotated]), "x.org", "/"), "c");
}

#[test]
fn headers_and_queries_match_whole_values() {
    let pattern = |t: &str| Text::Pattern(Pattern::new(t).unwrap());
    let when = When {
        method: Some("GET".into()),
        headers: vec![
            ("x".parse().unwrap(), Text::Exact("1".into())),
            ("y".parse().unwrap(), pattern("a+")),
        ],
        query: vec![("q".into(), Text::Exact("a b".into()))],
        ..When::default()
    };
    for (method, x, y, query, expected) in [
        ("GET", "1", "aa", "q=a%20b", true),
        ("GET", "1", "aa", "r=1&q=a+b&q=c", true),
        ("GET", "1", "aa", "q=c&q=a+b", false),
        ("POST", "1", "aa", "q=a+b", false),
        ("GET", "12", "aa", "q=a+b", false),
        ("GET", "1", "aab", "q=a+b", false),
        ("GET", "1", "aa", "", false),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("x", x.parse().unwrap());
        headers.insert("y", y.parse().unwrap());
        let head = Head {
            method,
            host: "",
            path: "/",
            query,
            headers: &headers,
        };
        assert_eq!(holds(&when, &head), expected, "{method} {x} {y} {query}");
    }
    assert!(Pattern::new("(").is_err());
    assert!(
        Pattern::new("(a{1000}){1000}").is_err(),
        "how large one gets is bounded"
    );
}
