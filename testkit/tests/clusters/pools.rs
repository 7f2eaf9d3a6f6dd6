//! Pools of addresses for services of type LoadBalancer: as the API takes and refuses them, who gets which address, and what is said about it.
//! Who answers for the addresses is shown in `crates/pod/announce/tests`.

use keelson_balancing::LoadBalancerIpPool;
use keelson_testkit::objects::Service;
use keelson_testkit::{Cluster, secs};
use serde_json::json;

const N0: &str = "192.168.0.1";
const POOL: &str = "keelson.dev/load-balancer-pool";
const SHARING: &str = "keelson.dev/allow-shared-ip";

/// What the program gives who writes pools' statuses, and no more.
const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: pools}
rules:
- {apiGroups: [keelson.dev], resources: [loadbalancerippools/status], verbs: [patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: pools}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: pools}
subjects: [{kind: ServiceAccount, namespace: kube-system, name: keelson-load-balancer-pools}]
"#;

fn pool(name: &str, spec: &str) -> String {
    format!("apiVersion: keelson.dev/v1\nkind: LoadBalancerIPPool\nmetadata: {{name: {name}}}\nspec: {{{spec}}}")
}

fn service(name: &str, annotations: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\nspec: {{type: LoadBalancer, {spec}}}"
    )
}

fn addresses(service: &Service) -> Vec<String> {
    let balancer = service.status.iter().filter_map(|s| s.load_balancer.as_ref());
    let ingress = balancer.flat_map(|b| b.ingress.iter().flatten());
    ingress.filter_map(|i| i.ip.clone()).collect()
}

async fn has(cluster: &Cluster, name: &str, wanted: &[&str]) -> Service {
    let what = format!("has {wanted:?}");
    let is = |s: &Service| s.metadata.finalizers.is_some() && addresses(s) == wanted;
    cluster.until("default", name, secs(20), &what, is).await
}

async fn told(cluster: &Cluster, name: &str, reason: &str, message: &str) {
    let what = format!("event {reason} {message:?}");
    cluster
        .eventually(&what, secs(20), async || {
            let all = cluster.events("default").await;
            let about = all.iter().filter(|e| e.involved_object.name.as_deref() == Some(name));
            let pairs: Vec<_> = about.map(|e| (e.reason.clone(), e.message.clone())).collect();
            match pairs.contains(&(Some(reason.into()), Some(message.into()))) {
                true => Ok(()),
                false => Err(format!("{pairs:?}")),
            }
        })
        .await;
}

/// Assigned, available, and whether its ranges count.
async fn counts(cluster: &Cluster, name: &str, wanted: (i64, i64, &str)) {
    let is = |p: &LoadBalancerIpPool| {
        let Some(status) = &p.status else { return false };
        let valid = status.conditions.iter().find(|c| c.type_ == "Valid");
        (
            status.assigned_v4,
            status.available_v4,
            valid.map_or("", |c| c.status.as_str()),
        ) == wanted
    };
    cluster.until("", name, secs(20), &format!("{wanted:?}"), is).await;
}

async fn cluster() -> Cluster {
    let cluster = Cluster::builder()
        .nodes(1)
        .controllers(&["service-lb", "nodelifecycle", "service-cidr"])
        .start()
        .await;
    cluster.apply(&keelson_controllers::pool_definition().to_string()).await;
    cluster.apply(RIGHTS).await;
    let pools = cluster.objects::<LoadBalancerIpPool>();
    cluster
        .eventually("pools are served", secs(30), async || {
            let served = pools.list("", "", "").await;
            served.map(drop).map_err(|e| e.to_string())
        })
        .await;
    cluster
}

#[tokio::test(start_paused = true)]
async fn services_get_addresses_of_pools_and_keep_them() {
    let mut cluster = cluster().await;
    cluster.apply(&service("before", "", "ports: [{port: 80}]")).await;
    has(&cluster, "before", &[N0]).await;

    for (wrong, spec) in [
        ("must be a CIDR", "addresses: [192.0.2.1]"),
        ("must be a CIDR", "addresses: [192.0.2.1-x]"),
        ("must be a range of one family", "addresses: ['192.0.2.1-2001:db8::1']"),
        (
            "Unsupported value",
            "addresses: [192.0.2.0/24], announce: {protocol: OSPF}",
        ),
        (
            "they aren't",
            "addresses: [192.0.2.0/24], announce: {protocol: None, interfaces: [eth0]}",
        ),
        (
            "interfaces are for protocol Layer2",
            "addresses: [192.0.2.0/24], announce: {protocol: BGP, interfaces: [eth0]}",
        ),
        (
            "advertisements are for protocol BGP",
            "addresses: [192.0.2.0/24], announce: {advertisements: [{localPreference: 1}]}",
        ),
        (
            "must be A:B",
            "addresses: [192.0.2.0/24], announce: {protocol: BGP, advertisements: [{communities: ['65536:1']}]}",
        ),
        (
            "must be A:B",
            "addresses: [192.0.2.0/24], announce: {protocol: BGP, advertisements: [{communities: ['1:2:4294967296']}]}",
        ),
        (
            "must be A:B",
            "addresses: [192.0.2.0/24], announce: {protocol: BGP, advertisements: [{communities: [no-import]}]}",
        ),
        ("should have at least 1 items", "addresses: []"),
    ] {
        let refused = cluster.try_apply(&pool("wrong", spec)).await.unwrap_err().to_string();
        assert!(refused.contains(wrong), "{spec}: {refused}");
    }
    let good = "addresses: [192.0.2.10-192.0.2.11, '2001:db8::/120', 192.0.2.64/31]";
    cluster.apply(&pool("default", good)).await;
    cluster
        .apply(&pool("late", "addresses: [192.0.2.0/24], autoAssign: false"))
        .await;
    counts(&cluster, "default", (0, 4, "True")).await;
    counts(&cluster, "late", (0, 0, "False")).await;

    has(&cluster, "before", &[N0]).await;
    cluster.apply(&service("one", "", "ports: [{port: 80}]")).await;
    has(&cluster, "one", &["192.0.2.10"]).await;
    told(&cluster, "one", "IPAllocated", "Assigned IP [\"192.0.2.10\"]").await;
    cluster
        .apply(&service("asked", "", "loadBalancerIP: 192.0.2.65, ports: [{port: 80}]"))
        .await;
    has(&cluster, "asked", &["192.0.2.65"]).await;
    cluster
        .apply(&service(
            "node",
            "",
            "loadBalancerClass: keelson.dev/node, ports: [{port: 81}]",
        ))
        .await;
    has(&cluster, "node", &[N0]).await;
    let foreign = service(
        "foreign",
        "",
        "loadBalancerClass: example.com/other, ports: [{port: 82}]",
    );
    cluster.apply(&foreign).await;
    let sharing = format!("{SHARING}: key");
    for (name, port, ip) in [
        ("two", 80, "192.0.2.11"),
        ("three", 443, "192.0.2.11"),
        ("four", 80, "192.0.2.64"),
    ] {
        cluster
            .apply(&service(name, &sharing, &format!("ports: [{{port: {port}}}]")))
            .await;
        has(&cluster, name, &[ip]).await;
    }
    counts(&cluster, "default", (4, 0, "True")).await;

    cluster
        .apply(&service(
            "five",
            "",
            "loadBalancerClass: keelson.dev/pool, ports: [{port: 80}]",
        ))
        .await;
    has(&cluster, "five", &[]).await;
    let why = "Failed to allocate IP for \"default/five\": no available IPs";
    told(&cluster, "five", "AllocationFailed", why).await;
    cluster.delete::<Service>("default", "one", None).await;
    has(&cluster, "five", &["192.0.2.10"]).await;

    // Somebody else leads, and finds everything as it is.
    cluster.kill_controllers();
    cluster.start_controllers();
    cluster
        .apply(&service("six", &format!("{POOL}: late"), "ports: [{port: 80}]"))
        .await;
    told(
        &cluster,
        "six",
        "AllocationFailed",
        "Failed to allocate IP for \"default/six\": no available IPs in pool \"late\"",
    )
    .await;
    for (name, ip) in [
        ("before", N0),
        ("asked", "192.0.2.65"),
        ("two", "192.0.2.11"),
        ("three", "192.0.2.11"),
        ("five", "192.0.2.10"),
    ] {
        has(&cluster, name, &[ip]).await;
    }
    let foreign: Service = cluster.get("default", "foreign").await;
    assert!(addresses(&foreign).is_empty() && foreign.metadata.finalizers.is_none());

    // The pool shrinks: who has what is no longer in it gets another, if there is one. Another pool gains what it gave up.
    let less = json!({"spec": {"addresses": ["192.0.2.64/30"]}});
    cluster.patch::<LoadBalancerIpPool>("", "default", less).await;
    for (name, ip) in [("asked", "192.0.2.65"), ("four", "192.0.2.64")] {
        has(&cluster, name, &[ip]).await;
    }
    told(&cluster, "asked", "IPAllocated", "Assigned IP [\"192.0.2.65\"]").await;
    counts(&cluster, "default", (4, 0, "True")).await;
    cluster
        .patch::<LoadBalancerIpPool>("", "late", json!({"spec": {"addresses": ["198.51.100.0/30"]}}))
        .await;
    has(&cluster, "six", &["198.51.100.0"]).await;

    // Without a pool for it, a service that asks for none has the nodes' addresses as ever; others wait.
    cluster.delete::<LoadBalancerIpPool>("", "default", None).await;
    has(&cluster, "five", &[]).await;
    has(&cluster, "asked", &[]).await;
    has(&cluster, "three", &[N0]).await;
}
