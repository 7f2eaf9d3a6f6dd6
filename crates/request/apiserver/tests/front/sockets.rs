//! Watches by WebSocket from the network: who may open one, and who ends it.

use super::harness::socket::{ask, event, next, opened, request};
use super::{Front, send};
use keelson_api::value;
use keelson_apiserver::Body;
use keelson_pki::CertSpec;
use keelson_pki::revocation::{NAME, Record};
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::Message;

const WATCH: &str = "/api/v1/namespaces?watch=true&timeoutSeconds=600";

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_by_socket_ends_with_what_it_came_by() {
    let front = Front::start("socket-revoked").await;
    let ana = front.target(Some(&CertSpec::client("ana", Some("system:masters"))));
    let mut socket = opened(ana.send(request(WATCH)).await.unwrap()).await;
    event(&mut socket).await;
    let mut others = opened(front.admin().send(request(WATCH)).await.unwrap()).await;
    let record = Record::of_name("ana", jiff::Timestamp::now());
    let mut map =
        value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": "kube-system"}});
    map.set_at(&["data", &record.key()], record.to_json().unwrap().as_str());
    front
        .make("POST", "/api/v1/namespaces/kube-system/configmaps", &map)
        .await;
    let began = Instant::now();
    while let Some(message) = next(&mut socket).await {
        assert!(message.is_text(), "{message:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(front.admin().send(request(WATCH)).await.unwrap().status(), 101);
    // What came by something else goes on.
    let later = value!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "later"}});
    front.make("POST", "/api/v1/namespaces", &later).await;
    while event(&mut others).await.at(&["object", "metadata", "name"]) != Some(&"later".into()) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browsers_token_is_a_sub_protocol_and_a_stopped_listener_says_goodbye() {
    let front = Front::start("socket-token").await;
    let account = value!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
    front
        .make("POST", "/api/v1/namespaces/default/serviceaccounts", &account)
        .await;
    let binding = value!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "robot"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "robot", "namespace": "default"}]});
    front
        .make(
            "POST",
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            &binding,
        )
        .await;
    let review =
        serde_json::to_vec(&value!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"})).unwrap();
    let path = "/api/v1/namespaces/default/serviceaccounts/robot/token";
    let (code, text) = send(&front.admin(), "POST", path, &[], review).await;
    assert_eq!(code, 201, "{text}");
    let token: keelson_api::Value = serde_json::from_str(&text).unwrap();
    let token = token.at(&["status", "token"]).unwrap().as_str().unwrap().to_string();
    use base64::Engine;
    let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&token);
    let shown = format!("base64url.bearer.authorization.k8s.io.{encoded}");

    let nobody = front.target(None);
    let opens = async |protocols: &str| {
        let asked = ask(WATCH).header("sec-websocket-protocol", protocols);
        nobody.send(asked.body(Body::empty()).unwrap()).await.unwrap()
    };
    // The answer needs one that isn't the token.
    assert_eq!(opens(&shown).await.status(), 401);
    assert_eq!(opens(&format!("{shown},{shown},mine")).await.status(), 401);
    assert_eq!(
        opens("base64url.bearer.authorization.k8s.io.!,mine").await.status(),
        401
    );
    let answer = opens(&format!("{shown}, mine")).await;
    assert_eq!(answer.headers()["sec-websocket-protocol"], "mine");
    let mut socket = opened(answer).await;
    event(&mut socket).await;
    front.stop.cancel();
    loop {
        match next(&mut socket).await {
            Some(Message::Text(_)) => {}
            Some(Message::Close(Some(end))) => break assert_eq!(u16::from(end.code), 1000),
            other => panic!("{other:?}"),
        }
    }
}
