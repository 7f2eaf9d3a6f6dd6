//! What is particular to kinds: grace, allocation, quota, bindings, evictions, versions.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::Api;
use keelson_api::{Value, value};

const NS: &str = "/api/v1/namespaces/default";

async fn with_account() -> Api {
    let api = Api::new().await;
    let account = value!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    api.post(&format!("{NS}/serviceaccounts"), account).await.expect(201);
    api
}

fn pod(name: &str) -> Value {
    value!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "p"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    })
}

#[tokio::test]
async fn pods_get_their_account_and_end_with_grace() {
    let api = with_account().await;
    let made = api.post(&format!("{NS}/pods"), pod("p")).await.expect(201).json();
    let text = |path: &[&str]| made.at(path).and_then(Value::as_str).unwrap_or_default().to_string();
    assert_eq!(
        (text(&["status", "phase"]), text(&["status", "qosClass"])),
        ("Pending".into(), "BestEffort".into())
    );
    assert_eq!(text(&["spec", "serviceAccountName"]), "default");
    assert_eq!(made.at(&["spec", "priority"]), Some(&Value::Int(0)));
    let volumes = made.at(&["spec", "volumes"]).and_then(Value::as_array).unwrap();
    let name = volumes[0].get("name").and_then(Value::as_str).unwrap();
    assert!(name.starts_with("kube-api-access-") && name.len() == "kube-api-access-".len() + 5);
    assert_eq!(
        volumes[0]
            .at(&["projected", "sources"])
            .and_then(Value::as_array)
            .map(Vec::len),
        Some(3)
    );
    let tolerations = made.at(&["spec", "tolerations"]).and_then(Value::as_array).unwrap();
    assert_eq!(tolerations.len(), 2);

    let binding = value!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    api.post(&format!("{NS}/pods/p/binding"), binding.clone())
        .await
        .expect(201);
    let twice = api.post(&format!("{NS}/pods/p/binding"), binding).await.expect(409);
    assert_eq!(
        twice.str(&["message"]),
        "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\""
    );
    let on_node = api
        .get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1")
        .await
        .expect(200)
        .json();
    assert_eq!(on_node.get("items").and_then(Value::as_array).map(Vec::len), Some(1));

    let ending = api.delete(&format!("{NS}/pods/p")).await.expect(200).json();
    assert_eq!(
        ending.at(&["metadata", "deletionGracePeriodSeconds"]),
        Some(&Value::Int(30))
    );
    assert_eq!(
        ending.at(&["metadata", "generation"]),
        Some(&Value::Int(2)),
        "bound, which changes no generation, and deleted"
    );
    let shorter = api
        .delete(&format!("{NS}/pods/p?gracePeriodSeconds=5"))
        .await
        .expect(200)
        .json();
    assert_eq!(
        shorter.at(&["metadata", "deletionGracePeriodSeconds"]),
        Some(&Value::Int(5))
    );
    api.delete(&format!("{NS}/pods/p?gracePeriodSeconds=0"))
        .await
        .expect(200);
    api.get(&format!("{NS}/pods/p")).await.expect(404);
}

#[tokio::test]
async fn services_get_addresses_and_ports_and_give_them_back() {
    let api = Api::new().await;
    let services = format!("{NS}/services");
    let service = |name: &str, kind: &str| value!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"type": kind, "selector": {"a": "b"}, "ports": [{"port": 80}]}});
    let made = api.post(&services, service("a", "NodePort")).await.expect(201).json();
    let ip = made
        .at(&["spec", "clusterIP"])
        .and_then(Value::as_str)
        .unwrap()
        .to_string();
    assert!(ip.starts_with("10.96."));
    assert_eq!(made.at(&["spec", "clusterIPs"]), Some(&value!([ip])));
    assert_eq!(made.at(&["spec", "ipFamilies"]), Some(&value!(["IPv4"])));
    let port = made.at(&["spec", "ports"]).and_then(Value::as_array).unwrap()[0].clone();
    let node_port = port.get("nodePort").and_then(Value::as_i64).unwrap();
    assert!((30086..=32767).contains(&node_port));
    assert_eq!(port.get("targetPort"), Some(&Value::Int(80)));
    let held = api
        .get(&format!("/apis/networking.k8s.io/v1/ipaddresses/{ip}"))
        .await
        .expect(200);
    assert_eq!(held.str(&["spec", "parentRef", "name"]), "a");

    let mut same_port = service("b", "NodePort");
    same_port.set_at(&["spec", "ports"], value!([{"port": 80, "nodePort": node_port}]));
    let refused = api.post(&services, same_port).await.expect(422);
    assert!(
        refused.str(&["message"]).contains("provided port is already allocated"),
        "{}",
        refused.str(&["message"])
    );
    let mut same_ip = service("b", "ClusterIP");
    same_ip.set_at(&["spec", "clusterIP"], ip.as_str());
    api.post(&services, same_ip.clone()).await.expect(422);

    let external = value!({"spec": {"type": "ExternalName", "externalName": "example.com", "clusterIP": null, "clusterIPs": null}});
    let external = api
        .patch(&format!("{services}/a"), "merge-patch+json", external)
        .await
        .expect(200)
        .json();
    assert!(external.at(&["spec", "clusterIP"]).is_none());
    api.get(&format!("/apis/networking.k8s.io/v1/ipaddresses/{ip}"))
        .await
        .expect(404);
    api.post(&services, same_ip).await.expect(201);
    api.delete(&format!("{services}/b")).await.expect(200);
    api.get(&format!("/apis/networking.k8s.io/v1/ipaddresses/{ip}"))
        .await
        .expect(404);

    let mut headless = service("h", "ClusterIP");
    headless.set_at(&["spec", "clusterIP"], "None");
    let headless = api.post(&services, headless).await.expect(201).json();
    assert_eq!(headless.at(&["spec", "clusterIPs"]), Some(&value!(["None"])));
    let dual = value!({"spec": {"ipFamilyPolicy": "RequireDualStack"}});
    api.patch(&format!("{services}/h"), "merge-patch+json", dual)
        .await
        .expect(422);
}

#[tokio::test]
async fn quotas_are_charged_and_refuse_what_is_too_much() {
    let api = with_account().await;
    let quota = value!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": "1", "requests.cpu": "1"}}});
    api.post(&format!("{NS}/resourcequotas"), quota).await.expect(201);
    let status =
        value!({"status": {"hard": {"pods": "1", "requests.cpu": "1"}, "used": {"pods": "0", "requests.cpu": "0"}}});
    api.patch(&format!("{NS}/resourcequotas/q/status"), "merge-patch+json", status)
        .await
        .expect(200);
    let open = api.post(&format!("{NS}/pods"), pod("a")).await.expect(403);
    assert_eq!(
        open.str(&["message"]),
        "pods \"a\" is forbidden: failed quota: q: must specify requests.cpu for: c"
    );
    let mut asking = pod("a");
    asking.set_at(
        &["spec", "containers"],
        value!([{"name": "c", "image": "i", "resources": {"requests": {"cpu": "600m"}}}]),
    );
    api.post(&format!("{NS}/pods"), asking.clone()).await.expect(201);
    let charged = api.get(&format!("{NS}/resourcequotas/q")).await.expect(200).json();
    assert_eq!(
        charged.at(&["status", "used"]),
        Some(&value!({"pods": "1", "requests.cpu": "600m"}))
    );
    asking.set_at(&["metadata", "name"], "b");
    let full = api.post(&format!("{NS}/pods"), asking).await.expect(403);
    assert_eq!(
        full.str(&["message"]),
        "pods \"b\" is forbidden: exceeded quota: q, requested: pods=1,requests.cpu=600m, used: pods=1,requests.cpu=600m, limited: pods=1,requests.cpu=1"
    );
}

#[tokio::test]
async fn budgets_refuse_evictions() {
    let api = with_account().await;
    api.post(&format!("{NS}/pods"), pod("p")).await.expect(201);
    let running = value!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    api.patch(&format!("{NS}/pods/p/status"), "merge-patch+json", running)
        .await
        .expect(200);
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = value!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "p"}}}});
    api.post(budgets, budget).await.expect(201);
    let status = value!({"status": {"observedGeneration": 1, "disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
    api.patch(&format!("{budgets}/b/status"), "merge-patch+json", status)
        .await
        .expect(200);
    let eviction = value!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let refused = api
        .post(&format!("{NS}/pods/p/eviction"), eviction.clone())
        .await
        .expect(429);
    let cause = refused
        .json()
        .at(&["details", "causes"])
        .and_then(Value::as_array)
        .unwrap()[0]
        .clone();
    assert_eq!(cause.get("reason").and_then(Value::as_str), Some("DisruptionBudget"));
    assert_eq!(
        cause.get("message").and_then(Value::as_str),
        Some("The disruption budget b needs 1 healthy pods and has 1 currently")
    );
    let more = value!({"status": {"disruptionsAllowed": 1}});
    api.patch(&format!("{budgets}/b/status"), "merge-patch+json", more)
        .await
        .expect(200);
    api.post(&format!("{NS}/pods/p/eviction"), eviction).await.expect(201);
    let spent = api.get(&format!("{budgets}/b")).await.expect(200).json();
    assert_eq!(spent.at(&["status", "disruptionsAllowed"]), Some(&Value::Int(0)));
    assert!(spent.at(&["status", "disruptedPods", "p"]).is_some());
}

#[tokio::test]
async fn versions_of_one_resource_show_one_object() {
    let api = Api::new().await;
    let v1 = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
    let v2 = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
    let hpa = value!({
        "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
        "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 70, "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}},
    });
    api.post(v1, hpa).await.expect(201);
    let seen = api.get(&format!("{v2}/h")).await.expect(200).json();
    let metric = seen.at(&["spec", "metrics"]).and_then(Value::as_array).unwrap()[0].clone();
    assert_eq!(
        metric.at(&["resource", "target", "averageUtilization"]),
        Some(&Value::Int(70))
    );
    let list = api.get(v1).await.expect(200).json();
    assert_eq!(
        list.get("items").and_then(Value::as_array).unwrap()[0].at(&["spec", "targetCPUUtilizationPercentage"]),
        Some(&Value::Int(70))
    );

    let event = value!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e", "namespace": "default"}, "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "example.com/c", "reportingInstance": "i", "action": "Doing", "reason": "Because", "type": "Normal", "note": "hello",
        "regarding": {"kind": "Pod", "name": "p", "namespace": "default"},
    });
    api.post("/apis/events.k8s.io/v1/namespaces/default/events", event)
        .await
        .expect(201);
    let core = api
        .get(&format!("{NS}/events?fieldSelector=involvedObject.name%3Dp"))
        .await
        .expect(200)
        .json();
    let items = core.get("items").and_then(Value::as_array).unwrap();
    assert_eq!(items[0].get("message").and_then(Value::as_str), Some("hello"));
    let other = api
        .get("/apis/events.k8s.io/v1/namespaces/default/events?fieldSelector=regarding.name%3Dp")
        .await
        .expect(200)
        .json();
    assert_eq!(other.get("items").and_then(Value::as_array).map(Vec::len), Some(1));
}

#[tokio::test]
async fn levels_of_pod_security_are_enforced() {
    let api = Api::new().await;
    let ns = value!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tight", "labels": {"pod-security.kubernetes.io/enforce": "baseline"}}});
    api.post("/api/v1/namespaces", ns).await.expect(201);
    api.post(
        "/api/v1/namespaces/tight/serviceaccounts",
        value!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}),
    )
    .await
    .expect(201);
    let mut host = pod("p");
    host.set_at(&["spec", "hostNetwork"], true);
    let refused = api.post("/api/v1/namespaces/tight/pods", host).await.expect(403);
    assert_eq!(
        refused.str(&["message"]),
        "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"
    );
    api.post("/api/v1/namespaces/tight/pods", pod("p")).await.expect(201);
}

#[tokio::test]
async fn reviews_and_tokens_answer() {
    let api = with_account().await;
    let me = api
        .post(
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            value!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}),
        )
        .await
        .expect(201);
    assert_eq!(me.str(&["status", "userInfo", "username"]), "tester");
    let may = value!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let may = api
        .post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", may)
        .await
        .expect(201)
        .json();
    assert_eq!(may.at(&["status", "allowed"]), Some(&Value::Bool(true)));
    let request = value!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}});
    let token = api
        .post(&format!("{NS}/serviceaccounts/default/token"), request)
        .await
        .expect(201);
    let review = value!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token.str(&["status", "token"])}});
    let review = api
        .post("/apis/authentication.k8s.io/v1/tokenreviews", review)
        .await
        .expect(201);
    assert_eq!(
        review.str(&["status", "user", "username"]),
        "system:serviceaccount:default:default"
    );
    let short =
        value!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 60}});
    api.post(&format!("{NS}/serviceaccounts/default/token"), short)
        .await
        .expect(422);
}

#[tokio::test]
async fn nodes_ask_for_certificates_of_their_pods_only() {
    let api = Api::new().await;
    let node = api
        .post("/api/v1/nodes", value!({"metadata": {"name": "n1"}}))
        .await
        .expect(201);
    let account = api
        .post(
            "/api/v1/namespaces/default/serviceaccounts",
            value!({"metadata": {"name": "default"}}),
        )
        .await
        .expect(201);
    let source = value!({"podCertificate": {"signerName": "a.io/b", "keyType": "ED25519", "keyPath": "key"}});
    let pod = value!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1",
        "containers": [{"name": "c", "image": "i"}], "volumes": [{"name": "v", "projected": {"sources": [source]}}]}});
    let pod = api.post("/api/v1/namespaces/default/pods", pod).await.expect(201);
    let uid = |a: &harness::Answer| a.str(&["metadata", "uid"]);
    let key = rcgen::KeyPair::generate().unwrap();
    let stub = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let stub = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, stub.der());
    let request = value!({"metadata": {"generateName": "r-"}, "spec": {"signerName": "a.io/b",
        "podName": "p", "podUID": uid(&pod), "nodeName": "n1", "nodeUID": uid(&node),
        "serviceAccountName": "default", "serviceAccountUID": uid(&account), "stubPKCS10Request": stub}});
    let api = api.called_by("system:node:n1", &["system:nodes", "system:authenticated"]);
    let path = "/apis/certificates.k8s.io/v1/namespaces/default/podcertificaterequests";
    let with = |key: &str, text: &str| {
        let mut r = request.clone();
        r.set_at(&["spec", key], text);
        r
    };
    api.post(path, request.clone()).await.expect(201);
    let other = api.post(path, with("nodeName", "n2")).await.expect(403);
    assert!(other.str(&["message"]).contains("which is not the requesting node"));
    let unasked = api.post(path, with("signerName", "a.io/c")).await.expect(403);
    assert!(unasked.str(&["message"]).contains("does not mount a podCertificate"));
    api.post(path, with("podUID", "another")).await.expect(500);
}

#[tokio::test]
async fn nobody_asks_for_another_name_than_is_their_own() {
    let api = Api::new().await;
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let ask = |names: &[(rcgen::DnType, &str)], signer: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, text) in names {
            params.distinguished_name.push(kind.clone(), *text);
        }
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        value!({"metadata": {"generateName": "r-"}, "spec": {"signerName": signer, "usages": ["client auth", "digital signature"],
            "request": (base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pem))}})
    };
    let (cn, o) = (rcgen::DnType::CommonName, rcgen::DnType::OrganizationName);
    let (clients, nodes) = (
        "kubernetes.io/kube-apiserver-client",
        "kubernetes.io/kube-apiserver-client-kubelet",
    );
    let masters = ask(&[(cn.clone(), "u"), (o.clone(), "system:masters")], clients);
    let refused = api.post(path, masters).await.expect(403);
    assert!(
        refused
            .str(&["message"])
            .ends_with("use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed")
    );
    let api = api.called_by("system:node:n1", &["system:nodes", "system:authenticated"]);
    for signer in [nodes, "kubernetes.io/kubelet-serving"] {
        let own = [(o.clone(), "system:nodes"), (cn.clone(), "system:node:n1")];
        api.post(path, ask(&own, signer)).await.expect(201);
        for other in ["system:node:n2", "system:kube-controller-manager", ""] {
            let names = [(o.clone(), "system:nodes"), (cn.clone(), other)];
            let refused = api.post(path, ask(&names, signer)).await.expect(403);
            let why = "can only create a node CSR with CN=system:node:n1";
            assert!(refused.str(&["message"]).ends_with(why), "{other}");
        }
    }
    api.post(path, ask(&[(cn, "anyone")], "example.com/x"))
        .await
        .expect(201);
}

#[tokio::test]
async fn trust_is_attested_by_who_may() {
    let api = Api::new().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let rule =
        value!({"apiGroups": ["certificates.k8s.io"], "resources": ["clustertrustbundles"], "verbs": ["create"]});
    let role = value!({"metadata": {"name": "r"}, "rules": [rule]});
    api.post(&format!("{rbac}/clusterroles"), role).await.expect(201);
    let binding = value!({"metadata": {"name": "b"}, "subjects": [{"kind": "User", "name": "u"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "r"}});
    api.post(&format!("{rbac}/clusterrolebindings"), binding)
        .await
        .expect(201);
    let api = api.called_by("u", &["system:authenticated"]);
    let ca = keelson_pki::Authority::generate("a").unwrap();
    let bundle = |name: &str, signer: &str| {
        let mut b = value!({"metadata": {"name": name}, "spec": {"trustBundle": (ca.cert_pem())}});
        if !signer.is_empty() {
            b.set_at(&["spec", "signerName"], signer);
        }
        b
    };
    let path = "/apis/certificates.k8s.io/v1/clustertrustbundles";
    let mut code = 0;
    for _ in 0..3000 {
        code = api.post(path, bundle("plain", "")).await.code;
        if code == 201 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(code, 201);
    let refused = api.post(path, bundle("a.io:b:x", "a.io/b")).await.expect(403);
    assert!(
        refused
            .str(&["message"])
            .ends_with("user not permitted to attest for signerName \"a.io/b\"")
    );
}

#[tokio::test]
async fn a_running_pod_becomes_what_its_node_declares_and_has_room_for() {
    let api = with_account().await;
    let node = value!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "2", "memory": "1Gi"}}});
    api.post("/api/v1/nodes", node).await.expect(201);
    let cpu = |n: &str| value!({"requests": {"cpu": n}});
    let pod = value!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "automountServiceAccountToken": false, "containers": [
        {"name": "c", "image": "i", "resources": cpu("1")}], "initContainers": [{"name": "i", "image": "i", "resources": cpu("1")}]}});
    let pods = "/api/v1/namespaces/default/pods";
    api.post(pods, pod).await.expect(201);
    let to = async |list: &str, name: &str, n: &str| {
        let resized = value!([{"name": name, "resources": cpu(n)}]);
        let mut patch = value!({"spec": {}});
        patch.set_at(&["spec", list], resized);
        api.patch(&format!("{pods}/p/resize"), "strategic-merge-patch+json", patch)
            .await
    };
    let undeclared = to("initContainers", "i", "1500m").await.expect(403);
    assert_eq!(
        undeclared.str(&["message"]),
        "pods \"p\" is forbidden: pod update requires features InPlacePodVerticalScalingInitContainers which are not available \
         on node \"n\""
    );
    let too_large = to("containers", "c", "2500m").await.expect(403);
    assert_eq!(
        too_large.str(&["message"]),
        "pods \"p\" is forbidden: node didn't have enough allocatable resources: cpu, requested: 2500, allocatable: 2000"
    );
    let causes = too_large.json();
    assert_eq!(
        causes.at(&["details", "causes"]),
        Some(&value!([{"reason": "NodeCapacity"}]))
    );
    to("containers", "c", "1500m").await.expect(200);
    let declares = value!({"status": {"declaredFeatures": ["InPlacePodVerticalScalingInitContainers"]}});
    api.patch("/api/v1/nodes/n/status", "merge-patch+json", declares)
        .await
        .expect(200);
    for _ in 0..100 {
        if to("initContainers", "i", "1500m").await.code == 200 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    to("initContainers", "i", "1500m").await.expect(200);
}
