//! Objects that live: made, made again, changed by several, removed in every way.

use crate::case::{Case, Request};
use crate::world::{Seed, collection};
use serde_json::{Value, json};

/// Where they live, and where those that bound the others do.
const NAMESPACE: &str = "live";
const BOUNDING: &str = "bounds";
/// Kinds whose names say what they are of, so that there can't be another one.
const NAMED: &[&str] = &[
    "IPAddress",
    "APIService",
    "CustomResourceDefinition",
    "ClusterTrustBundle",
    "ServiceCIDR",
];

const APPLY: &str = "application/apply-patch+yaml";
const MERGE: &str = "application/merge-patch+json";

pub fn of(seed: &Seed) -> Vec<Case> {
    if NAMED.contains(&seed.facts.kind) {
        return Vec::new();
    }
    let named = |life: &str| Life::new(seed, life);
    vec![
        named("twice").does("is made twice", |l| {
            vec![l.create(), l.create(), l.get(), l.delete(""), l.get(), l.delete("")]
        }),
        named("revisions").does("is updated by old and missing revisions", |l| {
            let put = |revision: Option<&str>| {
                let mut object = l.object.clone();
                object["metadata"]["labels"] = json!({"changed": "yes"});
                if let Some(revision) = revision {
                    object["metadata"]["resourceVersion"] = revision.into();
                }
                Request::new("PUT", &l.path).json(object)
            };
            vec![
                l.create(),
                put(Some("1")),
                put(Some("x")),
                put(Some("0")),
                put(None),
                put(Some("{rv}")),
                l.get(),
                l.end(),
            ]
        }),
        named("managers").does("is applied by three", |l| {
            let apply = |manager: &str, labels: Value, options: &str| {
                let mut object = l.identity();
                object["metadata"]["labels"] = labels;
                Request::new("PATCH", format!("{}?fieldManager={manager}{options}", l.path)).body(APPLY, object)
            };
            vec![
                Request::new("PATCH", format!("{}?fieldManager=a", l.path)).body(APPLY, &l.object),
                apply("b", json!({"x": "1", "y": "1"}), ""),
                apply("c", json!({"x": "2"}), ""),
                apply("c", json!({"x": "2"}), "&force=true"),
                apply("b", json!({"x": "1"}), ""),
                apply("b", json!({"y": "1"}), ""),
                apply("b", json!({}), ""),
                apply("", json!({}), ""),
                Request::new("PATCH", format!("{}?fieldManager=d", l.path))
                    .body(MERGE, r#"{"metadata":{"labels":{"x":"9"}}}"#),
                apply("c", json!({"x": "2"}), ""),
                Request::new("PATCH", &l.path).body(MERGE, r#"{"metadata":{"managedFields":[{}]}}"#),
                l.get(),
                l.end(),
            ]
        }),
        named("finalized").does("is kept by a finalizer", |l| {
            let mut object = l.object.clone();
            object["metadata"]["finalizers"] = json!(["example.com/wait"]);
            let patch = |body: &str| Request::new("PATCH", &l.path).body(MERGE, body);
            vec![
                Request::new("POST", &l.collection).json(object),
                l.delete("?gracePeriodSeconds=0"),
                l.get(),
                l.delete("?gracePeriodSeconds=0"),
                l.create(),
                patch(r#"{"metadata":{"finalizers":["example.com/wait","example.com/more"]}}"#),
                patch(r#"{"metadata":{"labels":{"a":"b"}}}"#),
                patch(r#"{"metadata":{"deletionTimestamp":null}}"#),
                patch(r#"{"metadata":{"finalizers":null}}"#),
                l.get(),
            ]
        }),
        named("policies").does("is deleted by conditions", |l| {
            let with = |body: &str| Request::new("DELETE", &l.path).json(body);
            vec![
                l.create(),
                with(r#"{"preconditions":{"uid":"0a0a0a0a-1111-2222-3333-444444444444"}}"#),
                with(r#"{"preconditions":{"resourceVersion":"1"}}"#),
                l.get(),
                with(r#"{"preconditions":{"uid":"{uid}"},"propagationPolicy":"Orphan","gracePeriodSeconds":0}"#),
                l.get(),
                Request::new("PATCH", &l.path).body(MERGE, r#"{"metadata":{"finalizers":null}}"#),
                l.get(),
            ]
        }),
        named("foreground").does("is deleted in the foreground", |l| {
            vec![
                l.create(),
                l.delete("?propagationPolicy=Foreground&gracePeriodSeconds=0"),
                l.get(),
                Request::new("PATCH", &l.path).body(MERGE, r#"{"metadata":{"finalizers":null}}"#),
                l.get(),
            ]
        }),
        named("graceful").does("is deleted with grace", |l| {
            vec![
                l.create(),
                l.delete(""),
                l.get(),
                l.delete("?gracePeriodSeconds=1"),
                l.delete("?gracePeriodSeconds=0"),
                l.get(),
            ]
        }),
        named("collected").does("is deleted with its collection", |l| {
            let all = |options: &str| Request::new("DELETE", format!("{}?{}{options}", l.collection, l.only()));
            vec![
                l.create(),
                all("&dryRun=All"),
                all("&limit=1&labelSelector=a%3Dnowhere"),
                l.get(),
                all("&propagationPolicy=Orphan&gracePeriodSeconds=0"),
                l.get(),
                Request::new("PATCH", &l.path).body(MERGE, r#"{"metadata":{"finalizers":null}}"#),
                l.create(),
                all("&gracePeriodSeconds=0")
                    .json(r#"{"preconditions":{"uid":"0a0a0a0a-1111-2222-3333-444444444444"}}"#),
                all("&gracePeriodSeconds=0"),
                l.get(),
            ]
        }),
        named("dry").does("is only tried", |l| {
            vec![
                Request::new("POST", format!("{}?dryRun=All", l.collection)).json(&l.object),
                l.get(),
                l.create(),
                l.delete("?dryRun=All"),
                Request::new("PATCH", format!("{}?dryRun=All", l.path))
                    .body(MERGE, r#"{"metadata":{"labels":{"a":"b"}}}"#),
                l.get(),
                l.end(),
            ]
        }),
        named("put").does("is made by an update", |l| {
            vec![Request::new("PUT", &l.path).json(&l.object), l.get(), l.end()]
        }),
        named("sub").does("is changed by its subresources", |l| l.subresources(seed)),
    ]
}

struct Life {
    kind: String,
    object: Value,
    collection: String,
    path: String,
}

impl Life {
    fn new(seed: &Seed, life: &str) -> Life {
        let mut object = seed.object.clone();
        let name = format!("{}-{life}", seed.name.replace([':', '_'], "-"));
        object["metadata"]["name"] = json!(name);
        let namespace = seed.namespace.as_ref().map(|_| match seed.facts.kind {
            "LimitRange" | "ResourceQuota" => BOUNDING,
            _ => NAMESPACE,
        });
        if let Some(namespace) = namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        // What only one can have is drawn.
        if seed.facts.kind == "Service"
            && let Some(spec) = object["spec"].as_object_mut()
        {
            if spec.get("clusterIP").is_some_and(|ip| ip != "None") {
                spec.remove("clusterIP");
                spec.remove("clusterIPs");
            }
            spec.remove("healthCheckNodePort");
            for port in spec
                .get_mut("ports")
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                port.as_object_mut().map(|p| p.remove("nodePort"));
            }
        }
        let collection = collection(seed.facts, namespace);
        Life {
            kind: seed.kind(),
            path: format!("{collection}/{name}"),
            object,
            collection,
        }
    }

    fn does(self, what: &str, steps: impl FnOnce(&Life) -> Vec<Request>) -> Case {
        let steps = steps(&self);
        Case {
            kind: self.kind,
            what: format!("one that {what}"),
            steps,
        }
    }

    /// A collection's query that leaves this one alone.
    fn only(&self) -> String {
        let name = self.object["metadata"]["name"].as_str().unwrap_or_default();
        format!("fieldSelector=metadata.name%3D{name}")
    }

    fn identity(&self) -> Value {
        json!({"apiVersion": self.object["apiVersion"], "kind": self.object["kind"], "metadata": {"name": self.object["metadata"]["name"]}})
    }
    fn create(&self) -> Request {
        Request::new("POST", &self.collection).json(&self.object)
    }
    fn get(&self) -> Request {
        Request::new("GET", &self.path)
    }
    fn delete(&self, options: &str) -> Request {
        Request::new("DELETE", format!("{}{options}", self.path))
    }
    fn end(&self) -> Request {
        self.delete("?gracePeriodSeconds=0")
    }

    fn subresources(&self, seed: &Seed) -> Vec<Request> {
        let mut steps = vec![self.create()];
        let has = |name: &str| seed.facts.subresource(name).is_some();
        let (path, sub) = (&self.path, |name: &str| format!("{}/{name}", self.path));
        if let (true, Some(status)) = (seed.has_status(), &seed.status) {
            let mut object = self.object.clone();
            object["status"] = status.clone();
            object["metadata"]["labels"] = json!({"by": "status"});
            object["metadata"]["resourceVersion"] = json!("{rv}");
            steps.push(Request::new("PUT", sub("status")).json(&object));
            steps.push(Request::new("GET", path));
            steps.push(
                Request::new("PATCH", sub("status"))
                    .body(MERGE, r#"{"metadata":{"annotations":{"a":"b"}},"status":null}"#),
            );
            steps.push(Request::new("PUT", path).json(&object));
        }
        if has("scale") {
            let scale = |n: Value| json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": self.object["metadata"]["name"], "namespace": NAMESPACE}, "spec": {"replicas": n}});
            for n in [json!(7), json!(-1), json!("x"), json!(null)] {
                steps.push(Request::new("PUT", sub("scale")).json(scale(n)));
            }
            steps.push(Request::new("PATCH", sub("scale")).body(MERGE, r#"{"spec":{"replicas":2}}"#));
            steps.push(
                Request::new("PATCH", sub("scale"))
                    .body(MERGE, r#"{"spec":{"replicas":2},"metadata":{"name":"other"}}"#),
            );
            steps.push(Request::new("PATCH", format!("{}?fieldManager=s", sub("scale"))).body(APPLY, scale(json!(3))));
        }
        if has("eviction") {
            let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": self.object["metadata"]["name"]}});
            let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": self.object["metadata"]["name"]}, "target": {"kind": "Node", "name": "n1"}});
            let ephemeral = r#"{"spec":{"ephemeralContainers":[{"name":"debug","image":"busybox"}]}}"#;
            let resize = r#"{"spec":{"containers":[{"name":"c","resources":{"requests":{"cpu":"100m"}}}]}}"#;
            let strategic = "application/strategic-merge-patch+json";
            steps.push(Request::new("PATCH", sub("ephemeralcontainers")).body(strategic, ephemeral));
            steps.push(Request::new("PATCH", sub("resize")).body(strategic, resize));
            steps.push(Request::new("POST", sub("binding")).json(&binding));
            steps.push(Request::new("POST", sub("binding")).json(&binding));
            steps.push(Request::new("POST", format!("{}?dryRun=All", sub("eviction"))).json(&eviction));
        }
        if has("token") {
            for spec in [
                json!({}),
                json!({"expirationSeconds": 5}),
                json!({"expirationSeconds": 3600, "audiences": ["x"]}),
                json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "nowhere"}}),
                json!({"boundObjectRef": {"kind": "Other", "apiVersion": "v1", "name": "x"}}),
            ] {
                steps.push(
                    Request::new("POST", sub("token"))
                        .json(json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec})),
                );
            }
        }
        if has("approval") {
            let mut object = self.object.clone();
            object["metadata"]["resourceVersion"] = json!("{rv}");
            for (kind, status) in [
                ("Approved", "True"),
                ("Denied", "True"),
                ("Approved", "False"),
                ("Other", "Unknown"),
            ] {
                object["status"] =
                    json!({"conditions": [{"type": kind, "status": status, "reason": "a", "message": "b"}]});
                steps.push(Request::new("PUT", sub("approval")).json(&object));
            }
        }
        if has("finalize") {
            let mut object = self.object.clone();
            object["spec"] = json!({"finalizers": ["example.com/a"]});
            steps.push(Request::new("PUT", sub("finalize")).json(&object));
            object["spec"] = json!({"finalizers": []});
            steps.push(Request::new("PUT", sub("finalize")).json(&object));
        }
        steps.push(self.end());
        steps
    }
}
