//! Services: their endpoints follow what pods say of themselves, and what nodes don't say any more.

use keelson_testkit::objects::{ApiObject, EndpointSlice, Endpoints, Pod, Service, is_ready, node_of};
use keelson_testkit::{Cluster, secs};

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web}
      annotations: {simulate.keelson.dev/stop-seconds: "10"}
    spec:
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
      containers:
      - {name: c, image: i, readinessProbe: {exec: {command: [probe]}, periodSeconds: 2, failureThreshold: 3}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"#;

/// Of each address: whether it is ready, serving, terminating.
type Conditions = (bool, bool, bool);

fn endpoints(slices: &[EndpointSlice]) -> Vec<(String, Conditions)> {
    let ours = slices.iter().filter(|s| s.name().starts_with("web-"));
    let mut all: Vec<_> = ours
        .flat_map(|s| s.endpoints.iter().flatten())
        .map(|e| {
            let c = e.conditions.clone().unwrap_or_default();
            let is = |b: Option<bool>| b.unwrap_or(false);
            (e.addresses[0].clone(), (is(c.ready), is(c.serving), is(c.terminating)))
        })
        .collect();
    all.sort();
    all
}

const READY: Conditions = (true, true, false);
const AWAY: Conditions = (false, false, false);
const LEAVING: Conditions = (false, true, true);

async fn wait_for(cluster: &Cluster, within: u64, mut wanted: Vec<(String, Conditions)>) {
    wanted.sort();
    cluster
        .eventually(&format!("endpoints {wanted:?}"), secs(within), async || {
            let found = endpoints(&cluster.list::<EndpointSlice>("default").await);
            if found == wanted {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        })
        .await;
}

fn address(pod: &Pod) -> String {
    pod.status.as_ref().and_then(|s| s.pod_ip.clone()).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn endpoints_follow_their_pods() {
    let cluster = Cluster::builder().nodes(2).start().await;
    cluster.apply(WEB).await;
    let pods = cluster
        .until_all("default", secs(60), "two pods are ready", |pods: &[Pod]| {
            (pods.len() == 2 && pods.iter().all(is_ready)).then(|| pods.to_vec())
        })
        .await;
    let (a, b) = (address(&pods[0]), address(&pods[1]));
    assert_ne!(node_of(&pods[0]), node_of(&pods[1]), "one on each node");
    wait_for(&cluster, 5, vec![(a.clone(), READY), (b.clone(), READY)]).await;

    let node = cluster.node(node_of(&pods[0]));
    node.runtime.set_exec("probe", 1);
    cluster.sleep(secs(3)).await;
    wait_for(&cluster, 0, vec![(a.clone(), READY), (b.clone(), READY)]).await;
    wait_for(&cluster, 5, vec![(a.clone(), AWAY), (b.clone(), READY)]).await;
    let old: Endpoints = cluster.get("default", "web").await;
    let subset = &old.subsets.expect("subsets")[0];
    let ips = |list: &Option<Vec<k8s_openapi::api::core::v1::EndpointAddress>>| {
        list.iter().flatten().map(|e| e.ip.clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        (ips(&subset.addresses), ips(&subset.not_ready_addresses)),
        (vec![b.clone()], vec![a.clone()])
    );
    node.runtime.set_exec("probe", 0);
    wait_for(&cluster, 3, vec![(a.clone(), READY), (b.clone(), READY)]).await;

    cluster.delete::<Pod>("default", pods[0].name(), None).await;
    let leaving = |found: &[(String, Conditions)]| found.contains(&(a.clone(), LEAVING));
    cluster
        .eventually("the pod that ends serves on", secs(5), async || {
            let found = endpoints(&cluster.list::<EndpointSlice>("default").await);
            if leaving(&found) {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        })
        .await;
    cluster.gone::<Pod>("default", pods[0].name(), secs(30)).await;
    cluster
        .until_all(
            "default",
            secs(30),
            "two endpoints, one of them new",
            |slices: &[EndpointSlice]| {
                let found = endpoints(slices);
                let ready = found.iter().filter(|e| e.1 == READY).count();
                (found.len() == 2 && ready == 2 && found.iter().all(|e| e.0 != a)).then_some(())
            },
        )
        .await;
}

#[tokio::test(start_paused = true)]
async fn endpoints_on_a_silent_node_are_not_ready() {
    let cluster = Cluster::builder().nodes(2).start().await;
    cluster.apply(WEB).await;
    let pods = cluster
        .until_all("default", secs(60), "two pods are ready", |pods: &[Pod]| {
            (pods.len() == 2 && pods.iter().all(is_ready)).then(|| pods.to_vec())
        })
        .await;
    cluster.node(node_of(&pods[0])).cut();
    let (a, b) = (address(&pods[0]), address(&pods[1]));
    wait_for(&cluster, 55, vec![(a, AWAY), (b, READY)]).await;
}

/// Of each endpoint: the zones and the nodes that it is meant for.
fn hints(slices: &[EndpointSlice]) -> Vec<(Vec<String>, Vec<String>)> {
    let ours = slices.iter().filter(|s| s.name().starts_with("web-"));
    let mut all: Vec<_> = ours
        .flat_map(|s| s.endpoints.iter().flatten())
        .map(|e| {
            let hints = e.hints.clone().unwrap_or_default();
            let zones = hints.for_zones.unwrap_or_default().into_iter().map(|z| z.name);
            let nodes = hints.for_nodes.unwrap_or_default().into_iter().map(|n| n.name);
            (zones.collect(), nodes.collect())
        })
        .collect();
    all.sort();
    all
}

#[tokio::test(start_paused = true)]
async fn endpoints_say_for_whom_they_are() {
    let mut cluster = Cluster::builder().start().await;
    for (node, zone) in [("a", "east"), ("b", "west")] {
        cluster.join(node, Default::default(), &[("topology.kubernetes.io/zone", zone)]);
        cluster.node_is_up(node).await;
    }
    cluster.apply(WEB).await;
    let own = |words: &[&str]| words.iter().map(|w| w.to_string()).collect::<Vec<_>>();
    let hinted = async |cluster: &Cluster, what: &str, wanted: [(&[&str], &[&str]); 2]| {
        let wanted: Vec<_> = wanted.iter().map(|(z, n)| (own(z), own(n))).collect();
        cluster
            .eventually(what, secs(60), async || {
                let found = hints(&cluster.list::<EndpointSlice>("default").await);
                if found == wanted {
                    Ok(())
                } else {
                    Err(format!("{found:?}"))
                }
            })
            .await;
    };
    hinted(&cluster, "no hints", [(&[], &[]), (&[], &[])]).await;
    let prefer = |how: serde_json::Value| serde_json::json!({"spec": {"trafficDistribution": how}});
    cluster
        .patch::<Service>("default", "web", prefer("PreferClose".into()))
        .await;
    hinted(&cluster, "by zone", [(&["east"], &[]), (&["west"], &[])]).await;
    cluster
        .patch::<Service>("default", "web", prefer("PreferSameNode".into()))
        .await;
    hinted(&cluster, "by node", [(&["east"], &["a"]), (&["west"], &["b"])]).await;
    cluster
        .patch::<Service>("default", "web", prefer(serde_json::Value::Null))
        .await;
    hinted(&cluster, "none any more", [(&[], &[]), (&[], &[])]).await;
    let auto = serde_json::json!({"metadata": {"annotations": {"service.kubernetes.io/topology-mode": "Auto"}}});
    cluster.patch::<Service>("default", "web", auto).await;
    hinted(&cluster, "shared out", [(&["east"], &[]), (&["west"], &[])]).await;
    let told = cluster.events("default").await;
    let enabled = told
        .iter()
        .filter(|e| e.reason.as_deref() == Some("TopologyAwareHintsEnabled"));
    assert_eq!(enabled.count(), 1);
}
