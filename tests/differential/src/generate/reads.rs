//! Reading: objects, lists and watches in every form, by everybody; paths and methods that aren't there.

use super::case;
use crate::case::{Case, Request};
use crate::world::{Seed, collection};
use keelson_api::resources;
use std::collections::HashSet;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const METADATA: &str = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
const FORMS: &[&str] = &[
    TABLE,
    METADATA,
    METADATA_LIST,
    "application/yaml",
    "application/cbor",
    "application/cbor, application/json;q=0.5",
    "*/*",
    "text/html",
    "application/json;as=Table;v=v1beta1;g=meta.k8s.io",
    "application/json;as=Table;v=v2;g=meta.k8s.io",
    "application/json;as=Other;v=v1;g=meta.k8s.io",
    "text/html, application/json;q=0.5",
];
/// Queries of a list.
const LISTS: &[&str] = &[
    "",
    "limit=1",
    "limit=-1",
    "limit=x",
    "limit=500",
    "continue=x",
    "continue=x&resourceVersion=1",
    "labelSelector=a%3Db",
    "labelSelector=app+in+(web,db)",
    "labelSelector=!app",
    "labelSelector=app+notin+(web),a",
    "labelSelector=a%3D%3D%3Db",
    "labelSelector=-a",
    "labelSelector=a+in+()",
    "labelSelector=a%3E5",
    "fieldSelector=metadata.name%3Dweb",
    "fieldSelector=metadata.name!%3Dweb",
    "fieldSelector=metadata.namespace%3Ddifferential",
    "fieldSelector=metadata.uid%3Dx",
    "fieldSelector=spec.nowhere%3Dx",
    "fieldSelector=status.phase%3DRunning",
    "fieldSelector=spec.nodeName%3Dn1",
    "fieldSelector=type%3DOpaque",
    "fieldSelector=reason%3DPulled",
    "fieldSelector=a",
    "fieldSelector=a%3Db%3Dc",
    "resourceVersion=0",
    "resourceVersion=0&limit=1",
    "resourceVersion=1",
    "resourceVersion=x",
    "resourceVersion=-1",
    "resourceVersion=999999999",
    "resourceVersionMatch=Exact",
    "resourceVersion=0&resourceVersionMatch=Exact",
    "resourceVersion=1&resourceVersionMatch=NotOlderThan",
    "resourceVersion=1&resourceVersionMatch=Other",
    "resourceVersion=0&resourceVersionMatch=NotOlderThan",
    "resourceVersionMatch=NotOlderThan",
    "resourceVersion=1&resourceVersionMatch=NotOlderThan&continue=x",
    "sendInitialEvents=true",
    "allowWatchBookmarks=true",
    "timeoutSeconds=x",
    "pretty=true",
    "watch=maybe&timeoutSeconds=1",
    "notAnOption=1",
    "includeObject=None",
];
/// Ways to delete a collection: a query, and a body. All are only tried.
const DELETES: &[(&str, &str)] = &[
    ("", ""),
    ("labelSelector=app%3Dnowhere", ""),
    ("labelSelector=a+in+()", ""),
    ("fieldSelector=metadata.name%3Dweb", ""),
    ("fieldSelector=spec.nowhere%3Dx", ""),
    ("limit=1", ""),
    ("limit=-1", ""),
    ("limit=x", ""),
    ("continue=x", ""),
    ("resourceVersion=1", ""),
    ("resourceVersion=x", ""),
    ("resourceVersion=0&resourceVersionMatch=Exact", ""),
    ("propagationPolicy=Orphan", ""),
    ("propagationPolicy=Other", ""),
    ("orphanDependents=true&propagationPolicy=Background", ""),
    ("gracePeriodSeconds=-1", ""),
    ("gracePeriodSeconds=x", ""),
    ("dryRun=Some", ""),
    (
        "",
        r#"{"kind":"DeleteOptions","apiVersion":"v1","dryRun":["All"],"preconditions":{"uid":"x"}}"#,
    ),
    (
        "",
        r#"{"kind":"DeleteOptions","apiVersion":"v1","dryRun":["All"],"preconditions":{"resourceVersion":"1"}}"#,
    ),
    (
        "",
        r#"{"kind":"DeleteOptions","apiVersion":"v1","dryRun":["All"],"gracePeriodSeconds":5}"#,
    ),
    ("", r#"{"kind":"Other","apiVersion":"v1","dryRun":["All"]}"#),
    ("", "{"),
];
/// Queries of a watch; each ends after a second. How far back a watch reaches is each server's own.
const WATCHES: &[&str] = &[
    "",
    "resourceVersion=0",
    "resourceVersion=x",
    "resourceVersion=0&labelSelector=a%3Db",
    "resourceVersion=0&fieldSelector=metadata.name%3Dweb",
    "fieldSelector=spec.nowhere%3Dx",
    "sendInitialEvents=true",
    "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true",
    "sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
    "sendInitialEvents=false&resourceVersionMatch=NotOlderThan&resourceVersion=0",
    "sendInitialEvents=true&resourceVersionMatch=Exact",
    "resourceVersionMatch=NotOlderThan",
    "resourceVersionMatch=Exact&resourceVersion=1",
    "limit=1",
    "continue=x",
    "allowWatchBookmarks=true",
    "allowWatchBookmarks=x",
    "resourceVersion=-1",
    "resourceVersion=0&labelSelector=a+in+()",
    "sendInitialEvents=x",
    "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=x&allowWatchBookmarks=true",
];

/// What is read of one object.
pub fn of(seed: &Seed) -> Vec<Case> {
    let path = seed.path();
    let mut out = vec![case(seed, "get", Request::new("GET", &path))];
    let mut add = |what: &str, request: Request| out.push(case(seed, what, request));
    for form in FORMS {
        add(&format!("get as {form}"), Request::new("GET", &path).accept(form));
    }
    for query in [
        "resourceVersion=0",
        "resourceVersion=1",
        "resourceVersion=x",
        "resourceVersion=999999999",
        "pretty=true",
        "includeObject=Object",
        "notAnOption=1",
    ] {
        add(
            &format!("get with {query}"),
            Request::new("GET", format!("{path}?{query}")),
        );
    }
    for object in ["None", "Metadata", "Object", "Other"] {
        add(
            &format!("table with {object}"),
            Request::new("GET", format!("{path}?includeObject={object}")).accept(TABLE),
        );
    }
    for sub in &seed.facts.subresources {
        if !matches!(sub.name, "proxy" | "exec" | "attach" | "portforward" | "log") {
            add(
                &format!("get {}", sub.name),
                Request::new("GET", format!("{path}/{}", sub.name)),
            );
            add(
                &format!("get {} as a table", sub.name),
                Request::new("GET", format!("{path}/{}", sub.name)).accept(TABLE),
            );
        }
    }
    add("get nothing", Request::new("GET", format!("{path}-nowhere")));
    add(
        "get an unknown subresource",
        Request::new("GET", format!("{path}/nowhere")),
    );
    for (method, at) in [
        ("POST", &path),
        ("PUT", &seed.collection()),
        ("PATCH", &seed.collection()),
    ] {
        add(
            &format!("{method} where it can't be"),
            Request::new(method, at).json(&seed.object),
        );
    }
    for query in [
        "dryRun=All",
        "dryRun=Some",
        "dryRun=All&gracePeriodSeconds=0",
        "dryRun=All&gracePeriodSeconds=-1",
        "dryRun=All&gracePeriodSeconds=x",
        "dryRun=All&propagationPolicy=Foreground",
        "dryRun=All&propagationPolicy=Orphan",
        "dryRun=All&propagationPolicy=Other",
        "dryRun=All&orphanDependents=true",
        "dryRun=All&orphanDependents=true&propagationPolicy=Background",
    ] {
        add(
            &format!("delete with {query}"),
            Request::new("DELETE", format!("{path}?{query}")),
        );
    }
    for body in [
        r#"{"kind":"DeleteOptions","apiVersion":"v1","dryRun":["All"],"preconditions":{"uid":"x"}}"#,
        r#"{"kind":"DeleteOptions","apiVersion":"v1","dryRun":["All"],"preconditions":{"resourceVersion":"1"}}"#,
        r#"{"kind":"DeleteOptions","apiVersion":"v1","dryRun":["Some"]}"#,
        r#"{"kind":"DeleteOptions","apiVersion":"v1","dryRun":["All"],"propagationPolicy":"Other"}"#,
        r#"{"kind":"DeleteOptions","apiVersion":"v1","dryRun":["All"],"gracePeriodSeconds":5}"#,
        r#"{"kind":"DeleteOptions","apiVersion":"v1","dryRun":["All"],"notAField":5}"#,
        r#"{"kind":"Other","apiVersion":"v1","dryRun":["All"]}"#,
        r#"{"dryRun":["All"]}"#,
        "{",
    ] {
        add(
            &format!("delete with body {body}"),
            Request::new("DELETE", format!("{path}?dryRun=All")).json(body),
        );
    }
    for user in ["alice", "mallory"] {
        let object = &seed.object;
        add(&format!("get by {user}"), Request::new("GET", &path).by(user));
        add(
            &format!("list by {user}"),
            Request::new("GET", seed.collection()).by(user),
        );
        add(
            &format!("create by {user}"),
            Request::new("POST", format!("{}?dryRun=All", seed.collection()))
                .json(object)
                .by(user),
        );
        add(
            &format!("update by {user}"),
            Request::new("PUT", format!("{path}?dryRun=All")).json(object).by(user),
        );
        add(
            &format!("patch by {user}"),
            Request::new("PATCH", format!("{path}?dryRun=All"))
                .body("application/merge-patch+json", "{}")
                .by(user),
        );
        add(
            &format!("delete by {user}"),
            Request::new("DELETE", format!("{path}?dryRun=All")).by(user),
        );
        add(
            &format!("get status by {user}"),
            Request::new("GET", format!("{path}/status")).by(user),
        );
    }
    bodies(seed, &mut out);
    out
}

/// Bodies that are none, or another object's.
fn bodies(seed: &Seed, out: &mut Vec<Case>) {
    let post = |body: &str| Request::new("POST", format!("{}?dryRun=All", seed.collection())).json(body);
    let put = |body: &str| Request::new("PUT", format!("{}?dryRun=All", seed.path())).json(body);
    let with = |at: &str, value: &str| {
        let mut object = seed.object.clone();
        if let Some(place) = object.pointer_mut(at) {
            *place = serde_json::Value::from(value);
        }
        object.to_string()
    };
    let mut no_name = seed.object.clone();
    if let Some(meta) = no_name["metadata"].as_object_mut() {
        meta.remove("name");
    }
    let mut generated = no_name.clone();
    generated["metadata"]["generateName"] = "drawn-".into();
    let mut generated_badly = no_name.clone();
    generated_badly["metadata"]["generateName"] = "Drawn_".into();
    for (what, body) in [
        ("no body", String::new()),
        ("no JSON", "{".into()),
        ("a list", "[]".into()),
        ("null", "null".into()),
        ("nothing", "{}".into()),
        ("text", "\"x\"".into()),
        ("another kind", with("/kind", "Other")),
        ("another version", with("/apiVersion", "v2")),
        ("another group", with("/apiVersion", "example.com/v1")),
        ("another name", with("/metadata/name", "other")),
        ("another namespace", with("/metadata/namespace", "other")),
        ("no name", no_name.to_string()),
        ("a drawn name", generated.to_string()),
        ("a drawn name that can't be", generated_badly.to_string()),
        ("more after it", format!("{} {{}}", seed.object)),
    ] {
        out.push(case(seed, format!("create with {what}"), post(&body)));
        out.push(case(seed, format!("update with {what}"), put(&body)));
    }
    for content_type in [
        "text/plain",
        "application/yaml",
        "application/xml",
        "application/json; charset=utf-8",
    ] {
        let request = post(&seed.object.to_string()).body(content_type, &seed.object);
        out.push(case(seed, format!("create as {content_type}"), request));
    }
    for options in [
        "fieldManager=",
        "fieldManager=a%0Ab",
        "dryRun=Some",
        "fieldValidation=Other",
        "dryRun=All&dryRun=All",
    ] {
        let request = Request::new("POST", format!("{}?dryRun=All&{options}", seed.collection())).json(&seed.object);
        out.push(case(seed, format!("create with {options}"), request));
    }
}

/// Lists and watches of every resource, and what is no resource.
pub fn of_all(seeds: &[Seed]) -> Vec<Case> {
    let mut out = Vec::new();
    let mut done = HashSet::new();
    for seed in seeds.iter().filter(|s| s.kept()) {
        if !done.insert(seed.kind()) {
            continue;
        }
        let path = seed.collection();
        for query in LISTS {
            out.push(case(
                seed,
                format!("list with {query}"),
                Request::new("GET", format!("{path}?{query}")),
            ));
        }
        for (query, body) in DELETES {
            let request = Request::new("DELETE", format!("{path}?dryRun=All&{query}"));
            let request = if body.is_empty() { request } else { request.json(body) };
            out.push(case(seed, format!("delete all with {query} {body}"), request));
        }
        if seed.namespace.is_some() {
            out.push(case(
                seed,
                "list of all namespaces",
                Request::new("GET", collection(seed.facts, None)),
            ));
            let nowhere = collection(seed.facts, Some("nowhere"));
            out.push(case(seed, "list of no namespace", Request::new("GET", &nowhere)));
            out.push(case(
                seed,
                "create in no namespace",
                Request::new("POST", format!("{nowhere}?dryRun=All")).json(&seed.object),
            ));
        }
        for form in FORMS {
            out.push(case(
                seed,
                format!("list as {form}"),
                Request::new("GET", &path).accept(form),
            ));
        }
        for query in WATCHES {
            let query = format!("watch=true&timeoutSeconds=1&{query}");
            out.push(case(
                seed,
                format!("watch with {query}"),
                Request::new("GET", format!("{path}?{query}")),
            ));
        }
        let query = "watch=true&timeoutSeconds=1&resourceVersion=0";
        for form in [TABLE, METADATA] {
            out.push(case(
                seed,
                format!("watch as {form}"),
                Request::new("GET", format!("{path}?{query}")).accept(form),
            ));
        }
        let mut pages = case(seed, "list in pages", Request::new("GET", format!("{path}?limit=1")));
        pages
            .steps
            .push(Request::new("GET", format!("{path}?limit=1&continue={{continue}}")));
        pages.steps.push(Request::new(
            "GET",
            format!("{path}?limit=1&continue={{continue}}&resourceVersion=5"),
        ));
        out.push(pages);
    }
    out.extend(documents());
    out
}

/// What is no object.
fn documents() -> Vec<Case> {
    let mut paths: Vec<String> = [
        "/",
        "/api",
        "/apis",
        "/api/v1",
        "/api/v2",
        "/apis/nowhere",
        "/apis/apps/v9",
        "/version",
        "/version/",
        "/healthz",
        "/livez",
        "/readyz",
        "/healthz/ping",
        "/healthz/nowhere",
        "/readyz?verbose",
        "/livez?exclude=etcd",
        "/nowhere",
        "/api/nowhere",
        "/api/v1/nothing",
        "/apis/apps/v1/nothing",
        "/logs",
        "/metrics/x",
        "/openapi/v3",
        "/openapi/v2/x",
        "/.well-known/openid-configuration",
        "/openid/v1/nowhere",
        "/api/v1/namespaces/differential/nothing",
        "/api/v1/namespaces/differential/pods/x/scale",
        "/api/v1/watch/pods?timeoutSeconds=1",
        "/api/v1/watch/namespaces/differential/configmaps?timeoutSeconds=1",
    ]
    .map(String::from)
    .to_vec();
    for group in resources::groups().iter().filter(|g| !g.name.is_empty()) {
        paths.push(format!("/apis/{}", group.name));
        paths.extend(
            group
                .versions
                .iter()
                .map(|v| format!("/apis/{}/{}", group.name, v.name)),
        );
    }
    let mut out = Vec::new();
    let mut add = |path: &str, request: Request| {
        out.push(Case {
            kind: format!("document {path}"),
            what: format!("{} {} {}", request.method, request.user, request.accept),
            steps: vec![request],
        });
    };
    for path in &paths {
        for user in ["admin", "mallory"] {
            add(path, Request::new("GET", path).by(user));
        }
        for method in ["POST", "DELETE", "PUT", "HEAD", "OPTIONS"] {
            add(path, Request::new(method, path));
        }
    }
    for path in ["/api", "/apis"] {
        for form in [
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList;profile=nopeer",
            "application/yaml",
        ] {
            add(path, Request::new("GET", path).accept(form));
        }
    }
    out
}
