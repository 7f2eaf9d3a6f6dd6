//! Health endpoints tell what is so: hooks by upstream's names, the store as it is, who takes its leave.

#![allow(clippy::unwrap_used)]

mod harness;

use async_trait::async_trait;
use bytes::Bytes;
use harness::Api;
use keelson_api::{Value, value};
use keelson_apiserver::peers::{Peer, Place};
use keelson_store::{
    Error, Expect, Got, KeyRange, ListRequest, Listed, Memory, Outcome, Result, Revision, Store, StoreStatus,
    WatchStream,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What upstream's e2e test "health handlers should contain necessary checks" asks for in all three.
const NECESSARY: &[&str] = &[
    "[+]ping ok",
    "[+]log ok",
    "[+]etcd ok",
    "[+]poststarthook/start-apiserver-admission-initializer ok",
    "[+]poststarthook/generic-apiserver-start-informers ok",
    "[+]poststarthook/start-apiextensions-informers ok",
    "[+]poststarthook/start-apiextensions-controllers ok",
    "[+]poststarthook/crd-informer-synced ok",
    "[+]poststarthook/bootstrap-controller ok",
    "[+]poststarthook/start-system-namespaces-controller ok",
    "[+]poststarthook/start-service-ip-repair-controllers ok",
    "[+]poststarthook/scheduling/bootstrap-system-priority-classes ok",
    "[+]poststarthook/start-cluster-authentication-info-controller ok",
    "[+]poststarthook/start-kube-aggregator-informers ok",
    "[+]poststarthook/apiservice-registration-controller ok",
    "[+]poststarthook/apiservice-status-local-available-controller ok",
    "[+]poststarthook/apiservice-status-remote-available-controller ok",
    "[+]poststarthook/kube-apiserver-autoregistration ok",
    "[+]autoregister-completion ok",
    "[+]poststarthook/apiservice-openapi-controller ok",
    "[+]poststarthook/storage-readiness ok",
];

/// A store whose disk can fail.
struct Disk {
    inner: Arc<Memory>,
    failed: AtomicBool,
}

#[async_trait]
impl Store for Disk {
    async fn get(&self, key: &[u8], revision: Option<Revision>) -> Result<Got> {
        self.inner.get(key, revision).await
    }
    async fn list(&self, request: ListRequest) -> Result<Listed> {
        self.inner.list(request).await
    }
    async fn put(&self, key: Bytes, value: Bytes, expected: Expect, ttl: Option<Duration>) -> Result<Outcome> {
        self.inner.put(key, value, expected, ttl).await
    }
    async fn delete(&self, key: Bytes, expected: Expect) -> Result<Outcome> {
        self.inner.delete(key, expected).await
    }
    async fn watch(&self, range: KeyRange, after: Revision) -> Result<WatchStream> {
        self.inner.watch(range, after).await
    }
    async fn compact(&self, revision: Revision) -> Result<()> {
        self.inner.compact(revision).await
    }
    async fn current_revision(&self) -> Result<Revision> {
        self.inner.current_revision().await
    }
    async fn status(&self) -> Result<StoreStatus> {
        self.inner.status().await
    }
    async fn health(&self) -> Result<()> {
        if self.failed.load(Ordering::SeqCst) {
            return Err(Error::Unavailable {
                what: "its disk failed".into(),
            });
        }
        self.inner.health().await
    }
}

fn text(answer: &harness::Answer) -> String {
    String::from_utf8_lossy(&answer.bytes).into_owned()
}

#[tokio::test]
async fn checks_are_upstreams_and_each_tells_what_is_so() {
    let disk = Arc::new(Disk {
        inner: Memory::new(),
        failed: AtomicBool::new(false),
    });
    let api = Api::starting(disk.clone());
    // At the first moment nothing has been done.
    let early = api.get("/livez?verbose").await.expect(500);
    assert!(text(&early).contains("[-]poststarthook/rbac/bootstrap-roles failed: reason withheld\n"));
    assert!(text(&early).contains("[+]ping ok\n") && text(&early).ends_with("livez check failed\n"));
    api.get("/livez/poststarthook/crd-informer-synced").await.expect(500);

    for endpoint in ["readyz", "livez", "healthz"] {
        let answer = api.until(&format!("/{endpoint}?verbose=1"), |a| a.code == 200).await;
        let shown = text(&answer);
        for check in NECESSARY {
            assert!(shown.lines().any(|l| l == *check), "{endpoint}: {check} in {shown}");
        }
        for ready in ["[+]informer-sync ok", "[+]etcd-readiness ok", "[+]shutdown ok"] {
            assert_eq!(
                shown.lines().any(|l| l == ready),
                endpoint == "readyz",
                "{ready} in {shown}"
            );
        }
    }
    assert_eq!(
        api.get("/livez/poststarthook/rbac/bootstrap-roles")
            .await
            .expect(200)
            .bytes,
        "ok"
    );
    api.get("/livez/informer-sync").await.expect(404);

    disk.failed.store(true, Ordering::SeqCst);
    for endpoint in ["readyz", "livez", "healthz"] {
        let failed = api.get(&format!("/{endpoint}")).await.expect(500);
        assert!(
            text(&failed).contains("[-]etcd failed: reason withheld\n"),
            "{}",
            text(&failed)
        );
    }
    assert!(text(&api.get("/livez/etcd").await.expect(500)).contains("its disk failed"));
    let rest = api.get("/livez?exclude=etcd&exclude=nothing&verbose").await.expect(200);
    assert!(text(&rest).contains("[+]etcd excluded: ok\n"));
    assert!(text(&rest).contains("warn: some health checks cannot be excluded: no matches for \"nothing\"\n"));
    disk.failed.store(false, Ordering::SeqCst);

    api.server.shutdown();
    let leaving = api.get("/readyz").await.expect(500);
    assert!(text(&leaving).contains("[-]shutdown failed: reason withheld\n"));
    api.get("/livez").await.expect(200);
}

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";

#[tokio::test]
async fn addresses_that_nobody_holds_are_held_again() {
    let api = Api::new().await;
    let service = |name: &str| -> Value { value!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}}) };
    let made = api.post(SERVICES, service("a")).await.expect(201);
    let ip = made.str(&["spec", "clusterIP"]);
    let engine = &api.server.state().engine;
    let sound = engine.repair_services().await.unwrap();
    assert_eq!((sound.held, sound.freed, sound.disputed), (0, 0, 0));

    api.delete(&format!("{ADDRESSES}/{ip}")).await.expect(200);
    assert_eq!(engine.repair_services().await.unwrap().held, 1);
    let held = api.get(&format!("{ADDRESSES}/{ip}")).await.expect(200);
    assert_eq!(held.str(&["spec", "parentRef", "name"]), "a");

    // Another's: people have to decide.
    api.delete(&format!("{ADDRESSES}/{ip}")).await.expect(200);
    let other = value!({"metadata": {"name": ip.as_str()}, "spec": {"parentRef": {
        "resource": "services", "namespace": "default", "name": "b",
    }}});
    api.post(ADDRESSES, other).await.expect(201);
    let disputed = engine.repair_services().await.unwrap();
    assert_eq!((disputed.held, disputed.disputed), (0, 1));
}

/// Another server may be about to write the service that it took the port for: nothing is freed at the first look.
#[tokio::test]
async fn a_node_port_without_a_service_is_free_after_some_looks() {
    let api = Api::new().await;
    let service = |name: &str| value!({"metadata": {"name": name}, "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30500}]}});
    api.post(SERVICES, service("a")).await.expect(201);
    let engine = &api.server.state().engine;
    // As if the server had ended between the two writes.
    let key = bytes::Bytes::from_static(b"/registry/services/specs/default/a");
    let removed = engine.store().delete(key, keelson_store::Expect::Any).await.unwrap();
    assert!(removed.done().is_some());
    for _ in 0..3 {
        engine.repair_services().await.unwrap();
        api.post(SERVICES, service("b")).await.expect(422);
    }
    engine.repair_services().await.unwrap();
    api.post(SERVICES, service("b")).await.expect(201);
}

#[tokio::test]
async fn what_a_server_is_and_was_told_is_for_who_monitors_it() {
    let flags: keelson_zpages::Flags = [("api-port".to_string(), "6443".to_string())].into();
    let api = Api::starting_with(Memory::new(), |config| config.flags = Some(Arc::new(flags)));
    api.server.ready().await;
    let paths = api.get("/").await.expect(200).json();
    let listed = paths.at(&["paths"]).and_then(Value::as_array).unwrap();
    for path in ["/flagz", "/statusz"] {
        assert!(listed.contains(&Value::from(path)), "{listed:?}");
    }
    // Nobody else may see them, and who may sees no more than that.
    let api = api.called_by("eve", &["system:authenticated"]);
    api.get("/statusz").await.expect(403);
    let api = api.called_by("watcher", &["system:monitoring", "system:authenticated"]);
    for path in ["/statusz/x", "/flagz/"] {
        api.get(path).await.expect(403);
    }
    let ask = |path, accept| api.call("GET", path, "", accept, Vec::new());
    let text = ask("/flagz", "*/*").await.expect(200);
    assert_eq!(text.headers["content-type"], "text/plain; charset=utf-8");
    assert!(String::from_utf8_lossy(&text.bytes).starts_with("\napiserver flagz\nWarning: "));
    let flagz = ask("/flagz", "application/json;v=v1beta1;g=config.k8s.io;as=Flagz").await;
    assert_eq!(
        flagz.expect(200).json().at(&["flags", "api-port"]),
        Some(&"6443".into())
    );
    let statusz = ask("/statusz", "application/json;v=v1alpha1;g=config.k8s.io;as=Statusz").await;
    assert!(statusz.headers["warning"].to_str().unwrap().contains("is deprecated"));
    assert_eq!(
        statusz.expect(200).json().at(&["paths"]),
        Some(&value!([
            "/flagz", "/healthz", "/livez", "/metrics", "/readyz", "/statusz", "/version"
        ]))
    );
    let refused = ask("/statusz", "application/json").await.expect(406);
    assert_eq!(refused.str(&["reason"]), "NotAcceptable");
}

#[tokio::test]
async fn component_statuses_tell_of_the_whole_control_plane() {
    let unheard = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let well = Arc::new(AtomicBool::new(true));
    let scheduler = well.clone();
    let disk = Arc::new(Disk {
        inner: Memory::new(),
        failed: AtomicBool::new(false),
    });
    let api = Api::starting_with(disk.clone(), |config| {
        let place = Place::Here(Arc::new(move || scheduler.load(Ordering::SeqCst)));
        config.peers = vec![
            Peer {
                name: "scheduler",
                place,
            },
            Peer {
                name: "controller-manager",
                place: Place::At(unheard),
            },
        ];
    });
    api.until("/readyz", |a| a.code == 200).await;
    let all = "/api/v1/componentstatuses";
    let silent = format!("Get \"https://{unheard}/healthz\": dial tcp {unheard}: connect: connection refused");
    let list = api.get(all).await.expect(200).json();
    assert_eq!(
        list,
        value!({"apiVersion": "v1", "kind": "ComponentStatusList", "metadata": {}, "items": [
            {"metadata": {"name": "controller-manager"}, "conditions": [{"type": "Healthy", "status": "False", "message": (silent.as_str())}]},
            {"metadata": {"name": "etcd-0"}, "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}]},
            {"metadata": {"name": "scheduler"}, "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}]},
        ]})
    );
    well.store(false, Ordering::SeqCst);
    disk.failed.store(true, Ordering::SeqCst);
    for name in ["scheduler", "etcd-0"] {
        let one = api.get(&format!("{all}/{name}")).await.expect(200).json();
        let status = one
            .at(&["conditions"])
            .and_then(|c| c.as_array()?.first()?.get("status")?.as_str());
        assert_eq!(status, Some("False"), "{one:?}");
    }
    api.get(&format!("{all}/proxy")).await.expect(404);
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let table = api.call("GET", all, "", table, Vec::new()).await.expect(200).json();
    let cells = |row: &Value| row.get("cells").cloned().unwrap();
    let rows: Vec<Value> = table
        .at(&["rows"])
        .and_then(Value::as_array)
        .unwrap()
        .iter()
        .map(cells)
        .collect();
    assert_eq!(
        rows.first(),
        Some(&value!(["controller-manager", "Unhealthy", (silent.as_str()), ""]))
    );
    assert_eq!(rows.len(), 3);
}

/// How many comparisons of caches with the store came to this, of all resources.
async fn compared(api: &Api, status: &str) -> u64 {
    let page = api.get("/metrics").await;
    let page = String::from_utf8(page.bytes.to_vec()).unwrap();
    let counted = "apiserver_storage_consistency_checks_total{";
    let lines = page
        .lines()
        .filter(|line| line.starts_with(counted) && line.contains(status));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[tokio::test(start_paused = true)]
async fn caches_are_compared_with_the_store_while_something_happens() {
    let api = Api::new().await;
    let pause = Duration::from_secs(8 * 60);
    tokio::time::sleep(pause).await;
    let first = compared(&api, "success").await;
    assert!(first > 10, "{first}");
    // Nothing has happened, nothing is compared.
    tokio::time::sleep(pause).await;
    assert_eq!(compared(&api, "success").await, first);
    let map = value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    api.post("/api/v1/namespaces/default/configmaps", map).await.expect(201);
    tokio::time::sleep(pause).await;
    assert_eq!(compared(&api, "success").await, first + 1);
    assert_eq!(compared(&api, "failure").await + compared(&api, "error").await, 0);
}
