//! Plug-ins that have credentials: real programs, called by a kubelet over a fake runtime.

use crate::support::Node;
use keelson_kubelet::Config;
use keelson_kubelet::configuration::Document;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n";
const PROVIDER: &str =
    "apiVersion: credentialprovider.kubelet.k8s.io/v1, defaultCacheDuration: 1h, matchImages: [docker.io/private]";

/// A directory of this test's own.
fn place(test: &str) -> PathBuf {
    std::env::temp_dir().join(format!("keelson-providers-{test}-{}", std::process::id()))
}

/// A plug-in `ask`, which notes what it is asked and answers with what stands in a file.
fn prepare(test: &str, providers: &str) -> PathBuf {
    let dir = place(test);
    std::fs::create_dir_all(&dir).unwrap();
    let script = "#!/bin/sh\ncd \"$(dirname \"$0\")\"; cat >> asked; cat \"${1:-answer}\"\n";
    std::fs::write(dir.join("ask"), script).unwrap();
    std::fs::set_permissions(dir.join("ask"), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(dir.join("config.yaml"), format!("{HEAD}{providers}")).unwrap();
    dir
}

fn answer(dir: &Path, file: &str, user: &str, password: &str, reach: &str) {
    let text = json!({"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse",
        "cacheKeyType": reach, "auth": {"docker.io": {"username": user, "password": password}}});
    std::fs::write(dir.join(file), text.to_string()).unwrap();
}

fn asked(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join("asked")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// As flags say it.
fn told(config: &mut Config, dir: &Path) {
    let mut document = Document::default();
    let said = |path: PathBuf| path.display().to_string();
    document
        .flag("image-credential-provider-config", &said(dir.join("config.yaml")))
        .unwrap();
    document
        .flag("image-credential-provider-bin-dir", &said(dir.to_owned()))
        .unwrap();
    document.apply(config).unwrap();
}

fn pod(node: &Node, name: &str, image: &str, account: Option<&str>) -> String {
    node.pod_with(
        json!({"name": name}),
        json!({"containers": [{"name": "c", "image": image}], "serviceAccountName": account}),
    )
}

async fn refused(node: &Node, path: &str) {
    node.until("the pull is refused", |n| {
        let waiting = n.api.get(path)?["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
        matches!(waiting.as_str(), Some("ErrImagePull" | "ImagePullBackOff")).then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_plugins_credentials_pull_for_everybody_on_the_node() {
    let dir = prepare("node", &format!("- {{name: ask, {PROVIDER}}}\n"));
    answer(&dir, "answer", "u", "p", "Registry");
    let node = Node::start_with(|c| told(c, &place("node"))).await;
    for (name, image) in [
        ("first", "private/a:1"),
        ("second", "private/b:1"),
        ("third", "private/a:1"),
    ] {
        let path = pod(&node, name, image, None);
        node.ready(&path).await;
    }
    let public = pod(&node, "public", "busybox:2", None);
    node.ready(&public).await;
    // Once for the registry, and not at all for what it isn't for.
    let request = json!({"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest",
        "image": "docker.io/private/a"});
    assert_eq!(asked(&dir), [request]);
    let text = node.kubelet().metrics.text();
    assert!(
        text.contains("kubelet_credential_provider_plugin_duration_count{plugin_name=\"ask\"} 1"),
        "{text}"
    );
    assert!(
        text.contains("kubelet_credential_provider_config_info{hash=\"sha256:"),
        "{text}"
    );
    // After its time it is asked again; one that fails gives nothing.
    tokio::time::sleep(std::time::Duration::from_secs(3601)).await;
    std::fs::write(dir.join("answer"), "not an answer").unwrap();
    let late = pod(&node, "late", "private/c:1", None);
    refused(&node, &late).await;
    assert!(asked(&dir).len() >= 2);
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test(start_paused = true)]
async fn while_a_pull_has_to_wait_nobody_is_asked() {
    let dir = prepare("wait", &format!("- {{name: ask, {PROVIDER}}}\n"));
    std::fs::write(dir.join("answer"), "not an answer").unwrap();
    let node = Node::start_with(|c| told(c, &place("wait"))).await;
    let path = pod(&node, "p", "private/a:1", None);
    node.until("it backs off", |n| {
        let waiting = n.api.get(&path)?["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
        (waiting == "ImagePullBackOff").then_some(())
    })
    .await;
    assert_eq!(asked(&dir).len(), 1);
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_wants_the_same_at_once_shares_a_call() {
    let dir = prepare("flight", &format!("- {{name: ask, {PROVIDER}}}\n"));
    let script = "#!/bin/sh\ncd \"$(dirname \"$0\")\"; cat >> asked; sleep 0.5; cat answer\n";
    std::fs::write(dir.join("ask"), script).unwrap();
    answer(&dir, "answer", "u", "p", "Image");
    let node = Node::start_with(|c| told(c, &place("flight"))).await;
    let pods: Vec<String> = (0..4)
        .map(|n| pod(&node, &format!("p{n}"), "private/a:1", None))
        .collect();
    for path in &pods {
        node.ready(path).await;
    }
    assert_eq!(asked(&dir).len(), 1);
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_plugin_runs_for_so_many_at_once() {
    let dir = prepare("crowd", &format!("- {{name: ask, {PROVIDER}}}\n"));
    let script = "#!/bin/sh\ncd \"$(dirname \"$0\")\"; echo in >> asked; sleep 1; echo out >> asked; cat answer\n";
    std::fs::write(dir.join("ask"), script).unwrap();
    answer(&dir, "answer", "u", "p", "Image");
    let node = Node::start_with(|c| told(c, &place("crowd"))).await;
    let pods: Vec<String> = (0..24)
        .map(|n| pod(&node, &format!("p{n}"), &format!("private/i{n}:1"), None))
        .collect();
    for path in &pods {
        node.ready(path).await;
    }
    let text = std::fs::read_to_string(dir.join("asked")).unwrap();
    let (mut running, mut most) = (0, 0);
    for line in text.lines() {
        running += if line == "in" { 1 } else { -1 };
        most = most.max(running);
    }
    assert_eq!((text.lines().count(), running), (48, 0));
    assert!(most <= 16, "{most}");
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_service_account_has_credentials_of_its_own() {
    let account = "tokenAttributes: {serviceAccountTokenAudience: registry, cacheType: ServiceAccount, requireServiceAccount: true, \
                   requiredServiceAccountAnnotationKeys: [example.com/role], optionalServiceAccountAnnotationKeys: [example.com/more]}";
    let dir = prepare("account", &format!("- {{name: ask, {PROVIDER}, {account}}}\n"));
    answer(&dir, "answer", "u", "p", "Image");
    let node = Node::start_with(|c| told(c, &place("account"))).await;
    for (name, annotations) in [
        ("robot", json!({"example.com/role": "puller", "other": "x"})),
        ("plain", json!({})),
        ("twin", json!({"example.com/role": "puller"})),
    ] {
        let metadata = json!({"name": name, "namespace": "default", "annotations": annotations});
        node.api
            .create("namespaces/default/serviceaccounts", json!({"metadata": metadata}));
    }
    // Not asked for one that has not opted in, for no account, and for one that isn't there.
    for (name, account) in [("plain", Some("plain")), ("none", None), ("lost", Some("lost"))] {
        refused(&node, &pod(&node, name, "private/a:1", account)).await;
    }
    assert_eq!(asked(&dir), [] as [Value; 0]);
    node.ready(&pod(&node, "first", "private/a:1", Some("robot"))).await;
    let request = json!({"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest",
        "image": "docker.io/private/a", "serviceAccountToken": "t0ken", "serviceAccountAnnotations": {"example.com/role": "puller"}});
    assert_eq!(asked(&dir), [request]);
    // The image is that account's: another one has to pull it, for which it is asked.
    node.ready(&pod(&node, "again", "private/a:1", Some("robot"))).await;
    assert_eq!(asked(&dir).len(), 1);
    answer(&dir, "answer", "another", "p", "Image");
    refused(&node, &pod(&node, "twin", "private/a:1", Some("twin"))).await;
    assert!(asked(&dir).len() > 1);
    // The token itself is a password only where each token has its own.
    answer(&dir, "answer", "u", "t0ken", "Image");
    refused(&node, &pod(&node, "echo", "private/d:1", Some("robot"))).await;
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_pods_own_secret_is_tried_first() {
    let dir = prepare("secret", &format!("- {{name: ask, {PROVIDER}}}\n"));
    answer(&dir, "answer", "wrong", "p", "Global");
    let node = Node::start_with(|c| told(c, &place("secret"))).await;
    super::secret(&node, "good", "u");
    node.ready(&super::private(&node, "own", Some("good"))).await;
    // What has been pulled with it isn't everybody's, though the plug-in serves everybody.
    refused(&node, &super::private(&node, "other", None)).await;
    assert_eq!(asked(&dir).len(), 1);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn settings_that_are_not_whole_are_refused() {
    let mut document = Document::default();
    document
        .flag("image-credential-provider-config", "/nonexistent")
        .unwrap();
    let error = document.apply(&mut Config::default()).unwrap_err();
    assert!(error.contains("belong together"), "{error}");
    let dir = prepare("refused", &format!("- {{name: ask, {PROVIDER}}}\n"));
    let refuse = || {
        let mut document = Document::default();
        document
            .flag("image-credential-provider-config", &dir.display().to_string())
            .unwrap();
        document
            .flag("image-credential-provider-bin-dir", &dir.display().to_string())
            .unwrap();
        let mut config = Config::default();
        document.apply(&mut config).map(|()| config)
    };
    let whole = refuse().unwrap();
    assert_eq!(whole.credential_providers.unwrap().providers[0].name, "ask");
    // A second file of the directory, in which the same name stands.
    std::fs::write(dir.join("more.json"), json!({"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig",
        "providers": [{"name": "more", "matchImages": ["*.io"], "defaultCacheDuration": "0s", "apiVersion": "credentialprovider.kubelet.k8s.io/v1alpha1"}]}).to_string()).unwrap();
    let error = refuse().unwrap_err();
    assert!(
        error.contains("the credential provider more") && error.contains("can't be found"),
        "{error}"
    );
    std::fs::copy(dir.join("ask"), dir.join("more")).unwrap();
    assert_eq!(refuse().unwrap().credential_providers.unwrap().providers.len(), 2);
    std::fs::copy(dir.join("config.yaml"), dir.join("twice.yml")).unwrap();
    assert!(refuse().unwrap_err().contains("duplicate provider name \"ask\""));
    std::fs::remove_file(dir.join("twice.yml")).unwrap();
    for (mode, why) in [(0o644, "can't be executed"), (0o777, "can be written by others")] {
        std::fs::set_permissions(dir.join("ask"), PermissionsExt::from_mode(mode)).unwrap();
        let error = refuse().unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}
