//! What machines are asked in an upgrade of all, and the programs for it: who asks, who reads, and by which paths.

#![allow(clippy::unwrap_used)]

mod harness;

use futures::FutureExt;
use futures::future::BoxFuture;
use harness::Api;
use keelson_api::value;
use keelson_apiserver::request::{Body, UserInfo};
use keelson_apiserver::upgrades::{Asked, PATH, PIECE, Refused, Told, Upgrades};
use keelson_store::Memory;
use parking_lot::Mutex;
use std::sync::Arc;
use tower::ServiceExt;

/// Notes what was asked.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<Asked>>>);

impl Notes {
    fn taken(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl Upgrades for Notes {
    fn answer(&self, asked: Asked) -> BoxFuture<'static, Result<Told, Refused>> {
        self.0.lock().push(asked.clone());
        async move {
            match asked {
                Asked::Piece { at: 0, .. } => Ok(Told::Bytes("a piece".into())),
                Asked::Piece { .. } => Err(Refused::Unknown("it isn't here".into())),
                Asked::Give { revision: 1, .. } => Err(Refused::Met("another was faster".into())),
                Asked::Take { size: 1, .. } => Err(Refused::Wrong("it is larger".into())),
                Asked::Forget => Err(Refused::Failed(anyhow::anyhow!("the disk fails"))),
                _ => Ok(Told::Json(serde_json::json!({"told": true}))),
            }
        }
        .boxed()
    }
}

async fn served() -> (Api, Notes) {
    let notes = Notes::default();
    let keeps = notes.clone();
    let api = Api::starting_with(Memory::new(), |config| config.upgrades = Some(Arc::new(keeps)));
    api.server.ready().await;
    (api, notes)
}

fn programs(below: &str) -> String {
    format!("{PATH}/programs/{}{below}", "ab".repeat(32))
}

#[tokio::test]
async fn requests_are_named_by_their_paths_and_programs_by_their_sums() {
    let (api, notes) = served().await;
    let program = "ab".repeat(32);
    let call = async |method: &str, path: &str, body: &str| {
        let body = body.as_bytes().to_vec();
        api.call(method, path, "application/octet-stream", "", body).await.code
    };
    let order = format!("{PATH}/order");
    assert_eq!(call("GET", &order, "").await, 200);
    assert_eq!(call("PUT", &format!("{order}?revision=7"), "an order").await, 200);
    assert_eq!(call("PUT", &format!("{order}?revision=1"), "").await, 409);
    assert_eq!(call("GET", &programs(""), "").await, 200);
    assert_eq!(call("GET", &programs("?at=0"), "").await, 200);
    assert_eq!(call("GET", &programs("?at=5"), "").await, 404);
    assert_eq!(call("PUT", &programs("?at=3&size=9"), "bytes").await, 200);
    assert_eq!(call("PUT", &programs("?at=0&size=1"), "bytes").await, 400);
    assert_eq!(call("DELETE", &format!("{PATH}/programs"), "").await, 503);
    let asked = notes.taken();
    assert_eq!(asked.len(), 9);
    let given = Asked::Give {
        revision: 7,
        order: "an order".into(),
    };
    let taken = Asked::Take {
        program: program.clone(),
        at: 3,
        size: 9,
        piece: "bytes".into(),
    };
    assert!(
        asked[0] == Asked::Order && asked[1] == given && asked[3] == Asked::Standing { program } && asked[6] == taken
    );
    let too_long = "x".repeat(PIECE + 1);
    assert_eq!(call("PUT", &programs("?at=0&size=9"), &too_long).await, 413);
    for (method, path) in [
        ("PUT", order.clone()),
        ("PUT", format!("{order}?revision=-1")),
        ("POST", order.clone()),
        ("GET", format!("{PATH}/programs/..%2F..%2Fpki%2Fca.key?at=0")),
        ("GET", format!("{PATH}/programs/?at=0")),
        ("GET", programs("").to_uppercase().replace(&PATH.to_uppercase(), PATH)),
        ("PUT", programs("?at=0")),
        ("GET", programs("?at=x")),
        ("GET", PATH.to_owned()),
        ("GET", format!("{PATH}s/order")),
    ] {
        assert_eq!(call(method, &path, "").await, 404, "{method} {path}");
    }
    assert!(notes.taken().is_empty());
    // Where nobody keeps any there is nothing of the kind.
    let alone = Api::starting_with(Memory::new(), |_| {});
    alone.server.ready().await;
    alone.get(&order).await.expect(404);
}

/// A grant for all paths makes nobody's program run as root on all machines.
#[tokio::test]
async fn machines_read_and_only_administrators_ask() {
    let (api, notes) = served().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let all = value!({"metadata": {"name": "all"}, "rules": [{"nonResourceURLs": ["*"], "verbs": ["*"]},
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]});
    api.post(&format!("{rbac}/clusterroles"), all).await.expect(201);
    let binding = value!({"metadata": {"name": "all"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "all"},
        "subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:authenticated"}]});
    api.post(&format!("{rbac}/clusterrolebindings"), binding)
        .await
        .expect(201);
    let asked = [
        ("GET", format!("{PATH}/order"), true),
        ("GET", programs("?at=0"), true),
        ("GET", programs(""), false),
        ("PUT", format!("{PATH}/order?revision=0"), false),
        ("PUT", programs("?at=0&size=9"), false),
        ("DELETE", format!("{PATH}/programs"), false),
    ];
    let ana = api.called_by("ana", &["system:authenticated"]);
    ana.until("/metrics", |a| a.code == 200).await;
    for (method, path, _) in &asked {
        ana.call(method, path, "", "", Vec::new()).await.expect(403);
    }
    // Nor by acting as one.
    for (method, path, _) in &asked {
        let request = http::Request::builder().method(*method).uri(path);
        let request = request
            .header("impersonate-user", "eve")
            .header("impersonate-group", "system:masters");
        let service = ana.server.service(UserInfo::new("ana", &["system:authenticated"]));
        let answer = service.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status().as_u16(), 403, "{method} {path}");
    }
    let node = ana.called_by("system:node:n1", &["system:nodes", "system:authenticated"]);
    for (method, path, reads) in &asked {
        let code = node.call(method, path, "", "", Vec::new()).await.code;
        assert_eq!(code, if *reads { 200 } else { 403 }, "{method} {path}");
    }
    // The server itself, by way of a Node that says that it is its kubelet.
    let passed_on = node.called_by(keelson_pki::layout::AT_KUBELETS, &["system:authenticated"]);
    for (method, path, _) in &asked {
        passed_on.call(method, path, "", "", Vec::new()).await.expect(403);
    }
    assert_eq!(notes.taken().len(), 2, "what is refused is asked of nobody");
}
