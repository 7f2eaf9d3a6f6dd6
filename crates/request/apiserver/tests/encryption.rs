//! A server whose store is sealed: what stands in it, what it answers when a value can't be opened, and what administrators ask.
#![allow(clippy::unwrap_used)]

mod harness;

use harness::Api;
use keelson_api::{Value, value};
use keelson_apiserver::encryption::{ROOT, place};
use keelson_seal::{Sealing, Source};
use keelson_store::{Expect, Memory, Store};
use std::path::Path;
use std::sync::Arc;

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn server(store: &Arc<dyn Store>, source: Source, keys: &Path) -> Api {
    let sealing = Sealing::open(store.clone(), source, place(keys.into(), ROOT))
        .await
        .unwrap();
    let sealed = sealing.store();
    let api = Api::starting_with(sealed, |config| config.sealing = Some(sealing));
    api.server.ready().await;
    api
}

fn secret(name: &str, text: &str) -> Value {
    value!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"key": text}})
}

async fn stored(store: &Arc<dyn Store>, key: &str) -> Vec<u8> {
    store
        .get(key.as_bytes(), None)
        .await
        .unwrap()
        .kv
        .unwrap()
        .value
        .to_vec()
}

async fn overwrite(store: &Arc<dyn Store>, key: &str, value: &[u8]) {
    let (key, value) = (key.as_bytes().to_vec(), value.to_vec());
    store.put(key.into(), value.into(), Expect::Any, None).await.unwrap();
}

fn config(file: &Path, resources: &str, key: &str, byte: u8) {
    use base64::Engine;
    let secret = base64::engine::general_purpose::STANDARD.encode([byte; 32]);
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: {resources}\n  providers:\n  - aesgcm: {{keys: [{{name: {key}, secret: {secret}}}]}}\n  - identity: {{}}\n"
    );
    std::fs::write(file, text).unwrap();
}

#[tokio::test]
async fn secrets_are_sealed_config_maps_are_not_and_a_restart_opens_them() {
    let keys = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Memory::new();
    {
        // A cluster from before there was a key.
        let api = Api::starting(store.clone());
        api.server.ready().await;
        api.post(SECRETS, secret("before", "plain text")).await.expect(201);
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(text(&stored(&store, "/registry/secrets/default/before").await).contains("plain text"));
    {
        let api = server(&store, Source::Own, keys.path()).await;
        api.post(SECRETS, secret("after", "sealed text")).await.expect(201);
        let map = value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "map"}, "data": {"key": "open text"}});
        api.post(CONFIG_MAPS, map).await.expect(201);
        api.until("/keelson/secrets", |a| {
            a.json().at(&["underWay"]) == Some(&Value::from(false))
        })
        .await;
        for name in ["before", "after"] {
            let sealed = stored(&store, &format!("/registry/secrets/default/{name}")).await;
            assert!(sealed.starts_with(b"k8s:enc:secretbox:v1:key1:"), "{name}");
            assert!(!text(&sealed).contains("text"), "{name}");
        }
        assert!(text(&stored(&store, "/registry/configmaps/default/map").await).contains("open text"));
    }
    let api = server(&store, Source::Own, keys.path()).await;
    let data = api.get(&format!("{SECRETS}/before")).await.expect(200);
    assert_eq!(data.str(&["data", "key"]), "cGxhaW4gdGV4dA==");
    let changed = value!({"stringData": {"key": "changed"}});
    api.patch(&format!("{SECRETS}/after"), "merge-patch+json", changed)
        .await
        .expect(200);
    assert!(
        stored(&store, "/registry/secrets/default/after")
            .await
            .starts_with(b"k8s:enc:secretbox:v1:key1:")
    );

    let name = api
        .call("POST", "/keelson/secrets/rotate", "", "", Vec::new())
        .await
        .expect(200);
    assert_eq!(name.json(), Value::from("key2"));
    let done = api
        .until("/keelson/secrets", |a| {
            a.json().at(&["underWay"]) == Some(&Value::from(false))
        })
        .await;
    assert_eq!(done.json().at(&["stored", "stale"]), Some(&Value::from(0)));
    for name in ["before", "after"] {
        let sealed = stored(&store, &format!("/registry/secrets/default/{name}")).await;
        assert!(sealed.starts_with(b"k8s:enc:secretbox:v1:key2:"), "{name}");
    }
    api.get(&format!("{SECRETS}/before")).await.expect(200);
    let page = String::from_utf8(api.get("/metrics").await.expect(200).bytes.to_vec()).unwrap();
    assert!(page.contains("transformer_prefix=\"k8s:enc:secretbox:v1:\""), "{page}");
    assert!(
        !page.contains("resource=\"configmaps\",status=\"OK\",transformation_type"),
        "who isn't sealed doesn't pay"
    );
}

#[tokio::test]
async fn a_value_that_cannot_be_opened_is_that_objects_error_and_is_never_lost() {
    let keys = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Memory::new();
    let api = server(&store, Source::Own, keys.path()).await;
    api.post(SECRETS, secret("good", "x")).await.expect(201);
    let (key, nonsense) = ("/registry/secrets/default/bad", b"k8s:enc:secretbox:v1:lost:nonsense");
    overwrite(&store, key, nonsense).await;
    let bad = format!("{SECRETS}/bad");
    let why = "ResourceVersion: 0, AdditionalErrorMsg: data from the storage is not transformable revision=0: no matching key was found for the provided Secretbox transformer";

    let one = api.until(&bad, |a| a.code != 404).await;
    assert_eq!((one.code, one.str(&["reason"])), (500, "InternalError".into()));
    let told = format!("StorageError: corrupt object, Code: 7, Key: /secrets/default/bad, {why}");
    assert_eq!(one.str(&["message"]), format!("Internal error occurred: {told}"));
    api.get(&format!("{SECRETS}/good")).await.expect(200);
    api.get(CONFIG_MAPS).await.expect(200);

    let all = api.get(SECRETS).await;
    assert_eq!((all.code, all.str(&["reason"])), (500, "StorageReadError".into()));
    let told = format!("StorageError: corrupt object, Code: 7, Key: {key}, {why}");
    assert_eq!(
        all.str(&["message"]),
        format!("failed to read one or more secrets from the storage: {told}")
    );
    let causes = all.json().at(&["details", "causes"]).cloned().unwrap();
    let cause = value!({"reason": "UnexpectedServerResponse", "field": key, "message": told});
    assert_eq!(causes, Value::from(vec![cause]));

    // Nothing writes over it, and nothing removes it by the way.
    api.post(SECRETS, secret("bad", "new")).await.expect(409);
    api.put(&bad, secret("bad", "new")).await.expect(500);
    api.patch(&bad, "merge-patch+json", value!({"type": "x"}))
        .await
        .expect(500);
    api.delete(&bad).await.expect(500);
    api.delete(SECRETS).await.expect(500);
    api.get(&format!("{SECRETS}/good")).await.expect(200);
    assert_eq!(stored(&store, key).await, nonsense);

    // Who says that it may go can have it removed, and only what can't be read.
    let ignore = "ignoreStoreReadErrorWithClusterBreakingPotential=true";
    let kept = api.delete(&format!("{SECRETS}/good?{ignore}")).await.expect(409);
    assert!(
        kept.str(&["message"])
            .contains("unsafe deletion is not allowed because the object is decodable")
    );
    let both = api
        .delete(&format!("{bad}?{ignore}&gracePeriodSeconds=0"))
        .await
        .expect(422);
    assert!(
        both.str(&["message"])
            .contains("cannot be set together with .gracePeriodSeconds")
    );
    api.delete(&format!("{SECRETS}?{ignore}")).await.expect(422);
    api.delete(&format!("{bad}?{ignore}&dryRun=All")).await.expect(200);
    assert_eq!(stored(&store, key).await, nonsense);
    api.delete(&format!("{bad}?{ignore}")).await.expect(200);
    api.until(SECRETS, |a| a.code == 200).await;
}

#[tokio::test]
async fn who_may_delete_may_not_delete_unread() {
    let keys = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Memory::new();
    let api = server(&store, Source::Own, keys.path()).await;
    overwrite(&store, "/registry/secrets/default/bad", b"k8s:enc:x").await;
    let rules = value!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "delete"]}]);
    let role = value!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "d"}, "rules": rules});
    api.post("/apis/rbac.authorization.k8s.io/v1/clusterroles", role)
        .await
        .expect(201);
    let binding = value!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "d"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "d"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "deleter"}]
    });
    api.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding)
        .await
        .expect(201);
    let api = api.called_by("deleter", &["system:authenticated"]);
    api.until(&format!("{SECRETS}/absent"), |a| a.code == 404).await;
    let path = format!("{SECRETS}/bad?ignoreStoreReadErrorWithClusterBreakingPotential=true");
    let refused = api.delete(&path).await.expect(403);
    assert!(
        refused
            .str(&["message"])
            .contains("not permitted to do \"unsafe-delete-ignore-read-errors\"")
    );
    api.get("/keelson/secrets").await.expect(403);
}

#[tokio::test]
async fn custom_resources_are_sealed_as_configured_and_a_provider_comes_without_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (file, store): (_, Arc<dyn Store>) = (directory.path().join("config.yaml"), Memory::new());
    config(&file, "['*.example.com', configmaps]", "one", 1);
    let source = Source::File {
        path: file.clone(),
        reload: true,
    };
    let api = server(&store, source, directory.path()).await;
    let schema = value!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let crd = value!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "tabs.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "tabs", "singular": "tab", "kind": "Tab", "listKind": "TabList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}]
        }
    });
    api.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        .await
        .expect(201);
    let tabs = "/apis/example.com/v1/namespaces/default/tabs";
    api.until(tabs, |a| a.code == 200).await;
    let tab = |name: &str| value!({"apiVersion": "example.com/v1", "kind": "Tab", "metadata": {"name": name, "namespace": "default"}, "text": "hidden"});
    api.post(tabs, tab("a")).await.expect(201);
    let key = "/registry/example.com/tabs/default/a";
    assert!(stored(&store, key).await.starts_with(b"k8s:enc:aesgcm:v1:one:"));
    assert_eq!(api.get(&format!("{tabs}/a")).await.expect(200).str(&["text"]), "hidden");
    api.post(SECRETS, secret("s", "x")).await.expect(201);
    assert!(
        stored(&store, "/registry/secrets/default/s")
            .await
            .starts_with(b"k8s\0"),
        "nobody asked for it"
    );

    // What somebody else's key sealed can't be read, until its key is in the file.
    let other = directory.path().join("other.yaml");
    config(&other, "['*.example.com']", "two", 2);
    let theirs = Source::File {
        path: other.clone(),
        reload: false,
    };
    let theirs = Sealing::open(store.clone(), theirs, place(directory.path().into(), ROOT))
        .await
        .unwrap();
    let theirs_key = |name: &str| format!("/registry/example.com/tabs/default/{name}");
    let sealed = theirs.store();
    for name in ["b", "c"] {
        let (key, text) = (theirs_key(name), serde_json::to_vec(&tab(name)).unwrap());
        sealed.put(key.into(), text.into(), Expect::Any, None).await.unwrap();
    }
    api.until(tabs, |a| a.code == 500).await;
    let health = api.get("/readyz?verbose").await.expect(200);
    let health = String::from_utf8(health.bytes.to_vec()).unwrap();
    assert!(
        health.contains("[+]kms-providers ok")
            && health.contains("start-encryption-provider-config-automatic-reload ok")
    );
    let alive = api.get("/livez?verbose").await.expect(200);
    assert!(
        !String::from_utf8(alive.bytes.to_vec())
            .unwrap()
            .contains("kms-providers")
    );

    let both = std::fs::read_to_string(&file).unwrap();
    let second = std::fs::read_to_string(&other).unwrap();
    let provider = second.lines().find(|l| l.contains("aesgcm")).unwrap();
    std::fs::write(&file, format!("{both}{provider}\n")).unwrap();
    api.until(tabs, |a| a.code == 200).await;
    // As people migrate by hand: each object is put back as it is, which changes what is stored and nothing else.
    let there = api.get(&format!("{tabs}/b")).await.expect(200).json();
    let put = api.put(&format!("{tabs}/b"), there.clone()).await.expect(200);
    assert!(
        stored(&store, &theirs_key("b"))
            .await
            .starts_with(b"k8s:enc:aesgcm:v1:one:")
    );
    assert_ne!(
        put.str(&["metadata", "resourceVersion"]),
        there
            .at(&["metadata", "resourceVersion"])
            .and_then(Value::as_str)
            .unwrap()
    );
    let again = api.put(&format!("{tabs}/b"), put.json()).await.expect(200);
    assert_eq!(again.json(), put.json(), "now it is kept as it would be");
    assert!(
        stored(&store, &theirs_key("c"))
            .await
            .starts_with(b"k8s:enc:aesgcm:v1:two:")
    );
    let rewritten = api.call("POST", "/keelson/secrets/rewrite", "", "", Vec::new()).await;
    rewritten.expect(200);
    api.until("/keelson/secrets", |a| {
        a.json().at(&["underWay"]) == Some(&Value::from(false))
    })
    .await;
    assert!(
        stored(&store, &theirs_key("c"))
            .await
            .starts_with(b"k8s:enc:aesgcm:v1:one:")
    );
}
