//! Admission by configuration: PodSecurity's defaults and exemptions, plug-ins switched off and on.

#![recursion_limit = "256"]
#![allow(clippy::unwrap_used)]

mod harness;

use harness::Api;
use keelson_api::{Value, value};
use keelson_apiserver::admission;
use keelson_store::Memory;

fn pod(name: &str, class: Option<&str>) -> Value {
    let mut pod = value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "hostNetwork": true, "containers": [{"name": "c", "image": "i"}],
    }});
    if let Some(class) = class {
        pod.set_at(&["spec", "runtimeClassName"], class);
    }
    pod
}

async fn serving(configuration: &str, disable: &[&str]) -> Api {
    let file = std::env::temp_dir().join(format!(
        "keelson-admission-{}-{}.yaml",
        disable.len(),
        std::process::id()
    ));
    std::fs::write(&file, configuration).unwrap();
    let options = admission::Options {
        config: Some(file.clone()),
        enable: ["NodeRestriction", "AlwaysPullImages", "DenyServiceExternalIPs"]
            .map(String::from)
            .to_vec(),
        disable: disable.iter().map(|d| (*d).to_string()).collect(),
    };
    let settings = options.resolve().unwrap();
    std::fs::remove_file(&file).unwrap();
    let api = Api::starting_with(Memory::new(), |config| config.admission = settings);
    api.server.ready().await;
    for namespace in ["kept", "exempt"] {
        let object = value!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        api.post("/api/v1/namespaces", object).await.expect(201);
        let account = value!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        api.post(&format!("/api/v1/namespaces/{namespace}/serviceaccounts"), account)
            .await
            .expect(201);
    }
    let class =
        value!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "own"}, "handler": "own"});
    api.post("/apis/node.k8s.io/v1/runtimeclasses", class).await.expect(201);
    api
}

const CONFIGURATION: &str = "apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: PodSecurity
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/v1
    kind: PodSecurityConfiguration
    defaults: {enforce: baseline, warn: restricted}
    exemptions: {namespaces: [exempt], usernames: [builder], runtimeClasses: [own]}
";

#[tokio::test]
async fn what_holds_without_labels_and_for_whom_it_does_not() {
    let api = serving(CONFIGURATION, &[]).await;
    let pods = |namespace: &str| format!("/api/v1/namespaces/{namespace}/pods");
    let said = api
        .post(&pods("kept"), pod("a", None))
        .await
        .expect(403)
        .str(&["message"]);
    assert!(
        said.contains("violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"),
        "{said}"
    );
    api.post(&pods("exempt"), pod("a", None)).await.expect(201);
    api.post(&pods("kept"), pod("b", Some("own"))).await.expect(201);
    let plain = value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "c"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let answer = api.post(&pods("kept"), plain).await.expect(201);
    let warning = answer.headers.get("warning").unwrap().to_str().unwrap();
    assert!(
        warning.contains("would violate PodSecurity \\\"restricted:latest\\\""),
        "{warning}"
    );
    // Labels count before defaults; in a namespace that is exempt they have no effect, which is said.
    let label = value!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged", "pod-security.kubernetes.io/warn": "privileged"}}});
    api.patch("/api/v1/namespaces/kept", "merge-patch+json", label)
        .await
        .expect(200);
    api.post(&pods("kept"), pod("d", None)).await.expect(201);
    let label = value!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    let answer = api
        .patch("/api/v1/namespaces/exempt", "merge-patch+json", label)
        .await
        .expect(200);
    let warning = answer.headers.get("warning").unwrap().to_str().unwrap();
    let wanted = "namespace \\\"exempt\\\" is exempt from Pod Security, and the policy (enforce=restricted:latest) will be ignored";
    assert!(warning.contains(wanted), "{warning}");
    let label = value!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": Value::Null}}});
    api.patch("/api/v1/namespaces/kept", "merge-patch+json", label)
        .await
        .expect(200);
    api.post(&pods("kept"), pod("e", None)).await.expect(403);
    let builder = api.called_by("builder", &["system:masters"]);
    builder.post(&pods("kept"), pod("e", None)).await.expect(201);
}

#[tokio::test]
async fn what_is_enabled_besides_runs() {
    let api = serving(CONFIGURATION, &["Priority"]).await;
    let mut own = pod("a", Some("own"));
    own.set_at(
        &["spec", "containers"],
        value!([{"name": "c", "image": "i:v1", "imagePullPolicy": "IfNotPresent"}]),
    );
    own.set_at(
        &["spec", "volumes"],
        value!([{"name": "v", "image": {"reference": "r:v1"}}]),
    );
    let pod = api.post("/api/v1/namespaces/exempt/pods", own).await.expect(201).json();
    let first = pod.at(&["spec", "containers"]).and_then(Value::as_array).unwrap()[0].clone();
    assert_eq!(first.get("imagePullPolicy"), Some(&"Always".into()));
    let volumes = pod.at(&["spec", "volumes"]).and_then(Value::as_array).unwrap();
    assert!(
        volumes
            .iter()
            .any(|v| v.at(&["image", "pullPolicy"]) == Some(&"Always".into())),
        "{volumes:?}"
    );
    let services = "/api/v1/namespaces/kept/services";
    let mut service =
        value!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    api.post(services, service.clone()).await.expect(201);
    service.set_at(&["metadata", "name"], "t");
    service.set_at(&["spec", "externalIPs"], value!(["192.0.2.1"]));
    let said = api.post(services, service).await.expect(403).str(&["message"]);
    assert!(
        said.ends_with("Use of external IPs is denied by admission control"),
        "{said}"
    );
    let change = value!({"spec": {"externalIPs": ["192.0.2.1"]}});
    api.patch(&format!("{services}/s"), "merge-patch+json", change)
        .await
        .expect(403);
}

#[tokio::test]
async fn what_is_disabled_does_not_run() {
    let api = serving(CONFIGURATION, &["PodSecurity", "ServiceAccount"]).await;
    let answer = api
        .post("/api/v1/namespaces/kept/pods", pod("a", None))
        .await
        .expect(201)
        .json();
    assert_eq!(answer.at(&["spec", "serviceAccountName"]), None);
    assert_eq!(answer.at(&["spec", "volumes"]), None);
}

#[tokio::test]
async fn labels_that_cannot_be_read_are_refused_where_they_are_new() {
    let store = Memory::new();
    let namespace = |name: &str, labels: Value| value!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
    let wrong = || value!({"pod-security.kubernetes.io/enforce": "restrictive", "pod-security.kubernetes.io/warn-version": "v1.01"});
    let unchecked = Api::starting_with(store.clone(), |config| {
        let options = admission::Options {
            disable: vec!["PodSecurity".into()],
            ..admission::Options::default()
        };
        config.admission = options.resolve().unwrap();
    });
    unchecked.server.ready().await;
    unchecked
        .post("/api/v1/namespaces", namespace("old", wrong()))
        .await
        .expect(201);

    let api = Api::starting_with(store, |_| ());
    api.server.ready().await;
    let refused = api
        .post("/api/v1/namespaces", namespace("new", wrong()))
        .await
        .expect(422)
        .str(&["message"]);
    assert_eq!(
        refused,
        "Namespace \"new\" is invalid: [metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"restrictive\": must be one of privileged, baseline, restricted, metadata.labels[pod-security.kubernetes.io/warn-version]: Invalid value: \"v1.01\": must be \"latest\" or \"v1.x\"]"
    );
    let fine = value!({"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "v1.30"});
    api.post("/api/v1/namespaces", namespace("new", fine)).await.expect(201);
    let label = |key: &str, value: &str| {
        let mut patch = value!({});
        patch.set_at(&["metadata", "labels", key], value);
        patch
    };
    // What was no better before may stay, but not get worse; and a pod there is held to the strictest meanwhile.
    for (namespace, key, value, code) in [
        ("old", "team", "a", 200),
        ("old", "pod-security.kubernetes.io/audit", "strict", 422),
        ("new", "team", "a", 200),
        ("new", "pod-security.kubernetes.io/enforce", "Baseline", 422),
        ("new", "pod-security.kubernetes.io/enforce-version", "1.30", 422),
    ] {
        let path = format!("/api/v1/namespaces/{namespace}");
        api.patch(&path, "merge-patch+json", label(key, value))
            .await
            .expect(code);
    }
}

#[tokio::test]
async fn containers_that_come_later_are_judged_too() {
    let api = serving(CONFIGURATION, &[]).await;
    let plain = value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    api.post("/api/v1/namespaces/kept/pods", plain).await.expect(201);
    let path = "/api/v1/namespaces/kept/pods/p/ephemeralcontainers";
    let later = |context: Value| value!({"spec": {"ephemeralContainers": [{"name": "e", "image": "i", "securityContext": context}]}});
    let privileged = later(value!({"privileged": true}));
    let said = api
        .patch(path, "strategic-merge-patch+json", privileged)
        .await
        .expect(403)
        .str(&["message"]);
    assert!(
        said.contains("privileged (container \"e\" must not set securityContext.privileged=true)"),
        "{said}"
    );
    api.patch(path, "strategic-merge-patch+json", later(value!({})))
        .await
        .expect(200);
}
