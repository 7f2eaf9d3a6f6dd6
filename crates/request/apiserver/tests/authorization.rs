//! Who decides by configuration: a webhook on this machine, asked over TLS, among nodes' rules and RBAC.

#![recursion_limit = "256"]
#![allow(clippy::unwrap_used)]

mod harness;

use harness::outside::{Outside, json};
use harness::{Answer, Api};
use keelson_api::{Value, value};
use keelson_apiserver::authz;
use keelson_apiserver::request::UserInfo;
use keelson_pki::{Authority, Kubeconfig};
use keelson_store::Memory;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const PODS: &str = "/api/v1/namespaces/default/pods";

/// A webhook that decides by the user's name, and what it was asked.
async fn hook(ca: &Authority, version: &'static str) -> (Outside, Arc<parking_lot::Mutex<Vec<Value>>>) {
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let asked = seen.clone();
    let hook = Outside::start(ca, 0, move |path, _, body| {
        assert_eq!(path, "/authorize");
        let review: Value = serde_json::from_slice(body).unwrap();
        let api_version = format!("authorization.k8s.io/{version}");
        assert_eq!(review.get("apiVersion"), Some(&api_version.as_str().into()));
        let spec = review.get("spec").cloned().unwrap();
        let status = match spec.get("user").and_then(Value::as_str).unwrap_or_default() {
            "allowed" => value!({"allowed": true, "reason": "it may"}),
            "denied" => value!({"allowed": false, "denied": true, "reason": "it may not"}),
            "both" => value!({"allowed": true, "denied": true}),
            "broken" => return (503, Vec::new(), b"down".to_vec()),
            _ => value!({"allowed": false, "reason": "don't know"}),
        };
        asked.lock().push(spec);
        json(value!({"apiVersion": api_version, "kind": "SubjectAccessReview", "status": status}))
    })
    .await;
    (hook, seen)
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("keelson-authorization-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
    fn kubeconfig(&self, ca: &Authority, port: u16) -> PathBuf {
        let server = format!("https://127.0.0.1:{port}/authorize");
        self.write(
            "hook.kubeconfig",
            &Kubeconfig::with_token(&server, ca.cert_pem(), "hook", "secret").to_yaml(),
        )
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn configuration(hook: &std::path::Path, policy: &str, conditions: &str) -> String {
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n\
         - type: Webhook\n  name: first\n  webhook:\n    timeout: 3s\n    subjectAccessReviewVersion: v1\n\
         \x20   matchConditionSubjectAccessReviewVersion: v1\n    failurePolicy: {policy}\n    unauthorizedTTL: 10s\n\
         \x20   connectionInfo: {{type: KubeConfigFile, kubeConfigFile: {}}}\n    matchConditions: [{conditions}]\n\
         - {{type: Node, name: node}}\n- {{type: RBAC, name: rbac}}\n",
        hook.display()
    )
}

async fn serving(options: authz::Options) -> Api {
    let settings = options.resolve().unwrap();
    let api = Api::starting_with(Memory::new(), |config| config.authorization = settings);
    api.server.ready().await;
    api
}

impl Api {
    async fn get_as(&self, user: &str, path: &str) -> Answer {
        use tower::ServiceExt;
        let service = self.server.service(UserInfo::new(user, &["system:authenticated"]));
        let request = http::Request::get(path).body(keelson_apiserver::Body::empty()).unwrap();
        let (head, body) = service.oneshot(request).await.unwrap().into_parts();
        Answer {
            code: head.status.as_u16(),
            headers: head.headers,
            bytes: body.collect(1 << 20).await.unwrap(),
        }
    }
    /// What is said of a user who wants to list pods.
    async fn review(&self, user: &str, resource: Value) -> Value {
        let review = value!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {"user": user, "resourceAttributes": resource},
        });
        let answer = self
            .post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
            .await;
        answer.expect(201).json().get("status").cloned().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_decides_where_its_conditions_hold_and_is_remembered() {
    let (ca, dir) = (Authority::generate("ca").unwrap(), Scratch::new("decides"));
    let (hook, seen) = hook(&ca, "v1").await;
    let conditions =
        "{expression: \"request.user != 'skipped'\"}, {expression: \"!has(request.nonResourceAttributes)\"}";
    let kubeconfig = dir.kubeconfig(&ca, hook.port);
    let file = dir.write("authz.yaml", &configuration(&kubeconfig, "Deny", conditions));
    let api = serving(authz::Options {
        config: Some(file.clone()),
        ..authz::Options::default()
    })
    .await;
    let before = hook.count();
    api.get(PODS).await.expect(200);
    assert_eq!(hook.count(), before, "system:masters needs nobody's word");
    for _ in 0..3 {
        api.get_as(
            "allowed",
            &format!("{PODS}?labelSelector=app%3Dx&fieldSelector=spec.nodeName%3Dn1"),
        )
        .await
        .expect(200);
        let denied = api.get_as("denied", PODS).await.expect(403);
        assert!(
            denied
                .str(&["message"])
                .ends_with("in the namespace \"default\": it may not")
        );
        let unknown = api.get_as("unknown", PODS).await.expect(403);
        assert!(
            unknown.str(&["message"]).ends_with(": first: don't know"),
            "{}",
            unknown.str(&["message"])
        );
    }
    assert_eq!(hook.count() - before, 3, "answers are remembered");
    let requirements = seen.lock()[0]
        .at(&["resourceAttributes", "labelSelector", "requirements"])
        .cloned();
    let wanted = value!([{"key": "app", "operator": "In", "values": ["x"]}]);
    assert_eq!(requirements, Some(wanted));
    let before = hook.count();
    let skipped = api.get_as("skipped", PODS).await.expect(403);
    assert!(skipped.str(&["message"]).ends_with("in the namespace \"default\""));
    api.get_as("denied", "/version").await.expect(200);
    assert_eq!(hook.count(), before, "who isn't meant isn't asked about");

    // It couldn't be asked: the policy decides, and nothing of it is remembered.
    for _ in 0..2 {
        let broken = api.get_as("broken", PODS).await.expect(500);
        assert!(broken.str(&["message"]).contains("an error on the server (down)"));
    }
    assert_eq!(hook.count() - before, 2);
    let both = api.review("both", value!({"verb": "list", "resource": "pods"})).await;
    assert_eq!(both.get("denied"), Some(&true.into()));
    let why = "webhook subject access review returned both allow and deny response";
    assert_eq!(both.get("evaluationError"), Some(&why.into()));
    let narrow = value!({"verb": "list", "resource": "pods", "fieldSelector": {"requirements": [
        {"key": "spec.nodeName", "operator": "In", "values": ["n2"]},
    ]}});
    assert_eq!(api.review("allowed", narrow).await.get("allowed"), Some(&true.into()));
    let last = seen.lock().last().cloned().unwrap();
    let wanted = value!([{"key": "spec.nodeName", "operator": "In", "values": ["n2"]}]);
    assert_eq!(
        last.at(&["resourceAttributes", "fieldSelector", "requirements"]),
        Some(&wanted)
    );

    let rules = value!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "default"}});
    let rules = api
        .post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", rules)
        .await
        .expect(201)
        .json();
    assert_eq!(rules.at(&["status", "incomplete"]), Some(&true.into()));
    let why = "webhook authorizer does not support user rule resolution";
    assert_eq!(rules.at(&["status", "evaluationError"]), Some(&why.into()));

    // A policy's expression asks the webhook too.
    let policy = value!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "p"}, "spec": {
        "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]},
        "validations": [{"expression": "authorizer.group('').resource('secrets').namespace('default').check('get').allowed()", "message": "no secrets"}],
    }});
    let group = "/apis/admissionregistration.k8s.io/v1";
    api.post(&format!("{group}/validatingadmissionpolicies"), policy)
        .await
        .expect(201);
    let binding = value!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "p"},
        "spec": {"policyName": "p", "validationActions": ["Deny"]}});
    api.post(&format!("{group}/validatingadmissionpolicybindings"), binding)
        .await
        .expect(201);
    let asked = |verb: &str| {
        let spec = seen.lock();
        spec.iter().any(|s| {
            s.at(&["resourceAttributes", "verb"]) == Some(&verb.into())
                && s.at(&["resourceAttributes", "resource"]) == Some(&"secrets".into())
        })
    };
    let api = api.called_by("allowed", &["system:authenticated"]);
    let mut found = false;
    for i in 0..500 {
        let map = value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("m{i}")}});
        api.post("/api/v1/namespaces/default/configmaps", map).await.expect(201);
        found = asked("get");
        if found {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(found, "the expression never asked");

    // The file changes: other conditions, and a kind that may not go.
    let api = api.called_by("tester", &["system:masters"]);
    let metric = |status: &str| {
        let status = format!("status=\"{status}\"");
        move |page: &Answer| {
            let text = String::from_utf8_lossy(&page.bytes).into_owned();
            let mut lines = text
                .lines()
                .filter(|l| l.starts_with("apiserver_authorization_config_controller_automatic_reloads_total{"));
            lines.any(|l| l.contains(&status) && !l.ends_with(" 0"))
        }
    };
    let text = std::fs::read_to_string(&file).unwrap();
    dir.write("authz.yaml", &text.replace("- {type: RBAC, name: rbac}\n", ""));
    api.until("/metrics", metric("failure")).await;
    api.get_as("allowed", PODS).await.expect(200);
    let conditions = "{expression: \"request.user != 'allowed'\"}";
    dir.write("authz.yaml", &configuration(&kubeconfig, "NoOpinion", conditions));
    api.until("/metrics", metric("success")).await;
    api.get_as("allowed", PODS).await.expect(403);
    let page = String::from_utf8_lossy(&api.get("/metrics").await.bytes).into_owned();
    assert!(
        page.contains("apiserver_authorization_match_condition_exclusions_total{name=\"first\""),
        "{page}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn modes_by_option_are_in_force_in_their_order() {
    let (ca, dir) = (Authority::generate("ca").unwrap(), Scratch::new("modes"));
    let (hook, _) = hook(&ca, "v1beta1").await;
    let modes = |list: &[&str]| Some(list.iter().map(|m| (*m).to_string()).collect());
    let api = serving(authz::Options {
        modes: modes(&["RBAC", "Webhook"]),
        webhook_config_file: Some(dir.kubeconfig(&ca, hook.port)),
        unauthorized_ttl: Some(Duration::ZERO),
        ..authz::Options::default()
    })
    .await;
    api.get_as("unknown", "/version").await.expect(200);
    assert_eq!(hook.count(), 0, "RBAC has decided");
    api.get_as("allowed", PODS).await.expect(200);
    for _ in 0..2 {
        let unknown = api.get_as("unknown", PODS).await.expect(403);
        assert!(unknown.str(&["message"]).ends_with(": default: don't know"));
    }
    assert_eq!(hook.count(), 3, "with a time of zero nothing is remembered");
    let broken = api.get_as("broken", PODS).await.expect(500);
    assert!(broken.str(&["message"]).starts_with("Internal error occurred: "));
    let open = serving(authz::Options {
        modes: modes(&["AlwaysAllow"]),
        ..authz::Options::default()
    })
    .await;
    open.get_as("anybody", "/api/v1/secrets").await.expect(200);
    let closed = serving(authz::Options {
        modes: modes(&["AlwaysDeny"]),
        ..authz::Options::default()
    })
    .await;
    let said = closed.get_as("anybody", "/version").await.expect(403);
    assert!(
        said.str(&["message"])
            .ends_with(": alwaysdeny: Everything is forbidden."),
        "{}",
        said.str(&["message"])
    );
    closed.get("/version").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_of_a_file_allow_and_leave_the_rest_to_others() {
    let dir = Scratch::new("abac");
    let head = r#"{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":"#;
    let policies = format!(
        "# who may what\n{head}{{\"user\":\"reader\",\"namespace\":\"*\",\"resource\":\"pods\",\"readonly\":true}}}}\n\
         {head}{{\"user\":\"*\",\"nonResourcePath\":\"/version\",\"readonly\":true}}}}\n"
    );
    let options = |modes: &[&str]| authz::Options {
        modes: Some(modes.iter().map(ToString::to_string).collect()),
        policy_file: Some(dir.write("policies.jsonl", &policies)),
        ..authz::Options::default()
    };
    let api = serving(options(&["ABAC", "RBAC"])).await;
    api.get_as("reader", PODS).await.expect(200);
    api.get_as("other", "/version").await.expect(200);
    let refused = api.get_as("other", PODS).await.expect(403);
    assert!(
        refused.str(&["message"]).contains("abac: No policy matched."),
        "{:?}",
        refused.json()
    );
    let status = api
        .review(
            "reader",
            value!({"verb": "create", "resource": "pods", "namespace": "a"}),
        )
        .await;
    assert_eq!(status.get("allowed"), Some(&Value::Bool(false)));
    // Roles still count.
    let binding = value!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "other"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "other"}],
    });
    api.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding)
        .await
        .expect(201);
    for _ in 0..1000 {
        if api.get_as("other", PODS).await.code == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    api.get_as("other", PODS).await.expect(200);

    // The same by a configuration, which needs the policies too.
    let config = dir.write(
        "authz.yaml",
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers: [{type: ABAC, name: abac}]\n",
    );
    let configured = |with: bool| authz::Options {
        config: Some(config.clone()),
        policy_file: with.then(|| dir.write("policies.jsonl", &policies)),
        ..authz::Options::default()
    };
    let api = serving(configured(true)).await;
    api.get_as("reader", PODS).await.expect(200);
    let said = configured(false).resolve().unwrap_err().to_string();
    assert!(said.contains("go together"), "{said}");
}
