//! The cluster's network policies, as the API takes and refuses them, and what is said of them in their statuses. What they do with
//! packets is shown in `crates/pod/policy/tests`.

use keelson_client::cluster_policies::ClusterNetworkPolicy;
use keelson_testkit::{Cluster, secs};
use serde_json::{Value, json};

/// What the program gives the controller, and no more.
const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: policies}
rules:
- {apiGroups: [policy.networking.k8s.io], resources: [clusternetworkpolicies/status], verbs: [patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: policies}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: policies}
subjects: [{kind: ServiceAccount, namespace: kube-system, name: keelson-cluster-policies}]
"#;

fn object(name: &str, egress: Value) -> ClusterNetworkPolicy {
    serde_json::from_value(json!({"metadata": {"name": name},
        "spec": {"tier": "Admin", "priority": 7, "subject": {"namespaces": {}}, "egress": [egress]}}))
    .expect("a policy")
}

fn said(policy: &ClusterNetworkPolicy) -> Option<(String, String)> {
    let conditions = policy.status.iter().flat_map(|s| &s.conditions);
    let mut own = conditions.filter(|c| c.type_ == "keelson.dev/Enforced");
    own.next().map(|c| (c.status.clone(), c.message.clone()))
}

#[tokio::test(start_paused = true)]
async fn policies_are_taken_as_upstream_takes_them_and_what_is_not_enforced_is_said() {
    let cluster = Cluster::builder()
        .nodes(0)
        .controllers(&["cluster-network-policy"])
        .without_scheduler()
        .start()
        .await;
    let definition = keelson_controllers::cluster_policy_definition();
    cluster.apply(&definition.to_string()).await;
    cluster.apply(RIGHTS).await;
    let policies = cluster.objects::<ClusterNetworkPolicy>();
    cluster
        .eventually("policies are served", secs(30), async || {
            let served = policies.list("", "", "").await;
            served.map(drop).map_err(|e| e.to_string())
        })
        .await;

    for (wrong, egress) in [
        (
            "namedPorts",
            json!({"action": "Deny", "to": [{"networks": ["10.0.0.0/8"]}], "protocols": [{"destinationNamedPort": "web"}]}),
        ),
        (
            "Invalid CIDR",
            json!({"action": "Deny", "to": [{"networks": ["10.0.0.0/40"]}]}),
        ),
        ("action", json!({"action": "Allow", "to": [{"namespaces": {}}]})),
        ("spec.egress[0].to", json!({"action": "Deny", "to": []})),
        (
            "spec.egress[0].to[0]",
            json!({"action": "Deny", "to": [{"namespaces": {}, "nodes": {}}]}),
        ),
        (
            "Start port",
            json!({"action": "Deny", "to": [{"namespaces": {}}], "protocols": [{"tcp": {"destinationPort": {"range": {"start": 9, "end": 9}}}}]}),
        ),
    ] {
        let refused = policies.create(&object("wrong", egress)).await;
        let error = refused.expect_err(wrong).to_string();
        assert!(error.contains(wrong), "{wrong}: {error}");
    }

    let whole = json!({"action": "Deny", "to": [{"nodes": {}}, {"networks": ["10.0.0.0/8", "fd00::/8"]}],
        "protocols": [{"tcp": {"destinationPort": {"number": 80}}}]});
    policies.create(&object("whole", whole)).await.expect("it is taken");
    let part = json!({"name": "web", "action": "Accept", "to": [{"domainNames": ["*.example.org"]}]});
    policies.create(&object("part", part)).await.expect("it is taken");
    for (name, status, says) in [
        ("whole", "True", "It is enforced as it is written."),
        (
            "part",
            "False",
            "egress rule 1 (web): domainNames are not enforced here, so it accepts nothing",
        ),
    ] {
        let is_said = |p: &ClusterNetworkPolicy| said(p) == Some((status.to_string(), says.to_string()));
        cluster
            .until("", name, secs(30), "says what is enforced", is_said)
            .await;
    }
}
