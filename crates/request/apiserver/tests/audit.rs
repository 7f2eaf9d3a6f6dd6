//! The audit log, as whoever reads the file afterwards finds it.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::Api;
use keelson_api::{Value, value};
use keelson_apiserver::audit::{Policy, Settings};
use keelson_apiserver::request::UserInfo;
use keelson_store::Memory;
use std::path::PathBuf;

struct Logged {
    api: Api,
    path: PathBuf,
}

impl Logged {
    async fn by(name: &str, rules: &str) -> Logged {
        let path = std::env::temp_dir().join(format!("keelson-audit-{name}-{}.log", std::process::id()));
        let policy = Policy::parse(&format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rules}")).unwrap();
        let settings = Settings::at(path.clone());
        let api = Api::starting_with(Memory::new(), |config| config.audit = Some((policy, settings)));
        api.server.ready().await;
        Logged { api, path }
    }

    /// The events, so many: what is logged with a body's end comes a moment after the answer.
    async fn events(self, wanted: usize) -> Vec<Value> {
        let mut text = String::new();
        for _ in 0..3000 {
            text = std::fs::read_to_string(&self.path).unwrap();
            if text.lines().count() >= wanted {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        drop(self.api);
        std::fs::remove_file(&self.path).unwrap();
        let events: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(events.len(), wanted, "{text}");
        events
    }
}

fn text<'a>(event: &'a Value, path: &[&str]) -> &'a str {
    event.at(path).and_then(Value::as_str).unwrap_or_default()
}

#[tokio::test]
async fn each_level_has_what_it_promises() {
    let rules = "omitStages: [RequestReceived]\nrules:\n\
        - {level: None, users: ['system:apiserver'], userGroups: []}\n\
        - {level: RequestResponse, omitManagedFields: true, users: [tester], resources: [{group: '', resources: [configmaps]}]}\n\
        - {level: Request, users: [tester], resources: [{group: '', resources: [secrets]}]}\n\
        - {level: Metadata, users: [tester]}\n";
    let log = Logged::by("levels", rules).await;
    let config_map = value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
    let secret = value!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}});
    log.api
        .post("/api/v1/namespaces/default/configmaps", config_map)
        .await
        .expect(201);
    log.api.get("/api/v1/namespaces/default/configmaps/a").await.expect(200);
    log.api
        .post("/api/v1/namespaces/default/secrets", secret)
        .await
        .expect(201);
    log.api.get("/api/v1/namespaces/default/pods/none").await.expect(404);
    let patch = value!({"data": {"k": "w"}});
    log.api
        .patch("/api/v1/namespaces/default/configmaps/a", "merge-patch+json", patch)
        .await
        .expect(200);

    let events = log.events(5).await;
    let of = |verb: &str, resource: &str| {
        let found = events
            .iter()
            .filter(|e| text(e, &["verb"]) == verb && text(e, &["objectRef", "resource"]) == resource);
        let found: Vec<&Value> = found.collect();
        assert_eq!(found.len(), 1, "{verb} {resource}: {events:?}");
        found[0]
    };
    let created = of("create", "configmaps");
    assert_eq!(text(created, &["level"]), "RequestResponse");
    assert_eq!(text(created, &["requestObject", "data", "k"]), "v");
    assert_eq!(text(created, &["responseObject", "metadata", "namespace"]), "default");
    assert!(created.at(&["responseObject", "metadata", "managedFields"]).is_none());
    assert_eq!(text(of("patch", "configmaps"), &["requestObject", "data", "k"]), "w");
    let read = of("get", "configmaps");
    assert!(read.get("requestObject").is_none());
    assert_eq!(text(read, &["responseObject", "data", "k"]), "v");
    let secret = of("create", "secrets");
    assert_eq!(text(secret, &["requestObject", "metadata", "name"]), "s");
    assert!(secret.get("responseObject").is_none());
    let missing = of("get", "pods");
    assert_eq!(text(missing, &["user", "username"]), "tester");
    assert_eq!(missing.at(&["responseStatus", "code"]), Some(&Value::from(404)));
    assert_eq!(
        text(missing, &["annotations", "authorization.k8s.io/decision"]),
        "allow"
    );
    assert_eq!(text(missing, &["userAgent"]), "tester/1");
}

#[tokio::test]
async fn a_watch_is_logged_when_it_begins_and_when_it_ends() {
    let log = Logged::by(
        "watch",
        "rules:\n- {level: Metadata, verbs: [watch], users: [tester]}\n",
    )
    .await;
    let watch = "/api/v1/namespaces/default/configmaps?watch=true&timeoutSeconds=1";
    log.api.get(watch).await.expect(200);
    let events = log.events(3).await;
    let stages: Vec<&str> = events.iter().map(|e| text(e, &["stage"])).collect();
    assert_eq!(stages, ["RequestReceived", "ResponseStarted", "ResponseComplete"]);
}

#[tokio::test]
async fn who_is_impersonated_stands_beside_who_asks() {
    let log = Logged::by(
        "impersonation",
        "rules:\n- {level: Metadata, users: [tester], verbs: [get]}\n",
    )
    .await;
    let request = http::Request::get("/version")
        .header("impersonate-user", "jane")
        .body(keelson_apiserver::Body::empty())
        .unwrap();
    let service = log.api.server.service(UserInfo::new("tester", &["system:masters"]));
    tower::ServiceExt::oneshot(service, request).await.unwrap();
    let events = log.events(2).await;
    let last = events.last().unwrap();
    assert_eq!(text(last, &["user", "username"]), "tester");
    assert_eq!(text(last, &["impersonatedUser", "username"]), "jane");
}
