//! Plug-ins of admission, most of which run when they are switched on: what they add, what they refuse, in which words.

#![recursion_limit = "256"]
#![allow(clippy::unwrap_used)]

mod harness;

use harness::outside::{Outside, json};
use harness::{Answer, Api};
use keelson_api::{Value, value};
use keelson_apiserver::admission;
use keelson_pki::Authority;
use keelson_store::Memory;
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PODS: &str = "/api/v1/namespaces/ours/pods";

/// A directory of the test's own.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("keelson-plug-ins-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server with these plug-ins, and what a file says of one of them.
fn starting(enable: &[&str], configuration: Option<(&Dir, &str)>) -> Api {
    let config = configuration.map(|(dir, plugins)| {
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:\n";
        let file = dir.0.join("admission.yaml");
        std::fs::write(&file, format!("{head}{plugins}")).unwrap();
        file
    });
    let options = admission::Options {
        config,
        enable: enable.iter().map(ToString::to_string).collect(),
        disable: Vec::new(),
    };
    let settings = options.resolve().unwrap();
    Api::starting_with(Memory::new(), |config| config.admission = settings)
}

async fn serving(enable: &[&str], configuration: Option<(&Dir, &str)>) -> Api {
    let api = starting(enable, configuration);
    api.server.ready().await;
    namespace(&api, "ours", value!({})).await;
    api
}

async fn namespace(api: &Api, name: &str, annotations: Value) {
    let made =
        value!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "annotations": annotations}});
    api.post("/api/v1/namespaces", made).await.expect(201);
    account(api, name).await;
}

async fn account(api: &Api, namespace: &str) {
    let account = value!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
    api.post(&path, account).await.expect(201);
}

fn pod(name: &str, spec: Value) -> Value {
    let mut pod = value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "containers": [{"name": "c", "image": "i"}],
    }});
    for (key, value) in spec.as_object().unwrap() {
        pod.set_at(&["spec", key], value.clone());
    }
    pod
}

async fn dry_run(api: &Api, namespace: &str, pod: Value) -> Answer {
    api.post(&format!("/api/v1/namespaces/{namespace}/pods?dryRun=All"), pod)
        .await
}

fn list(answer: &Answer, path: &[&str]) -> Vec<Value> {
    answer
        .json()
        .at(path)
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default()
}

#[tokio::test]
async fn a_namespace_comes_with_what_is_first_in_it() {
    let api = serving(&["NamespaceAutoProvision"], None).await;
    let map = value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    let maps = "/api/v1/namespaces/new/configmaps";
    // Not for what isn't kept.
    api.post(&format!("{maps}?dryRun=All"), map.clone()).await.expect(404);
    api.post(maps, map.clone()).await.expect(201);
    let made = api.get("/api/v1/namespaces/new").await.expect(200);
    assert_eq!(made.str(&["metadata", "labels", "kubernetes.io/metadata.name"]), "new");
    // A name that no namespace can have.
    let refused = api.post("/api/v1/namespaces/New/configmaps", map).await.expect(403);
    assert!(
        refused.str(&["message"]).contains("Namespace \"New\" is invalid"),
        "{:?}",
        refused.json()
    );
}

#[tokio::test]
async fn nothing_is_done_where_no_namespace_is() {
    let api = serving(&["NamespaceExists"], None).await;
    let map = value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    api.post("/api/v1/namespaces/ours/configmaps", map.clone())
        .await
        .expect(201);
    api.delete("/api/v1/namespaces/ours/configmaps/m").await.expect(200);
    let gone = api.post("/api/v1/namespaces/none/configmaps", map).await.expect(404);
    assert_eq!(gone.str(&["message"]), "namespaces \"none\" not found");
}

#[tokio::test]
async fn a_pod_keeps_others_off_its_node_and_no_further() {
    let api = serving(&["LimitPodHardAntiAffinityTopology"], None).await;
    let of = |key: &str| {
        let term = value!({"topologyKey": key, "labelSelector": {"matchLabels": {"a": "b"}}});
        pod(
            "p",
            value!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}),
        )
    };
    dry_run(&api, "ours", of("kubernetes.io/hostname")).await.expect(201);
    let refused = dry_run(&api, "ours", of("topology.kubernetes.io/zone"))
        .await
        .expect(403);
    assert_eq!(
        refused.str(&["message"]),
        "pods \"p\" is forbidden: affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey \
         topology.kubernetes.io/zone but only key kubernetes.io/hostname is allowed"
    );
}

#[tokio::test]
async fn pods_run_where_their_namespace_says() {
    let dir = Dir::new("selectors");
    let plugins = "- name: PodNodeSelector\n  configuration:\n    podNodeSelectorPluginConfig:\n      \
                   clusterDefaultNodeSelector: pool=shared\n      fenced: 'pool=own,disk=fast'\n";
    let api = serving(&["PodNodeSelector"], Some((&dir, plugins))).await;
    namespace(
        &api,
        "fenced",
        value!({"scheduler.alpha.kubernetes.io/node-selector": "pool=own"}),
    )
    .await;
    namespace(
        &api,
        "wrong",
        value!({"scheduler.alpha.kubernetes.io/node-selector": "pool"}),
    )
    .await;
    let plain = || pod("p", value!({}));
    let asks = |key: &str, value: &str| {
        let mut asked = pod("p", value!({}));
        asked.set_at(&["spec", "nodeSelector", key], value);
        asked
    };
    let by_default = dry_run(&api, "ours", plain()).await.expect(201);
    assert_eq!(
        by_default.json().at(&["spec", "nodeSelector"]),
        Some(&value!({"pool": "shared"}))
    );
    let joined = dry_run(&api, "fenced", asks("disk", "fast")).await.expect(201);
    assert_eq!(
        joined.json().at(&["spec", "nodeSelector"]),
        Some(&value!({"disk": "fast", "pool": "own"}))
    );
    let message = |answer: Answer| answer.expect(403).str(&["message"]);
    assert_eq!(
        message(dry_run(&api, "fenced", asks("pool", "shared")).await),
        "pods \"p\" is forbidden: pod node label selector conflicts with its namespace node label selector"
    );
    assert_eq!(
        message(dry_run(&api, "fenced", asks("disk", "slow")).await),
        "pods \"p\" is forbidden: pod node label selector labels conflict with its namespace whitelist"
    );
    let wrong = dry_run(&api, "wrong", plain()).await.expect(500);
    assert_eq!(wrong.str(&["message"]), "invalid selector: [pool]");
}

#[tokio::test]
async fn pods_tolerate_what_their_namespace_lets_them() {
    let dir = Dir::new("tolerations");
    let plugins = "- name: PodTolerationRestriction\n  configuration:\n    \
                   apiVersion: podtolerationrestriction.admission.k8s.io/v1alpha1\n    kind: Configuration\n    \
                   default: [{key: shared, operator: Exists}]\n    whitelist: [{key: shared, operator: Exists}, \
                   {operator: Exists, effect: NoExecute}, {key: node.kubernetes.io/memory-pressure, operator: Exists}]\n";
    let api = serving(&["PodTolerationRestriction"], Some((&dir, plugins))).await;
    let own = value!({
        "scheduler.alpha.kubernetes.io/defaultTolerations": r#"[{"key":"own","operator":"Exists"}]"#,
        "scheduler.alpha.kubernetes.io/tolerationsWhitelist": "",
    });
    namespace(&api, "free", own).await;
    namespace(
        &api,
        "wrong",
        value!({"scheduler.alpha.kubernetes.io/defaultTolerations": "{"}),
    )
    .await;
    let keys = |answer: &Answer| {
        let list = list(answer, &["spec", "tolerations"]).into_iter();
        let keys = list.map(|t| t.get("key").and_then(Value::as_str).unwrap_or_default().to_string());
        keys.filter(|key| !key.ends_with("not-ready") && !key.ends_with("unreachable"))
            .collect::<Vec<_>>()
    };
    let made = dry_run(&api, "ours", pod("p", value!({}))).await.expect(201);
    assert_eq!(keys(&made), ["shared"]);
    // What asks for memory bears that it is short; what another toleration covers is left out.
    let asks = value!({
        "containers": [{"name": "c", "image": "i", "resources": {"requests": {"memory": "1Mi"}}}],
        "tolerations": [{"key": "shared", "operator": "Exists", "effect": "NoSchedule"}],
    });
    let made = dry_run(&api, "ours", pod("p", asks)).await.expect(201);
    assert_eq!(keys(&made), ["shared", "node.kubernetes.io/memory-pressure"]);
    let all = || pod("p", value!({"tolerations": [{"key": "gpu", "operator": "Exists"}]}));
    let refused = dry_run(&api, "ours", all()).await.expect(500);
    assert_eq!(
        refused.str(&["message"]),
        "pod tolerations (possibly merged with namespace default tolerations) conflict with its cluster whitelist"
    );
    // A namespace's own list that is empty allows everything.
    let made = dry_run(&api, "free", all()).await.expect(201);
    assert_eq!(keys(&made), ["gpu", "own"]);
    let wrong = dry_run(&api, "wrong", pod("p", value!({}))).await.expect(500);
    assert!(
        wrong.str(&["message"]).contains("is no list of tolerations"),
        "{:?}",
        wrong.json()
    );
}

#[tokio::test]
async fn who_asks_for_a_device_tolerates_the_nodes_that_have_it() {
    let api = serving(&["ExtendedResourceToleration"], None).await;
    let asks = value!({
        "containers": [{"name": "c", "image": "i", "resources": {"limits": {"example.com/gpu": "1", "cpu": "1"}}}],
        "tolerations": [{"key": "a.com/b", "operator": "Exists", "effect": "NoSchedule"}],
    });
    let made = dry_run(&api, "ours", pod("p", asks)).await.expect(201);
    let found = list(&made, &["spec", "tolerations"]);
    let wanted = value!({"key": "example.com/gpu", "operator": "Exists", "effect": "NoSchedule"});
    assert_eq!(found.iter().filter(|t| **t == wanted).count(), 1, "{found:?}");
    assert!(!found.iter().any(|t| t.get("key") == Some(&"cpu".into())), "{found:?}");
}

#[tokio::test]
async fn events_have_a_rate() {
    let dir = Dir::new("events");
    let plugins = "- name: EventRateLimit\n  configuration:\n    apiVersion: eventratelimit.admission.k8s.io/v1alpha1\n    \
                   kind: Configuration\n    limits: [{type: Namespace, qps: 1, burst: 3}]\n";
    let api = serving(&["EventRateLimit"], Some((&dir, plugins))).await;
    namespace(&api, "other", value!({})).await;
    let event = async |namespace: &str, n: usize, query: &str| {
        let event = value!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": format!("e{n}").as_str()},
            "involvedObject": {"kind": "Pod", "namespace": namespace, "name": "p"}});
        api.post(&format!("/api/v1/namespaces/{namespace}/events{query}"), event)
            .await
    };
    event("ours", 0, "?dryRun=All").await.expect(201);
    // A slow machine's bucket fills meanwhile.
    let mut taken = 0;
    let refused = loop {
        let answer = event("ours", taken, "").await;
        if answer.code == 429 {
            break answer;
        }
        answer.expect(201);
        taken += 1;
        assert!(taken < 60, "nothing is refused");
    };
    assert!(taken >= 3, "{taken}");
    assert_eq!(
        refused.str(&["message"]),
        "Too many requests: limit reached on type Namespace for key ours"
    );
    assert_eq!(refused.str(&["reason"]), "TooManyRequests");
    event("other", 0, "").await.expect(201);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    event("ours", taken, "").await.expect(201);
}

#[tokio::test]
async fn who_gives_an_owner_may_delete_and_who_holds_up_a_deletion_may_finalize() {
    let api = serving(&["OwnerReferencesPermissionEnforcement"], None).await;
    let rules = value!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "bob"}, "rules": [
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "update", "get"]},
        {"apiGroups": ["apps"], "resources": ["deployments/finalizers"], "resourceNames": ["ours"], "verbs": ["update"]},
    ]});
    let path = "/apis/rbac.authorization.k8s.io/v1/namespaces/ours";
    api.post(&format!("{path}/roles"), rules).await.expect(201);
    let binding = value!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "bob"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "bob"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "bob"}]});
    api.post(&format!("{path}/rolebindings"), binding).await.expect(201);
    let maps = "/api/v1/namespaces/ours/configmaps";
    let owned = |name: &str, owners: Value| value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences": owners}});
    let owner = |kind: &str, name: &str, blocks: bool| value!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "u", "blockOwnerDeletion": blocks}]);
    api.post(maps, owned("admins", owner("Deployment", "theirs", true)))
        .await
        .expect(201);
    let bob = api.called_by("bob", &["system:authenticated"]);
    bob.until(&format!("{maps}/admins"), |answer| answer.code == 200).await;
    let refused = async |answer: Answer| answer.expect(403).str(&["message"]);

    bob.post(maps, owned("a", owner("Deployment", "theirs", false)))
        .await
        .expect(201);
    bob.post(maps, owned("b", owner("Deployment", "ours", true)))
        .await
        .expect(201);
    let why = refused(bob.post(maps, owned("c", owner("Deployment", "theirs", true))).await).await;
    assert_eq!(
        why,
        "configmaps \"c\" is forbidden: cannot set blockOwnerDeletion if an ownerReference refers to a resource you \
         can't set finalizers on: , <nil>"
    );
    let why = refused(bob.post(maps, owned("d", owner("Boat", "theirs", true))).await).await;
    assert_eq!(
        why,
        "configmaps \"d\" is forbidden: cannot set blockOwnerDeletion in this case because cannot find RESTMapping for \
         APIVersion apps/v1 Kind Boat: no matches for kind \"Boat\" in version \"apps/v1\""
    );
    // Another owner is as good as a deletion; the same one is nobody's business.
    let why = refused(bob.put(&format!("{maps}/a"), owned("a", value!([]))).await).await;
    assert_eq!(
        why,
        "configmaps \"a\" is forbidden: cannot set an ownerRef on a resource you can't delete: , <nil>"
    );
    let mut same = owned("a", owner("Deployment", "theirs", false));
    same.set_at(&["data"], value!({"k": "v"}));
    bob.put(&format!("{maps}/a"), same).await.expect(200);
}

#[tokio::test]
async fn somebody_outside_says_whether_images_may_run() {
    let dir = Dir::new("images");
    let ca = Authority::generate("ca").unwrap();
    let (asked, broken) = (
        Arc::new(Mutex::new(Vec::<Value>::new())),
        Arc::new(AtomicBool::new(false)),
    );
    let (noted, breaks) = (asked.clone(), broken.clone());
    let outside = Outside::start(&ca, 0, move |_, headers, body| {
        assert_eq!(headers["authorization"], "Bearer secret");
        if breaks.load(Ordering::Relaxed) {
            return (400, Vec::new(), b"not today".to_vec());
        }
        let review: Value = serde_json::from_slice(body).unwrap();
        let spec = review.get("spec").unwrap().clone();
        let image = spec.at(&["containers"]).unwrap().as_array().unwrap()[0]
            .get("image")
            .cloned();
        noted.lock().push(spec);
        let status = match image.as_ref().and_then(Value::as_str) {
            Some("bad") => value!({"allowed": false, "reason": "it is bad"}),
            Some("worse") => value!({"allowed": false}),
            _ => value!({"allowed": true, "auditAnnotations": {"seen": "yes"}}),
        };
        json(value!({"apiVersion": "imagepolicy.k8s.io/v1alpha1", "kind": "ImageReview", "status": status}))
    })
    .await;
    std::fs::write(dir.0.join("ca.pem"), ca.cert_pem()).unwrap();
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{}/judge', certificate-authority: ca.pem}}}}]\n\
         users: [{{name: u, user: {{token: secret}}}}]\n",
        outside.port
    );
    std::fs::write(dir.0.join("images.kubeconfig"), kubeconfig).unwrap();
    let plugins = |open: bool| {
        format!(
            "- name: ImagePolicyWebhook\n  configuration: {{imagePolicy: {{kubeConfigFile: images.kubeconfig, \
             retryBackoff: 1, defaultAllow: {open}}}}}\n"
        )
    };
    let api = serving(&["ImagePolicyWebhook"], Some((&dir, &plugins(false)))).await;
    let of = |image: &str| {
        let mut pod = pod("p", value!({"containers": [{"name": "c", "image": image}]}));
        pod.set_at(
            &["metadata", "annotations"],
            value!({"x.image-policy.k8s.io/y": "1", "other": "2"}),
        );
        pod
    };
    for _ in 0..2 {
        dry_run(&api, "ours", of("good")).await.expect(201);
        let refused = dry_run(&api, "ours", of("bad")).await.expect(403);
        assert_eq!(
            refused.str(&["message"]),
            "pods \"p\" is forbidden: image policy webhook backend denied one or more images: it is bad"
        );
    }
    let told = asked.lock().clone();
    assert_eq!(told.len(), 2, "what was said is remembered");
    assert_eq!(
        told[0],
        value!({"containers": [{"image": "good"}], "annotations": {"x.image-policy.k8s.io/y": "1"}, "namespace": "ours"})
    );
    let refused = dry_run(&api, "ours", of("worse")).await.expect(403);
    assert_eq!(
        refused.str(&["message"]),
        "pods \"p\" is forbidden: one or more images rejected by webhook backend"
    );
    // Where nobody can be asked the configuration says what that means, and it isn't remembered.
    broken.store(true, Ordering::Relaxed);
    dry_run(&api, "ours", of("new")).await.expect(403);
    dry_run(&api, "ours", of("good")).await.expect(201);
    let open = serving(&["ImagePolicyWebhook"], Some((&dir, &plugins(true)))).await;
    dry_run(&open, "ours", of("new")).await.expect(201);
    broken.store(false, Ordering::Relaxed);
    dry_run(&open, "ours", of("bad")).await.expect(403);
}

#[tokio::test]
async fn everything_is_denied_where_that_is_wanted() {
    let api = starting(&["AlwaysAdmit", "AlwaysDeny"], None);
    let node = value!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    let refused = api.post("/api/v1/nodes", node).await.expect(403);
    assert_eq!(
        refused.str(&["message"]),
        "nodes \"n\" is forbidden: admission control is denying all modifications"
    );
}

#[tokio::test]
async fn a_pod_is_not_resized_beyond_its_node() {
    let api = serving(&[], None).await;
    let node = value!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "labels": {"kubernetes.io/os": "linux"}}});
    api.post("/api/v1/nodes", node).await.expect(201);
    let path = "/api/v1/nodes/n";
    // As what looks a node up has it.
    let cached = format!("{path}?resourceVersion=0");
    let gives = value!({"status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "10"}}});
    api.patch(&format!("{path}/status"), "merge-patch+json", gives)
        .await
        .expect(200);
    api.until(&cached, |a| {
        a.code == 200 && a.str(&["status", "allocatable", "cpu"]) == "2"
    })
    .await;
    let of = |cpu: &str, memory: &str| {
        let requests = value!({"requests": {"cpu": cpu, "memory": memory}});
        pod(
            "p",
            value!({"nodeName": "n", "containers": [{"name": "c", "image": "i", "resources": requests}]}),
        )
    };
    api.post(PODS, of("1", "64Mi")).await.expect(201);
    let resize = async |cpu: &str, memory: &str| {
        let patch = value!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}});
        api.patch(&format!("{PODS}/p/resize"), "strategic-merge-patch+json", patch)
            .await
    };
    resize("1500m", "64Mi").await.expect(200);
    let refused = resize("3", "2Gi").await.expect(403);
    assert_eq!(
        refused.str(&["message"]),
        "pods \"p\" is forbidden: node didn't have enough allocatable resources: cpu, requested: 3000, allocatable: 2000; \
         memory, requested: 2147483648, allocatable: 1073741824"
    );
    let causes = list(&refused, &["details", "causes"]);
    assert_eq!(causes, [value!({"reason": "NodeCapacity"})]);
    let other = value!({"metadata": {"labels": {"kubernetes.io/os": "windows"}}});
    api.patch(path, "merge-patch+json", other).await.expect(200);
    api.until(&cached, |a| {
        a.str(&["metadata", "labels", "kubernetes.io/os"]) == "windows"
    })
    .await;
    let refused = resize("1", "64Mi").await.expect(403);
    assert_eq!(
        refused.str(&["message"]),
        "pods \"p\" is forbidden: pod resize is only supported on linux nodes, node \"n\" is \"windows\""
    );
    api.delete(path).await.expect(200);
    api.until(&cached, |a| a.code == 404).await;
    let refused = resize("1", "64Mi").await.expect(403);
    assert_eq!(
        refused.str(&["message"]),
        "pods \"p\" is forbidden: node \"n\" not found"
    );
}
