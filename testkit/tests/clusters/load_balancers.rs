//! Services of type LoadBalancer: whose addresses they get, whose they don't, and what is said about it.

use keelson_testkit::objects::{ApiObject, Pod, Service, is_ready, node_of};
use keelson_testkit::{Cluster, secs};
use serde_json::json;

const N0: &str = "192.168.0.1";
const N1: &str = "192.168.0.2";
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

fn service(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: LoadBalancer, {spec}}}")
}

fn addresses(service: &Service) -> Vec<String> {
    let balancer = service.status.iter().filter_map(|s| s.load_balancer.as_ref());
    let ingress = balancer.flat_map(|b| b.ingress.iter().flatten());
    ingress
        .inspect(|i| assert_eq!(i.ip_mode.as_deref(), Some("VIP")))
        .filter_map(|i| i.ip.clone())
        .collect()
}

/// What the status says of the load balancer: reason and message.
fn said(service: &Service) -> (String, String) {
    let all = service.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let found = all.into_iter().find(|c| c.type_ == "keelson.dev/LoadBalancer");
    found.map(|c| (c.reason.clone(), c.message.clone())).unwrap_or_default()
}

async fn has(cluster: &Cluster, name: &str, wanted: &[&str]) -> Service {
    let what = format!("has {wanted:?}");
    cluster
        .until("default", name, secs(20), &what, |s: &Service| addresses(s) == wanted)
        .await
}

async fn refused(cluster: &Cluster, name: &str, why: &str) {
    let is = |s: &Service| addresses(s).is_empty() && said(s) == ("Refused".into(), why.into());
    cluster.until("default", name, secs(20), why, is).await;
    let text = format!("Error syncing load balancer: failed to ensure load balancer: {why}");
    told(cluster, name, "SyncLoadBalancerFailed", &text).await;
}

async fn told(cluster: &Cluster, name: &str, reason: &str, message: &str) {
    let what = format!("event {reason} {message:?}");
    cluster
        .eventually(&what, secs(20), async || {
            let about = |e: &&_| {
                let e: &k8s_openapi::api::core::v1::Event = e;
                e.involved_object.name.as_deref() == Some(name)
            };
            let all = cluster.events("default").await;
            let pairs: Vec<_> = all
                .iter()
                .filter(about)
                .map(|e| (e.reason.clone(), e.message.clone()))
                .collect();
            match pairs.contains(&(Some(reason.into()), Some(message.into()))) {
                true => Ok(()),
                false => Err(format!("{pairs:?}")),
            }
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn services_have_the_nodes_addresses_and_each_port_belongs_to_one() {
    let cluster = Cluster::builder().nodes(2).start().await;
    cluster.apply(&service("web", "ports: [{port: 80}]")).await;
    let web = has(&cluster, "web", &[N0, N1]).await;
    assert_eq!(web.metadata.finalizers, Some(vec![FINALIZER.into()]));
    told(&cluster, "web", "EnsuringLoadBalancer", "Ensuring load balancer").await;
    told(&cluster, "web", "EnsuredLoadBalancer", "Ensured load balancer").await;

    cluster
        .apply(&service("late", "ports: [{name: b, port: 443}, {name: a, port: 80}]"))
        .await;
    let why =
        "port 80/TCP of node n0 is held by service default/web; port 80/TCP of node n1 is held by service default/web";
    refused(&cluster, "late", why).await;
    cluster
        .apply(&service("other", "ports: [{port: 80, protocol: UDP}]"))
        .await;
    has(&cluster, "other", &[N0, N1]).await;
    let bare = "allocateLoadBalancerNodePorts: false, ports: [{port: 8080}]";
    cluster.apply(&service("bare", bare)).await;
    let bare = has(&cluster, "bare", &[N0, N1]).await;
    let ports = bare.spec.and_then(|s| s.ports).unwrap_or_default();
    assert_eq!(ports[0].node_port, None);
    cluster
        .apply(&service(
            "foreign",
            "loadBalancerClass: example.com/other, ports: [{port: 81}]",
        ))
        .await;
    cluster
        .apply(&service(
            "named",
            "loadBalancerClass: keelson.dev/node, ports: [{port: 81}]",
        ))
        .await;
    has(&cluster, "named", &[N0, N1]).await;
    let foreign: Service = cluster.get("default", "foreign").await;
    assert_eq!(
        (addresses(&foreign), foreign.metadata.finalizers.clone()),
        (vec![], None)
    );

    let node_port = "apiVersion: v1\nkind: Service\nmetadata: {name: port}\nspec: {type: NodePort, ports: [{port: 1, nodePort: 30100}]}";
    cluster.apply(node_port).await;
    cluster.apply(&service("clash", "ports: [{port: 30100}]")).await;
    refused(
        &cluster,
        "clash",
        "port 30100/TCP is the node port of service default/port",
    )
    .await;

    let exclude = json!({"metadata": {"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": ""}}});
    cluster
        .patch::<k8s_openapi::api::core::v1::Node>("", "n0", exclude)
        .await;
    has(&cluster, "web", &[N1]).await;
    told(
        &cluster,
        "web",
        "UpdatedLoadBalancer",
        "Updated load balancer with new hosts",
    )
    .await;

    cluster.delete::<Service>("default", "web", None).await;
    cluster.gone::<Service>("default", "web", secs(20)).await;
    has(&cluster, "late", &[N1]).await;
    cluster
        .patch::<Service>(
            "default",
            "port",
            json!({"spec": {"ports": [{"port": 1, "nodePort": 30101}]}}),
        )
        .await;
    has(&cluster, "clash", &[N1]).await;

    let plain = json!({"spec": {"type": "ClusterIP"}});
    cluster.patch::<Service>("default", "late", plain).await;
    let is_plain = |s: &Service| s.metadata.finalizers.is_none() && addresses(s).is_empty() && said(s).0.is_empty();
    cluster
        .until("default", "late", secs(20), "is a plain service", is_plain)
        .await;
    told(&cluster, "late", "DeletedLoadBalancer", "Deleted load balancer").await;
}

const WEB: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers: [{name: c, image: i, readinessProbe: {exec: {command: [probe]}, periodSeconds: 1, failureThreshold: 1}}]
"#;

const HOST: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: host}
spec: {nodeName: n0, containers: [{name: c, image: i, ports: [{containerPort: 80, hostPort: 8080}]}]}
"#;

#[tokio::test(start_paused = true)]
async fn only_nodes_that_can_serve_give_their_addresses() {
    let cluster = Cluster::builder().nodes(2).start().await;
    cluster.apply(WEB).await;
    let pod = cluster.until("default", "web", secs(30), "is ready", is_ready).await;
    let (node, own) = match node_of(&pod) {
        "n0" => ("n0", N0),
        _ => ("n1", N1),
    };
    let local = "selector: {app: web}, externalTrafficPolicy: Local, ports: [{port: 80}]";
    cluster.apply(&service("local", local)).await;
    has(&cluster, "local", &[own]).await;
    cluster.node(node).runtime.set_exec("probe", 1);
    has(&cluster, "local", &[]).await;
    let text = "There are no available nodes for LoadBalancer";
    told(&cluster, "local", "UnAvailableLoadBalancer", text).await;
    cluster.node(node).runtime.set_exec("probe", 0);
    has(&cluster, "local", &[own]).await;

    cluster.apply(&service("wide", "ports: [{port: 8080}]")).await;
    has(&cluster, "wide", &[N0, N1]).await;
    cluster.apply(HOST).await;
    let wide = has(&cluster, "wide", &[N1]).await;
    let why = "port 8080/TCP of node n0 is a host port of pod default/host";
    assert_eq!(said(&wide), ("Ensured".into(), why.into()));
    cluster.delete::<Pod>("default", "host", None).await;
    has(&cluster, "wide", &[N0, N1]).await;
    cluster.node("n1").cut();
    let wide = cluster
        .until("default", "wide", secs(90), "leaves a silent node", |s: &Service| {
            addresses(s) == [N0]
        })
        .await;
    assert_eq!(wide.name(), "wide");
}
