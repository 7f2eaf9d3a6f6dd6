//! Tokens of service accounts: those that stand in secrets, and for whom a node may ask for them.

#![recursion_limit = "256"]
#![allow(clippy::unwrap_used)]

mod harness;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use harness::Api;
use keelson_api::{Value, value};
use keelson_apiserver::Body;
use keelson_pki::ServiceAccountKeys;
use keelson_pki::jwt::LegacyClaims;
use keelson_store::Memory;

const NS: &str = "/api/v1/namespaces/default";

struct Serving {
    api: Api,
    keys: ServiceAccountKeys,
}

async fn serving() -> Serving {
    let keys = ServiceAccountKeys::generate().unwrap();
    let given = keys.clone();
    let api = Api::starting_with(Memory::new(), |config| {
        *config = keelson_apiserver::Config {
            publish_kubernetes_service: false,
            ..keelson_apiserver::Config::new(given)
        };
        config.admission = keelson_apiserver::admission::Options {
            enable: vec!["NodeRestriction".into()],
            ..Default::default()
        }
        .resolve()
        .unwrap();
    });
    api.server.ready().await;
    Serving { api, keys }
}

impl Serving {
    /// An account, with its UID.
    async fn account(&self, name: &str) -> String {
        let account = value!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
        let made = self
            .api
            .post(&format!("{NS}/serviceaccounts"), account)
            .await
            .expect(201);
        made.str(&["metadata", "uid"])
    }

    /// A secret with a token for what is claimed.
    async fn secret(&self, claims: &LegacyClaims) -> String {
        let token = self.keys.sign_legacy(claims).unwrap();
        let secret = value!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": {"name": claims.secret.as_str(), "annotations": {"kubernetes.io/service-account.name": claims.account.as_str()}},
            "data": {"token": STANDARD.encode(&token)}});
        self.api.post(&format!("{NS}/secrets"), secret).await.expect(201);
        token
    }

    async fn refusal(&self, token: &str) -> String {
        let review =
            value!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
        let answer = self
            .api
            .post("/apis/authentication.k8s.io/v1/tokenreviews", review)
            .await;
        let status = answer.expect(201).json().get("status").cloned().unwrap();
        assert_ne!(status.get("authenticated"), Some(&Value::Bool(true)));
        status.get("error").and_then(Value::as_str).unwrap().to_string()
    }
}

/// A request from outside; with the warning that came with the answer.
async fn outside(api: &Api, token: &str) -> (u16, String) {
    let request =
        http::Request::get("/api/v1/namespaces/default/pods").header("authorization", format!("Bearer {token}"));
    let answer = api.server.handle().handle(request.body(Body::empty()).unwrap()).await;
    let warning = answer.headers().get("warning").and_then(|w| w.to_str().ok());
    (answer.status().as_u16(), warning.unwrap_or_default().to_string())
}

#[tokio::test]
async fn a_token_in_a_secret_counts_while_the_secret_has_it() {
    let s = serving().await;
    let uid = s.account("robot").await;
    let claims = LegacyClaims::new("default", "robot", &uid, "robot-token");
    let token = s.secret(&claims).await;
    // Known, and allowed nothing.
    assert_eq!(outside(&s.api, &token).await, (403, String::new()));
    let path = format!("{NS}/secrets/robot-token");
    let today = keelson_clock::now().strftime("%Y-%m-%d").to_string();
    let mut noted = String::new();
    // Nobody waits for the note.
    for _ in 0..200 {
        let used = s.api.get(&path).await.expect(200);
        noted = used
            .str(&["metadata", "labels", "kubernetes.io/legacy-token-last-used"])
            .to_string();
        if !noted.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(noted, today);
    let page = s.api.get("/metrics").await.expect(200);
    let page = String::from_utf8_lossy(&page.bytes).into_owned();
    assert!(
        page.contains("\nserviceaccount_legacy_manual_token_uses_total 1\n"),
        "{page}"
    );

    // Each with a secret of its own, for what is known is remembered for a while.
    let refused = async |change: fn(&mut LegacyClaims)| {
        let mut claims = LegacyClaims::new("default", "robot", &uid, "robot-token");
        change(&mut claims);
        s.refusal(&s.keys.sign_legacy(&claims).unwrap()).await
    };
    assert_eq!(
        refused(|_| ()).await,
        "Token does not match server's copy",
        "signed anew it is another"
    );
    assert_eq!(
        refused(|c| c.secret = "gone".into()).await,
        "Token has been invalidated"
    );
    assert_eq!(
        refused(|c| c.sub = "system:serviceaccount:kube-system:robot".into()).await,
        "sub claim is invalid"
    );
    let foreign = refused(|c| c.aud = vec!["others".into()]).await;
    assert!(foreign.contains("token audiences [\"others\"] is invalid"), "{foreign}");

    let listed = value!({"secrets": [{"name": "auto"}]});
    s.api
        .patch(&format!("{NS}/serviceaccounts/robot"), "merge-patch+json", listed)
        .await
        .expect(200);
    let auto = s.secret(&LegacyClaims::new("default", "robot", &uid, "auto")).await;
    let (code, warning) = outside(&s.api, &auto).await;
    assert!(
        code == 403 && warning.contains("instead of auto-generated secret-based tokens"),
        "{warning}"
    );

    let mut marked = s.secret(&LegacyClaims::new("default", "robot", &uid, "marked")).await;
    let label = value!({"metadata": {"labels": {"kubernetes.io/legacy-token-invalid-since": "2026-01-31"}}});
    s.api
        .patch(&format!("{NS}/secrets/marked"), "merge-patch+json", label)
        .await
        .expect(200);
    let why = s.refusal(&marked).await;
    assert!(
        why.starts_with(
            "the token in secret default/marked for service account default/robot has been marked invalid."
        ),
        "{why}"
    );
    assert_eq!(outside(&s.api, &marked).await.0, 401);

    // Another account of the same name is another.
    marked = s.secret(&LegacyClaims::new("default", "robot", &uid, "late")).await;
    s.api
        .call(
            "DELETE",
            &format!("{NS}/serviceaccounts/robot"),
            "",
            "application/json",
            vec![],
        )
        .await
        .expect(200);
    assert_eq!(s.refusal(&marked).await, "serviceaccounts \"robot\" not found");
    let other = s.account("robot").await;
    assert_eq!(
        s.refusal(&marked).await,
        format!("ServiceAccount UID ({other}) does not match claim ({uid})")
    );
}

#[tokio::test]
async fn since_when_tokens_are_tracked_is_noted_and_mended() {
    let s = serving().await;
    let path = "/api/v1/namespaces/kube-system/configmaps/kube-apiserver-legacy-service-account-token-tracking";
    let today = keelson_clock::now().strftime("%Y-%m-%d").to_string();
    s.api
        .until(path, |a| a.code == 200 && a.str(&["data", "since"]) == today)
        .await;
    let wrong = value!({"data": {"since": "yesterday"}});
    s.api.patch(path, "merge-patch+json", wrong).await.expect(200);
    s.api.until(path, |a| a.str(&["data", "since"]) == today).await;
    // A date that is one is another server's.
    let earlier = value!({"data": {"since": "2026-01-31"}});
    s.api.patch(path, "merge-patch+json", earlier).await.expect(200);
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert_eq!(s.api.get(path).await.expect(200).str(&["data", "since"]), "2026-01-31");
}

#[tokio::test]
async fn a_node_asks_for_tokens_that_its_pods_name() {
    let s = serving().await;
    s.account("robot").await;
    s.api
        .post(
            "/api/v1/nodes",
            value!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}),
        )
        .await
        .expect(201);
    let driver = value!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": "d.example.org"},
        "spec": {"tokenRequests": [{"audience": "vault"}]}});
    s.api
        .post("/apis/storage.k8s.io/v1/csidrivers", driver)
        .await
        .expect(201);
    let pod = value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
        "nodeName": "n1", "serviceAccountName": "robot", "automountServiceAccountToken": false,
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [
            {"name": "a", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "audience": "sts"}}]}},
            {"name": "b", "csi": {"driver": "d.example.org"}},
        ],
    }});
    let made = s.api.post(&format!("{NS}/pods"), pod).await.expect(201);
    let uid = made.str(&["metadata", "uid"]);
    let lost = value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lost"}, "spec": {
        "nodeName": "n1", "serviceAccountName": "robot", "automountServiceAccountToken": false,
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "missing"}}],
    }});
    let lost = s
        .api
        .post(&format!("{NS}/pods"), lost)
        .await
        .expect(201)
        .str(&["metadata", "uid"]);
    let s = Serving {
        api: s.api.called_by("system:node:n1", &["system:nodes"]),
        keys: s.keys,
    };
    let ask = async |pod: &str, uid: &str, audiences: &[&str]| {
        let audiences: Vec<Value> = audiences.iter().map(|a| Value::from(*a)).collect();
        let request = value!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
            "audiences": audiences, "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}}});
        for _ in 0..500 {
            // The node authorizer hears of the binding a moment later.
            let answer = s
                .api
                .post(&format!("{NS}/serviceaccounts/robot/token"), request.clone())
                .await;
            if !String::from_utf8_lossy(&answer.bytes).contains("no relationship found") {
                return answer;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("the node authorizer knows nothing of the pod");
    };
    ask("p", &uid, &["sts"]).await.expect(201);
    ask("p", &uid, &["vault"]).await.expect(201);
    let refused =
        async |pod: &str, uid: &str, audiences: &[&str]| ask(pod, uid, audiences).await.expect(403).str(&["message"]);
    let said = refused("p", &uid, &["elsewhere"]).await;
    assert!(
        said.ends_with("system:node:n1 is not authorized to request tokens for audience \"elsewhere\""),
        "{said}"
    );
    // The API server's own audience is one of those that a pod has to name.
    let said = refused("p", &uid, &[]).await;
    assert!(
        said.ends_with("is not authorized to request tokens for audience \"\""),
        "{said}"
    );
    let said = refused("p", &uid, &["sts", "vault"]).await;
    assert!(said.ends_with("node may only request 0 or 1 audiences"), "{said}");
    let said = refused("lost", &lost, &["sts"]).await;
    assert!(
        said.ends_with("error validating audience \"sts\": persistentvolumeclaim \"missing\" not found"),
        "{said}"
    );
    // Somebody may allow more.
    let role = value!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "more"},
        "rules": [{"apiGroups": [""], "resources": ["elsewhere"], "resourceNames": ["robot"], "verbs": ["request-serviceaccounts-token-audience"]}]});
    let bound = value!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "more"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "more"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"}]});
    let s = Serving {
        api: s.api.called_by("tester", &["system:masters"]),
        keys: s.keys,
    };
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    s.api.post(&format!("{rbac}/clusterroles"), role).await.expect(201);
    s.api
        .post(&format!("{rbac}/clusterrolebindings"), bound)
        .await
        .expect(201);
    let node = s.api.called_by("system:node:n1", &["system:nodes"]);
    let request = value!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
        "audiences": ["elsewhere"], "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid.as_str()}}});
    for _ in 0..500 {
        let answer = node
            .post(&format!("{NS}/serviceaccounts/robot/token"), request.clone())
            .await;
        if answer.code == 201 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("what is allowed is refused");
}
