//! Several servers over one store: they find each other, and what one gives away no other does.

#![allow(clippy::unwrap_used)]

mod harness;

use futures::future::join_all;
use harness::{Answer, Api};
use keelson_api::codec::{Strictness, yaml};
use keelson_api::{Object, Value, resources, value};
use keelson_store::{Memory, Store};
use std::collections::BTreeSet;
use std::sync::Arc;

const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints/kubernetes";
const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
const SERVICES: &str = "/api/v1/namespaces/default/services";

async fn server(store: &Arc<Memory>, address: &str) -> Api {
    let api = Api::starting_with(store.clone(), |config| {
        config.publish_kubernetes_service = true;
        config.advertise_address = address.parse().unwrap();
    });
    api.server.ready().await;
    api
}

/// The addresses in Endpoints or EndpointSlice.
fn addresses(answer: &Answer) -> Vec<String> {
    let object = answer.json();
    let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_string();
    let subsets = list(object.at(&["subsets"]));
    let of_subset = |subset: &Value| list(subset.get("addresses"));
    let from_endpoints = subsets.iter().flat_map(of_subset).map(|a| text(a.get("ip")));
    let endpoints = list(object.at(&["endpoints"]));
    let from_slice = endpoints.iter().map(|e| text(list(e.get("addresses")).first()));
    from_endpoints.chain(from_slice).collect()
}

async fn lead_to(api: &Api, wanted: &[&str]) {
    for path in [ENDPOINTS, SLICE] {
        api.until(path, |answer| answer.code == 200 && addresses(answer) == wanted)
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_service_leads_to_those_that_are_there() {
    let store = Memory::new();
    let first = server(&store, "10.0.0.1").await;
    lead_to(&first, &["10.0.0.1"]).await;
    let second = server(&store, "10.0.0.2").await;
    let third = server(&store, "10.0.0.3").await;
    lead_to(&first, &["10.0.0.1", "10.0.0.2", "10.0.0.3"]).await;
    let slice = first.get(SLICE).await.json();
    assert_eq!(slice.at(&["ports"]).and_then(Value::as_array).unwrap().len(), 1);

    // One takes its leave: at once.
    second.server.leave().await;
    assert_eq!(addresses(&first.get(ENDPOINTS).await), ["10.0.0.1", "10.0.0.3"]);
    assert_eq!(addresses(&first.get(SLICE).await), ["10.0.0.1", "10.0.0.3"]);
    // It doesn't come back by itself.
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
    lead_to(&first, &["10.0.0.1", "10.0.0.3"]).await;

    // Another ends without a word: when its announcement has run out.
    drop(third);
    assert_eq!(addresses(&first.get(ENDPOINTS).await).len(), 2);
    lead_to(&first, &["10.0.0.1"]).await;

    // What an earlier run left counts for nothing until the server is ready again.
    drop(first);
    let again = Api::starting_with(store.clone(), |config| {
        config.publish_kubernetes_service = true;
        config.advertise_address = "10.0.0.1".parse().unwrap();
    });
    again.server.ready().await;
    lead_to(&again, &["10.0.0.1"]).await;
    assert!(
        store
            .get(b"/registry/masterleases/10.0.0.1", None)
            .await
            .unwrap()
            .kv
            .is_some()
    );
}

#[tokio::test]
async fn no_address_and_no_port_is_given_away_twice() {
    let store = Memory::new();
    let servers = [server(&store, "10.0.0.1").await, server(&store, "10.0.0.2").await];
    let service = |n: usize| value!({"metadata": {"name": format!("s{n}")}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
    let made = join_all((0..120).map(|n| servers[n % 2].post(SERVICES, service(n)))).await;
    let mut addresses = BTreeSet::new();
    let mut ports = BTreeSet::new();
    for answer in made {
        let service = answer.expect(201).json();
        let port = service.at(&["spec", "ports"]).and_then(Value::as_array).unwrap()[0].clone();
        addresses.insert(
            service
                .at(&["spec", "clusterIP"])
                .and_then(Value::as_str)
                .unwrap()
                .to_string(),
        );
        ports.insert(port.get("nodePort").and_then(Value::as_i64).unwrap());
    }
    assert_eq!((addresses.len(), ports.len()), (120, 120));
}

/// Only the servers' token lets a machine ask where the datastore is; and it lets it do nothing else.
#[tokio::test]
async fn who_shows_the_servers_token_is_told_the_datastore_and_nobody_else_is() {
    use keelson_apiserver::Body;
    use keelson_apiserver::joining::{Borne, GROUP, Joining, PATH, TOKEN};
    use keelson_pki::{BootstrapToken, ServerToken};
    let token = ServerToken::generate();
    let borne = Borne::new(token.clone());
    let joining = Joining {
        token: borne.clone(),
        turns: None,
        offer: Arc::new(|| Box::pin(async { Ok(serde_json::json!({"etcd-servers": ["https://10.0.0.9:2379"]})) })),
    };
    let api = Api::starting_with(Memory::new(), |config| config.joining = Some(joining));
    api.server.ready().await;
    let agents = BootstrapToken::generate();
    let secret = value!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": agents.secret_name()},
        "stringData": {"token-id": agents.id.as_str(), "token-secret": agents.secret.as_str(), "usage-bootstrap-authentication": "true"}});
    api.post("/api/v1/namespaces/kube-system/secrets", secret)
        .await
        .expect(201);
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = value!({"metadata": {"name": "joining"}, "rules": [{"nonResourceURLs": [PATH], "verbs": ["get"]}]});
    api.post(&format!("{rbac}/clusterroles"), role).await.expect(201);
    let binding = value!({"metadata": {"name": "joining"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "joining"},
        "subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": GROUP}]});
    api.post(&format!("{rbac}/clusterrolebindings"), binding)
        .await
        .expect(201);
    let ask = async |bearer: Option<String>, path: &str| {
        let mut request = http::Request::get(path);
        if let Some(bearer) = bearer {
            request = request.header("authorization", format!("Bearer {bearer}"));
        }
        let answer = api.server.handle().handle(request.body(Body::empty()).unwrap()).await;
        answer.status().as_u16()
    };
    // The role has to be read first.
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while ask(Some(token.bearer()), PATH).await != 200 {
        assert!(tokio::time::Instant::now() < until, "the token is not taken");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(
        ask(Some(token.bearer()), "/api/v1/namespaces/kube-system/secrets").await,
        403
    );
    assert_eq!(ask(Some(agents.to_string()), PATH).await, 403);
    assert_eq!(ask(None, PATH).await, 403);
    assert_eq!(ask(Some(ServerToken::generate().bearer()), PATH).await, 401);
    assert_eq!(ask(Some(token.bearer()), TOKEN).await, 403);
    // Another takes its place.
    let (former, next) = (ServerToken::generate(), ServerToken::generate());
    borne.set(former.clone());
    borne.set(next.clone());
    assert_eq!(ask(Some(former.bearer()), PATH).await, 401);
    assert_eq!(ask(Some(next.bearer()), PATH).await, 200);
    // An administrator is told, too; the server itself isn't, by way of a Node that says that it is its kubelet.
    api.get(PATH).await.expect(200);
    let passed_on = api.called_by(keelson_pki::layout::AT_KUBELETS, &["system:authenticated"]);
    passed_on.get(PATH).await.expect(403);
    // Where no server can join there is nothing of the kind.
    let alone = Api::starting_with(Memory::new(), |_| {});
    alone.server.ready().await;
    alone.get(PATH).await.expect(404);
}

/// Whoever has a snapshot has every secret, and each fills the disk.
#[tokio::test]
async fn only_administrators_have_snapshots_taken() {
    use keelson_apiserver::snapshots::{PATH, Take};
    let take: Take = Arc::new(|| Box::pin(async { Ok(serde_json::json!({"keys": 7})) }));
    let api = Api::starting_with(Memory::new(), |config| config.snapshots = Some(take));
    api.server.ready().await;
    let taken = api.call("POST", PATH, "", "", Vec::new()).await.expect(201);
    assert_eq!(taken.json(), value!({"keys": 7}));
    api.get(PATH).await.expect(405);
    let all = value!({"metadata": {"name": "all"}, "rules": [{"nonResourceURLs": ["*"], "verbs": ["*"]}]});
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    api.post(&format!("{rbac}/clusterroles"), all).await.expect(201);
    let binding = value!({"metadata": {"name": "all"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "all"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "ana"}]});
    api.post(&format!("{rbac}/clusterrolebindings"), binding)
        .await
        .expect(201);
    let ana = api.called_by("ana", &["system:authenticated"]);
    ana.until("/metrics", |a| a.code == 200).await;
    ana.call("POST", PATH, "", "", Vec::new()).await.expect(403);

    let fails: Take = Arc::new(|| Box::pin(async { anyhow::bail!("the disk is full") }));
    let full = Api::starting_with(Memory::new(), |config| config.snapshots = Some(fails));
    full.server.ready().await;
    let refused = full.call("POST", PATH, "", "", Vec::new()).await.expect(503);
    assert!(refused.str(&["message"]).contains("the disk is full"));
}

/// A server goes on from what it has just written, another one reads that: neither is to notice.
#[tokio::test]
async fn what_was_written_goes_on_as_what_is_read() {
    let store = Memory::new();
    let (writer, reader) = (server(&store, "10.0.0.1").await, server(&store, "10.0.0.2").await);
    let account = value!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    writer.post(accounts, account).await.expect(201);
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../tools/validation/objects.yaml");
    let mut compared = BTreeSet::new();
    for document in std::fs::read_to_string(root).unwrap().split("\n---\n") {
        let decoded = yaml::decode(document.as_bytes(), None, Strictness::Lenient).unwrap();
        let mut object = Object::try_from(decoded.value).unwrap();
        if object.kind() == "Pod" {
            // Admission would want what they name.
            for field in ["priorityClassName", "runtimeClassName", "serviceAccountName"] {
                object.remove_at(&["spec", field]);
            }
        }
        let (api_version, kind) = (object.api_version().to_string(), object.kind().to_string());
        let Some(facts) = resources::all().find(|f| f.gvk().api_version() == api_version && f.kind == kind) else {
            continue;
        };
        let group = if facts.group.is_empty() { "/api" } else { "/apis" };
        let namespace = if facts.namespaced { "/namespaces/default" } else { "" };
        let collection = format!("{group}/{api_version}{namespace}/{}", facts.resource);
        let path = format!("{collection}/{}", object.name());
        if writer.post(&collection, object.into()).await.code != 201 {
            continue;
        }
        let nothing = || value!({});
        let labelled = value!({"metadata": {"labels": {"again": "yes"}}});
        for step in [nothing(), labelled] {
            writer.patch(&path, "merge-patch+json", step).await.expect(200);
            let knows = writer.patch(&path, "merge-patch+json", nothing()).await.expect(200);
            let reads = reader.patch(&path, "merge-patch+json", nothing()).await.expect(200);
            assert_eq!(knows.json(), reads.json(), "{path}");
            assert_eq!(knows.bytes, reader.get(&path).await.expect(200).bytes, "{path}");
        }
        let selected = format!("{collection}?labelSelector=again%3Dyes");
        let lists = [writer.get(&selected).await, reader.get(&selected).await];
        let items = lists.map(|list| list.expect(200).json().get("items").cloned());
        assert_eq!(items[0], items[1], "{path}");
        let found = items[0].as_ref().and_then(Value::as_array);
        assert!(found.is_some_and(|list| !list.is_empty()), "{path}");
        compared.insert(kind);
    }
    assert!(compared.len() > 30, "only these could be made: {compared:?}");
}

/// A server may all that kubelets serve, as they find out here, and nothing at a server that a Node says to be its kubelet.
#[tokio::test]
async fn what_servers_are_known_by_to_kubelets_opens_kubelets_only() {
    let api = Api::starting_with(Memory::new(), |_| {});
    api.server.ready().await;
    let at_kubelets = api.called_by(keelson_pki::layout::AT_KUBELETS, &["system:authenticated"]);
    let may = async |verb: &str, resource: &str, sub: &str| {
        let asked = value!({"verb": verb, "resource": resource, "subresource": sub, "version": "v1", "name": "n1"});
        let review = value!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked}});
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let answer = at_kubelets.post(path, review).await.expect(201).json();
        answer.at(&["status", "allowed"]).and_then(Value::as_bool).unwrap()
    };
    for (verb, sub) in [
        ("get", "proxy"),
        ("create", "proxy"),
        ("get", "log"),
        ("get", "stats"),
        ("get", "metrics"),
        ("get", "pods"),
        ("get", "configz"),
        ("get", "healthz"),
        ("get", "statusz"),
        ("create", "checkpoint"),
    ] {
        assert!(may(verb, "nodes", sub).await, "{verb} nodes/{sub}");
    }
    for (verb, resource) in [
        ("get", "nodes"),
        ("get", "secrets"),
        ("create", "pods"),
        ("list", "pods"),
    ] {
        assert!(!may(verb, resource, "").await, "{verb} {resource}");
    }
    at_kubelets.get("/metrics").await.expect(403);
    at_kubelets.get("/api/v1/secrets").await.expect(403);
}

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";

async fn named(store: &Arc<Memory>, host: &str) -> Api {
    let api = Api::starting_with(store.clone(), |config| config.host = Some(host.into()));
    api.server.ready().await;
    api
}

fn holders(answer: &Answer) -> Vec<(String, String)> {
    let list = answer.json();
    let text = |lease: &Value, path: &[&str]| lease.at(path).and_then(Value::as_str).unwrap_or_default().to_string();
    let leases = list.at(&["items"]).and_then(Value::as_array).unwrap().iter();
    leases
        .map(|lease| {
            let host = text(lease, &["metadata", "labels", "kubernetes.io/hostname"]);
            (host, text(lease, &["spec", "holderIdentity"]))
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn each_server_has_a_lease_while_it_is_there_and_what_nobody_renews_goes_after_an_hour() {
    let _time = keelson_clock::simulate("2026-01-01T00:00:00Z".parse().unwrap());
    let store = Memory::new();
    let found = format!("{LEASES}?labelSelector=apiserver.kubernetes.io/identity%3Dkube-apiserver");
    let first = named(&store, "vm").await;
    let second = named(&store, "other").await;
    let both = first.until(&found, |answer| holders(answer).len() == 2).await;
    let hosts: BTreeSet<String> = holders(&both).into_iter().map(|(host, _)| host).collect();
    assert_eq!(hosts, ["other", "vm"].map(String::from).into());
    let path = format!("{LEASES}/apiserver-wlv32tlttr4jl3gtroqexyxapa");
    let lease = first.get(&path).await.expect(200);
    assert_eq!(
        lease.json().at(&["spec", "leaseDurationSeconds"]),
        Some(&Value::from(3600))
    );
    assert!(
        lease
            .str(&["spec", "holderIdentity"])
            .starts_with("apiserver-wlv32tlttr4jl3gtroqexyxapa_")
    );
    assert_eq!(
        lease.str(&["metadata", "labels", "apiserver.kubernetes.io/identity"]),
        "kube-apiserver"
    );
    // It is renewed, and made again if somebody takes it away.
    let renewed = lease.str(&["spec", "renewTime"]);
    first
        .until(&path, |answer| answer.str(&["spec", "renewTime"]) > renewed)
        .await;
    first.delete(&path).await.expect(200);
    first.until(&path, |answer| answer.code == 200).await;
    // A restart is another holder of the same lease.
    let before = first.get(&path).await.str(&["spec", "holderIdentity"]);
    first.server.shutdown();
    let again = named(&store, "vm").await;
    again
        .until(&path, |answer| {
            answer.code == 200 && answer.str(&["spec", "holderIdentity"]) != before
        })
        .await;
    // Who leaves takes the lease along; who is killed doesn't, and is forgotten within two hours.
    second.server.leave().await;
    again.until(&found, |answer| holders(answer).len() == 1).await;
    let killed = named(&store, "other").await;
    again.until(&found, |answer| holders(answer).len() == 2).await;
    killed.server.shutdown();
    drop(killed);
    tokio::time::sleep(std::time::Duration::from_secs(3500)).await;
    assert_eq!(holders(&again.get(&found).await).len(), 2);
    tokio::time::sleep(std::time::Duration::from_secs(2 * 3600 + 200 - 3500)).await;
    let left = again.until(&found, |answer| holders(answer).len() == 1).await;
    assert_eq!(holders(&left)[0].0, "vm");
    again.server.leave().await;
    again.get(&path).await.expect(404);
}
