//! Admission by configuration: PodSecurity's defaults and exemptions, plug-ins switched off.

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
        enable: vec!["NodeRestriction".into()],
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
