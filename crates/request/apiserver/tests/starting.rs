//! A server at the first moment of its start: what isn't read yet refuses or is waited for, and nothing slips through.

#![allow(clippy::unwrap_used)]

mod harness;

use futures::future::join_all;
use harness::Api;
use keelson_api::{Value, value};
use keelson_store::Memory;
use std::time::Duration;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const REGISTRATION: &str = "/apis/admissionregistration.k8s.io/v1";
const THINGS: &str = "/apis/x.example.com/v1/namespaces/default/things";

fn map(name: &str) -> Value {
    value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
}

/// Nobody may make config maps.
fn deny_by_webhook() -> Value {
    let rule =
        value!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]});
    webhook(
        rule,
        value!({"matchLabels": {"kubernetes.io/metadata.name": "default"}}),
    )
}

/// Its server is nowhere, and without it nothing is admitted.
fn webhook(rule: Value, namespaces: Value) -> Value {
    value!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "deny"},
        "webhooks": [{
            "name": "deny.example.com", "failurePolicy": "Fail", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": "https://127.0.0.1:1/"}, "timeoutSeconds": 1,
            "rules": [rule], "namespaceSelector": namespaces,
        }],
    })
}

fn deny_by_policy() -> [Value; 2] {
    let policy = value!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "deny"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"],
            }], "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}},
            "validations": [{"expression": "false", "message": "nobody"}],
        },
    });
    let binding = value!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "deny"}, "spec": {"policyName": "deny", "validationActions": ["Deny"]},
    });
    [policy, binding]
}

/// A hundred writes within the start of a server over what `prepare` left in the store.
async fn none_is_admitted(prepare: impl AsyncFnOnce(&Api)) {
    let store = Memory::new();
    let before = Api::starting(store.clone());
    before.server.ready().await;
    prepare(&before).await;
    drop(before);
    for round in 0..5 {
        let api = Api::starting(store.clone());
        let names: Vec<String> = (0..20).map(|n| format!("m{round}-{n}")).collect();
        let answers = join_all(names.iter().map(|name| api.post(MAPS, map(name)))).await;
        for answer in answers {
            let refused = matches!(answer.code, 403 | 422 | 500);
            assert!(refused, "{} {}", answer.code, String::from_utf8_lossy(&answer.bytes));
        }
    }
}

#[tokio::test]
async fn webhooks_hold_from_the_first_request_on() {
    none_is_admitted(async |api| {
        drop(
            api.post(
                &format!("{REGISTRATION}/validatingwebhookconfigurations"),
                deny_by_webhook(),
            )
            .await
            .expect(201),
        )
    })
    .await;
}

#[tokio::test]
async fn policies_hold_from_the_first_request_on() {
    none_is_admitted(async |api| {
        let [policy, binding] = deny_by_policy();
        api.post(&format!("{REGISTRATION}/validatingadmissionpolicies"), policy)
            .await
            .expect(201);
        api.post(&format!("{REGISTRATION}/validatingadmissionpolicybindings"), binding)
            .await
            .expect(201);
    })
    .await;
}

#[tokio::test]
async fn a_custom_resource_that_exists_is_never_said_not_to() {
    let store = Memory::new();
    let before = Api::starting(store.clone());
    before.server.ready().await;
    let definition = value!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.x.example.com"},
        "spec": {
            "group": "x.example.com", "scope": "Namespaced",
            "names": {"kind": "Thing", "plural": "things"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
        },
    });
    before
        .post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
        .await
        .expect(201);
    before.until(THINGS, |a| a.code == 200).await;
    let thing = value!({"apiVersion": "x.example.com/v1", "kind": "Thing", "metadata": {"name": "t"}});
    before.post(THINGS, thing).await.expect(201);
    drop(before);

    let api = Api::starting(store);
    let mut early = 0;
    for path in [
        format!("{THINGS}/t"),
        THINGS.into(),
        "/apis/x.example.com/v1".into(),
        "/apis/x.example.com".into(),
    ] {
        loop {
            let answer = api.get(&path).await;
            if answer.code == 200 {
                break;
            }
            early += 1;
            answer.expect(503);
            tokio::task::yield_now().await;
        }
    }
    println!("{early} requests came before the definitions");
    api.server.ready().await;
    // Now what isn't there isn't there.
    api.get("/apis/y.example.com/v1/things").await.expect(404);
}

/// Nodes write the whole time, also what nobody on this server reads: a write looks whether it is in a cache and begins none, and
/// a start that waited for one would never end.
#[tokio::test]
async fn writes_meanwhile_do_not_hold_a_start_up() {
    const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let store = Memory::new();
    let before = Api::starting(store.clone());
    before.server.ready().await;
    let lease = value!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "n"}});
    before.post(LEASES, lease).await.expect(201);
    drop(before);
    let api = Api::starting(store);
    let renewed = value!({"spec": {"holderIdentity": "n"}});
    api.patch(&format!("{LEASES}/n"), "merge-patch+json", renewed)
        .await
        .expect(200);
    let ready = tokio::time::timeout(Duration::from_secs(20), api.server.ready()).await;
    assert!(ready.is_ok(), "waiting for {:?}", api.server.state().engine.unready());
}

/// The pod behind a webhook may be one that runs only when others have begun: they do, and what the webhook refused is made when it can
/// be.
#[tokio::test]
async fn a_webhook_that_refuses_what_every_cluster_has_does_not_hold_a_start_up() {
    const VIEW: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/view";
    let webhooks = format!("{REGISTRATION}/validatingwebhookconfigurations");
    let store = Memory::new();
    let before = Api::starting(store.clone());
    before.server.ready().await;
    before.delete(VIEW).await.expect(200);
    let rule = value!({"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*"]});
    before.post(&webhooks, webhook(rule, value!({}))).await.expect(201);
    drop(before);
    let api = Api::starting(store);
    let ready = tokio::time::timeout(Duration::from_secs(30), api.server.ready()).await;
    assert!(ready.is_ok());
    api.get(VIEW).await.expect(404);
    api.delete(&format!("{webhooks}/deny")).await.expect(200);
    api.until(VIEW, |answer| answer.code == 200).await;
}

/// What that webhook leaves alone is made meanwhile: the pod behind it may need that, too.
#[tokio::test]
async fn a_webhook_that_refuses_some_of_it_does_not_hold_the_rest_up() {
    const VIEW: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/view";
    const SERVICE: &str = "/apis/apiregistration.k8s.io/v1/apiservices/v1.apps";
    let store = Memory::new();
    let before = Api::starting(store.clone());
    before.server.ready().await;
    before.until(SERVICE, |answer| answer.code == 200).await;
    before.delete(VIEW).await.expect(200);
    before.delete(SERVICE).await.expect(200);
    let rule = value!({"apiGroups": ["rbac.authorization.k8s.io"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*"]});
    let webhooks = format!("{REGISTRATION}/validatingwebhookconfigurations");
    before.post(&webhooks, webhook(rule, value!({}))).await.expect(201);
    drop(before);
    let api = Api::starting(store);
    api.until(SERVICE, |answer| answer.code == 200).await;
    api.get(VIEW).await.expect(404);
}
