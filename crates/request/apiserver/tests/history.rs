//! What objects were, asked over the API: who may, what is told, and what stands on the disk.
#![allow(clippy::unwrap_used)]

mod harness;

use harness::Api;
use keelson_api::{Value, value};
use keelson_apiserver::encryption::{ROOT, place};
use keelson_apiserver::handlers::past::WITHOUT;
use keelson_apiserver::request::PAST;
use keelson_past::{At, History, Keep, Settings};
use keelson_seal::{Sealing, Source};
use keelson_store::{Memory, Store};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const MAPS: &str = "/api/v1/namespaces/shop/configmaps";
const SECRETS: &str = "/api/v1/namespaces/shop/secrets";

struct Cluster {
    api: Api,
    store: Arc<dyn Store>,
    stop: CancellationToken,
    following: tokio::task::JoinHandle<()>,
}

impl Cluster {
    async fn start(store: Arc<dyn Store>, directory: &Path) -> Cluster {
        let settings = Settings {
            directory: directory.join("history"),
            keep: Keep {
                age: Duration::from_secs(3600),
                bytes: 16 << 20,
            },
            prefix: format!("{ROOT}/"),
            without: WITHOUT.map(|without| format!("{ROOT}{without}")).to_vec(),
            write_within: Duration::from_secs(60),
        };
        let history = History::open(store.clone(), settings).await.unwrap();
        let sealing = Sealing::open(store.clone(), Source::Own, place(directory.join("pki"), ROOT));
        let sealing = sealing.await.unwrap();
        let api = Api::starting_with(sealing.store(), |config| {
            config.sealing = Some(sealing);
            config.history = Some(history.clone());
        });
        let stop = CancellationToken::new();
        let following = tokio::spawn(history.run(stop.clone()));
        api.server.ready().await;
        Cluster {
            api,
            store,
            stop,
            following,
        }
    }

    /// The store stays, and gives up its past.
    async fn again(self, directory: &Path) -> Cluster {
        let now = self.store.current_revision().await.unwrap();
        // All of it is noted.
        let history = self.api.server.state().config.history.clone().unwrap();
        history.revision(At::Revision(now)).await.unwrap();
        self.stop.cancel();
        self.following.await.unwrap();
        self.store.compact(now).await.unwrap();
        drop(self.api);
        Cluster::start(self.store, directory).await
    }
}

fn map(name: &str, text: &str) -> Value {
    value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"key": text}})
}

async fn namespace(api: &Api) {
    let namespace = value!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    api.post("/api/v1/namespaces", namespace).await.expect(201);
}

fn revision(answer: &harness::Answer) -> u64 {
    answer.str(&["metadata", "resourceVersion"]).parse().unwrap()
}

fn at<'a>(value: &'a Value, path: &[&str]) -> &'a Value {
    value.at(path).unwrap_or(&Value::Null)
}

async fn allow(api: &Api, user: &str, namespaced: bool) {
    let (kind, base) = match namespaced {
        true => ("Role", "/apis/rbac.authorization.k8s.io/v1/namespaces/shop"),
        false => ("ClusterRole", "/apis/rbac.authorization.k8s.io/v1"),
    };
    let role = value!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": user},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]});
    let binding = value!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": format!("{kind}Binding"), "metadata": {"name": user},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": user},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]});
    let roles = kind.to_lowercase();
    api.post(&format!("{base}/{roles}s"), role).await.expect(201);
    api.post(&format!("{base}/{roles}bindings"), binding).await.expect(201);
}

#[tokio::test]
async fn an_object_is_told_as_it_was_over_deletion_restart_and_return() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(Memory::new(), directory.path()).await;
    let (api, one) = (&cluster.api, format!("{MAPS}/a"));
    namespace(api).await;
    let first = revision(&api.post(MAPS, map("a", "one")).await.expect(201));
    let second = revision(&api.put(&one, map("a", "two")).await.expect(200));
    let changed = value!({"data": {"key": "three"}, "metadata": {"labels": {"a": "b"}}});
    let third = revision(&api.patch(&one, "merge-patch+json", changed).await.expect(200));
    let stays = revision(&api.post(MAPS, map("stays", "x")).await.expect(201));
    api.delete(&one).await.expect(200);

    let cluster = cluster.again(directory.path()).await;
    let api = &cluster.api;
    api.until(&one, |answer| answer.code == 404).await;
    for (revision, text) in [(first, "one"), (second, "two"), (third, "three")] {
        let was = api.get(&format!("{PAST}{one}?at={revision}")).await.expect(200);
        assert_eq!(was.str(&["data", "key"]), text);
        assert_eq!(was.str(&["metadata", "resourceVersion"]), revision.to_string());
        assert_eq!(was.str(&["kind"]), "ConfigMap");
    }
    api.get(&format!("{PAST}{one}?at=0s")).await.expect(404);
    api.get(&format!("{PAST}{one}?at={}", first - 1)).await.expect(404);
    api.get(&format!("{PAST}{one}?at=0")).await.expect(410);
    api.get(&format!("{PAST}{one}?at=2h")).await.expect(410);
    api.get(&format!("{PAST}{one}?at=nonsense")).await.expect(400);
    api.get(&format!("{PAST}{one}?at=99999999")).await.expect(400);

    // It comes back; the past has both of its lives.
    api.post(MAPS, map("a", "three")).await.expect(201);
    let told = api.get(&format!("{PAST}{one}")).await.expect(200).json();
    let changes = at(&told, &["changes"]).as_array().unwrap().to_vec();
    let verbs: Vec<_> = changes
        .iter()
        .map(|c| at(c, &["verb"]).as_str().unwrap_or("?"))
        .collect();
    assert_eq!(verbs, ["create", "update", "patch", "delete", "create"]);
    for change in &changes {
        assert_eq!(at(change, &["user"]).as_str(), Some("tester"));
        assert_eq!(at(change, &["agent"]).as_str(), Some("tester/1"));
    }
    assert!(at(&told, &["before", "object"]).is_null());
    assert!(at(&changes[3], &["object"]).is_null() && at(&changes[3], &["deleted"]).as_bool() == Some(true));
    assert_eq!(
        at(&changes[2], &["object", "metadata", "labels", "a"]).as_str(),
        Some("b")
    );
    let few = api.get(&format!("{PAST}{one}?limit=2")).await.expect(200).json();
    assert_eq!(at(&few, &["changes"]).as_array().unwrap().len(), 2);
    assert_eq!(at(&few, &["more"]).as_bool(), Some(true));
    assert_eq!(at(&few, &["before", "object", "data", "key"]).as_str(), Some("three"));

    // Lists, in pages and as tables.
    let names = async |query: &str| {
        let (mut names, mut next) = (Vec::new(), String::new());
        loop {
            let page = api
                .get(&format!("{PAST}{MAPS}?{query}&continue={next}"))
                .await
                .expect(200);
            let json = page.json();
            let items = at(&json, &["items"]).as_array().unwrap().clone();
            names.extend(
                items
                    .iter()
                    .map(|i| at(i, &["metadata", "name"]).as_str().unwrap().to_string()),
            );
            next = page.str(&["metadata", "continue"]);
            if next.is_empty() {
                return names;
            }
        }
    };
    assert_eq!(names(&format!("at={third}")).await, ["a"]);
    assert_eq!(names(&format!("at={stays}&limit=1")).await, ["a", "stays"]);
    assert_eq!(names("at=0s").await, ["a", "stays"], "it has come back");
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let table = api
        .call("GET", &format!("{PAST}{MAPS}?at={third}"), "", accept, Vec::new())
        .await
        .expect(200);
    assert_eq!(table.str(&["kind"]), "Table");
    assert_eq!(at(&table.json(), &["rows"]).as_array().unwrap().len(), 1);
    let all = api
        .get(&format!("{PAST}/api/v1/configmaps?at={third}"))
        .await
        .expect(200);
    assert!(String::from_utf8_lossy(&all.bytes).contains("\"three\""));

    // What isn't a question about what was.
    for (method, path, code) in [
        ("GET", format!("{PAST}{MAPS}"), 400),
        ("GET", format!("{PAST}{MAPS}?at=0s&labelSelector=a%3Db"), 400),
        (
            "GET",
            format!("{PAST}{MAPS}?at=0s&fieldSelector=metadata.name%3Da"),
            400,
        ),
        ("GET", format!("{PAST}{MAPS}?at=0s&continue=..%2Fother"), 400),
        ("GET", format!("{PAST}{MAPS}?watch=true"), 405),
        ("POST", format!("{PAST}{MAPS}"), 405),
        ("DELETE", format!("{PAST}{one}"), 405),
        ("GET", format!("{PAST}{one}/status"), 404),
        ("GET", format!("{PAST}/api/v1/namespaces/shop/nothing/a"), 404),
        (
            "GET",
            format!("{PAST}/apis/coordination.k8s.io/v1/namespaces/shop/leases/a"),
            400,
        ),
        ("GET", format!("{PAST}/api/v1/namespaces/shop/events/a"), 400),
    ] {
        let answer = api.call(method, &path, "", "application/json", Vec::new()).await;
        assert_eq!(
            answer.code,
            code,
            "{method} {path}: {}",
            String::from_utf8_lossy(&answer.bytes)
        );
    }
    // Elsewhere nothing has changed: an old revision is as gone as it was.
    let old = format!("{MAPS}?resourceVersion={third}&resourceVersionMatch=Exact");
    api.get(&old).await.expect(410);
}

#[tokio::test]
async fn who_may_read_may_read_what_was_and_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let Cluster { api, .. } = Cluster::start(Memory::new(), directory.path()).await;
    namespace(&api).await;
    let first = revision(&api.post(MAPS, map("a", "others'")).await.expect(201));
    api.post(
        SECRETS,
        value!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}),
    )
    .await
    .expect(201);
    api.delete(&format!("{MAPS}/a")).await.expect(200);
    // The namespace goes, and another team gets one of that name.
    api.delete("/api/v1/namespaces/shop").await.expect(200);
    let finalize =
        value!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}, "spec": {"finalizers": []}});
    api.put("/api/v1/namespaces/shop/finalize", finalize).await.expect(200);
    api.until("/api/v1/namespaces/shop", |answer| answer.code == 404).await;
    namespace(&api).await;
    allow(&api, "ana", true).await;
    allow(&api, "auditor", false).await;
    let second = revision(&api.post(MAPS, map("a", "ana's")).await.expect(201));
    api.put(&format!("{MAPS}/a"), map("a", "ana's too")).await.expect(200);
    let past = |path: &str| format!("{PAST}{path}");

    let api = api.called_by("ana", &["system:authenticated"]);
    api.until(&format!("{MAPS}/a"), |answer| answer.code == 200).await;
    let was = api.get(&past(&format!("{MAPS}/a?at={second}"))).await.expect(200);
    assert_eq!(was.str(&["data", "key"]), "ana's");
    let why = api.get(&past(&format!("{MAPS}/a?at={first}"))).await.expect(403);
    assert!(why.str(&["message"]).contains("the namespace was made later"));
    api.get(&past(&format!("{MAPS}?at={first}"))).await.expect(403);
    let told = api.get(&past(&format!("{MAPS}/a"))).await.expect(200);
    assert!(!String::from_utf8_lossy(&told.bytes).contains("others'"));
    assert_eq!(at(&told.json(), &["changes"]).as_array().unwrap().len(), 2);
    api.get(&past(&format!("{SECRETS}/s"))).await.expect(403);
    api.get(&past(&format!("{SECRETS}?at=1s"))).await.expect(403);
    api.get(&past("/api/v1/configmaps?at=0s")).await.expect(403);
    api.get(&past("/api/v1/namespaces/shop")).await.expect(403);

    let api = api.called_by("auditor", &["system:authenticated"]);
    let was = api.get(&past(&format!("{MAPS}/a?at={first}"))).await.expect(200);
    assert_eq!(was.str(&["data", "key"]), "others'");
    let told = api.get(&past(&format!("{MAPS}/a"))).await.expect(200).json();
    assert_eq!(at(&told, &["changes"]).as_array().unwrap().len(), 4);
    let api = api.called_by("nobody", &["system:authenticated"]);
    api.get(&past(&format!("{MAPS}/a"))).await.expect(403);
    // What a node may read by its pods is about what is.
    let api = api.called_by(
        "system:node:n",
        &["system:nodes", "system:masters", "system:authenticated"],
    );
    api.get(&past(&format!("{MAPS}/a"))).await.expect(403);
}

#[tokio::test]
async fn secrets_stay_sealed_on_the_disk_and_open_for_who_may_read_them() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(Memory::new(), directory.path()).await;
    let api = &cluster.api;
    namespace(api).await;
    let secret = |text: &str| value!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"key": text}});
    let first = revision(&api.post(SECRETS, secret("Hj4sRd8NcB2gFu")).await.expect(201));
    api.post(MAPS, map("a", "Qx7vKz9LmW3tYp")).await.expect(201);
    api.delete(&format!("{MAPS}/a")).await.expect(200);
    api.put(&format!("{SECRETS}/s"), secret("Vb6nMq1XzC5kTw"))
        .await
        .expect(200);
    api.delete(&format!("{SECRETS}/s")).await.expect(200);
    let cluster = cluster.again(directory.path()).await;
    let mut seen = Vec::new();
    for file in std::fs::read_dir(directory.path().join("history")).unwrap() {
        let path = file.unwrap().path();
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        seen.extend(std::fs::read(path).unwrap());
    }
    let has = |text: &str| seen.windows(text.len()).any(|window| window == text.as_bytes());
    // Letters that nothing else has, so that they aren't compressed.
    assert!(has("Qx7vKz9LmW3tYp"), "the test looks where it is");
    assert!(!has("Hj4sRd8NcB2gFu") && !has("Vb6nMq1XzC5kTw"));
    assert!(!has("SGo0c1JkOE5jQjJnRnU"), "nor in base64");
    let was = cluster
        .api
        .get(&format!("{PAST}{SECRETS}/s?at={first}"))
        .await
        .expect(200);
    assert_eq!(was.str(&["data", "key"]), "SGo0c1JkOE5jQjJnRnU=");
}

#[tokio::test]
async fn a_server_that_keeps_no_history_says_so() {
    let api = Api::new().await;
    let answer = api.get(&format!("{PAST}{MAPS}/a")).await.expect(404);
    assert!(answer.str(&["message"]).contains("keeps no history"));
    api.get(PAST).await.expect(404);
}
