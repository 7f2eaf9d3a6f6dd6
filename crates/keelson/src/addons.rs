//! Objects that this program brings along: what its own components may do, and what agents are told; below, those that files of
//! directories bring ([`serve`]).
//!
//! Agents hold one credential, their node's certificate. Their network, proxy and DNS act under the same names as on a
//! server, by impersonation; so what these names may do is what any node can come by. It is kept to reading, and to events; of secrets it
//! is copies of the certificates that every node shows, and the passwords that every node has with BGP peers. Who makes
//! volumes of a node's disk has a name with the node's in it, which no other node can take, and writes only what is that node's.

pub mod command;
pub mod options;
pub mod serve;

use crate::cluster::{self, Cluster};
use crate::config::{Component, Config};
use crate::definitions;
use crate::kubeadm;
use anyhow::Context;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::objects::Objects;
use keelson_client::rest::Rest;
use keelson_controllers::{cluster_policy_definition, peer_definition, pool_definition};
use serde_json::{Value, json};

/// Who answers for addresses of load balancers, on every node.
pub const ANNOUNCE_IDENTITY: &str = "system:serviceaccount:kube-system:keelson-announce";
/// Who cluster DNS is: it answers from services and endpoints.
pub const DNS_IDENTITY: &str = "system:serviceaccount:kube-system:keelson-dns";
/// Who says where cluster DNS is reached.
pub const DNS_PUBLISHER_IDENTITY: &str = "system:serviceaccount:kube-system:keelson-dns-endpoints";
/// Who takes in requests from outside, on every node.
pub const INGRESS_IDENTITY: &str = "system:serviceaccount:kube-system:keelson-ingress";
/// Who says where those requests come in, and copies the certificates that are shown: on servers only.
pub const INGRESS_PUBLISHER_IDENTITY: &str = "system:serviceaccount:kube-system:keelson-ingress-publisher";
/// Who connects nodes, and finds the servers.
pub const NETWORK_IDENTITY: &str = "system:serviceaccount:kube-system:keelson-network";
/// Who enforces network policies.
pub const POLICY_IDENTITY: &str = "system:serviceaccount:kube-system:keelson-policy";
/// Who the proxy is; upstream's roles know it.
pub const PROXY_IDENTITY: &str = "system:kube-proxy";

/// As far as machines have to do with it: `keelson_apiserver::upgrades`.
const UPGRADE_ORDER: &str = "/keelson/upgrade/order";
const UPGRADE_PROGRAMS: &str = "/keelson/upgrade/programs/*";

/// The roles that read secrets of all namespaces; whose they are no node may be.
const INGRESS_PUBLISHER: &str = "system:keelson:ingress-publisher";
/// Only where something may be shared.
const SHARING: &str = "system:keelson:sharing";

/// Where a grant holds.
#[derive(Clone, Copy)]
pub enum Scope {
    Cluster,
    In(&'static str),
}

/// A role and to whom it is bound.
pub struct Grant {
    pub name: &'static str,
    pub scope: Scope,
    pub to: Vec<Subject>,
    pub rules: Value,
}

fn account(name: &str) -> Subject {
    Subject {
        kind: "ServiceAccount".into(),
        namespace: Some("kube-system".into()),
        name: name.into(),
        ..Subject::default()
    }
}

pub fn group(name: &str) -> Subject {
    Subject {
        kind: "Group".into(),
        api_group: Some("rbac.authorization.k8s.io".into()),
        name: name.into(),
        ..Subject::default()
    }
}

pub fn nodes() -> Subject {
    group(keelson_pki::layout::NODES_GROUP)
}

/// Who makes volumes of nodes' disks. Which of them is whose, the NodeRestriction admission plug-in sees to.
fn makers() -> Subject {
    group(keelson_apiserver::LOCAL_STORAGE)
}

pub(crate) fn grants() -> Vec<Grant> {
    let dns = json!([
        {"apiGroups": [""], "resources": ["services"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
        // Nodes are answered, strangers aren't.
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
    ]);
    let policy = json!([
        {"apiGroups": [""], "resources": ["pods", "namespaces", "nodes"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["policy.networking.k8s.io"], "resources": ["clusternetworkpolicies"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["apiextensions.k8s.io"], "resources": ["customresourcedefinitions"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["get", "list", "watch"]},
    ]);
    let publisher = json!([{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]);
    let publisher_writes = json!([
        {"apiGroups": [""], "resources": ["services"], "verbs": ["get", "create"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"],
         "verbs": ["get", "list", "create", "update", "delete"]},
    ]);
    // Kubelets are asked directly: nodes/proxy would be every command in every pod.
    let metrics = json!([
        {"apiGroups": [""], "resources": ["nodes", "pods"], "verbs": ["get", "list"]},
        {"apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"]},
    ]);
    let network = json!([{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]);
    let servers = json!([
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
    ]);
    let as_proxy = json!([
        {"apiGroups": [""], "resources": ["users"], "resourceNames": [PROXY_IDENTITY], "verbs": ["impersonate"]},
    ]);
    let agent = json!([
        {"apiGroups": [""], "resources": ["serviceaccounts"], "resourceNames": ["keelson-announce", "keelson-dns", "keelson-ingress", "keelson-network", "keelson-policy"],
         "verbs": ["impersonate"]},
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [cluster::NAME], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [keelson_pki::revocation::NAME], "verbs": ["get", "list", "watch"]},
    ]);
    // As authorities follow one another, machines hear of it there.
    let trust = json!([
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["cluster-info"], "verbs": ["get", "list", "watch"]},
    ]);
    let approver = json!([
        {"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests/approval"], "verbs": ["update"]},
        {"apiGroups": ["certificates.k8s.io"], "resources": ["signers"],
         "resourceNames": ["kubernetes.io/kubelet-serving"], "verbs": ["approve"]},
    ]);
    let storage = json!([
        {"apiGroups": [""], "resources": ["persistentvolumes"],
         "verbs": ["get", "list", "watch", "create", "update", "patch", "delete"]},
        {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["get", "list", "watch", "update"]},
        {"apiGroups": [""], "resources": ["persistentvolumeclaims/status"], "verbs": ["update"]},
        {"apiGroups": ["storage.k8s.io"], "resources": ["storageclasses"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["snapshot.storage.k8s.io"], "resources": ["volumesnapshots", "volumesnapshotclasses"], "verbs": ["get"]},
        {"apiGroups": ["snapshot.storage.k8s.io"], "resources": ["volumesnapshotcontents"],
         "verbs": ["get", "list", "watch", "patch"]},
        {"apiGroups": ["snapshot.storage.k8s.io"], "resources": ["volumesnapshotcontents/status"], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]},
        {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]},
    ]);
    let room = json!([
        {"apiGroups": ["storage.k8s.io"], "resources": ["csistoragecapacities"],
         "verbs": ["get", "list", "create", "update", "delete"]},
    ]);
    let snapshots = json!([
        {"apiGroups": ["snapshot.storage.k8s.io"], "resources": ["volumesnapshots", "volumesnapshots/status"], "verbs": ["patch"]},
        {"apiGroups": ["snapshot.storage.k8s.io"], "resources": ["volumesnapshotcontents"],
         "verbs": ["create", "patch", "delete"]},
        {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["patch"]},
        {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]},
    ]);
    let routes = json!([
        {"apiGroups": [""], "resources": ["services", "namespaces"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["networking.k8s.io"], "resources": ["ingresses", "ingressclasses"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["gateway.networking.k8s.io"], "verbs": ["get", "list", "watch"],
         "resources": ["backendtlspolicies", "gatewayclasses", "gateways", "grpcroutes", "httproutes", "listenersets", "referencegrants", "tcproutes", "tlsroutes", "udproutes"]},
    ]);
    let shown = json!([{"apiGroups": [""], "resources": ["configmaps", "secrets"], "verbs": ["get", "list", "watch"]}]);
    let ingress_publisher = json!([
        {"apiGroups": [""], "resources": ["configmaps", "services", "namespaces", "nodes", "secrets"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["apiextensions.k8s.io"], "resources": ["customresourcedefinitions"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["networking.k8s.io"], "resources": ["ingresses", "ingressclasses"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["networking.k8s.io"], "resources": ["ingresses/status"], "verbs": ["patch"]},
        {"apiGroups": ["gateway.networking.k8s.io"], "verbs": ["get", "list", "watch"],
         "resources": ["backendtlspolicies", "gatewayclasses", "gateways", "grpcroutes", "httproutes", "listenersets", "referencegrants", "tcproutes", "tlsroutes", "udproutes"]},
        {"apiGroups": ["gateway.networking.k8s.io"], "verbs": ["patch"],
         "resources": ["backendtlspolicies/status", "gatewayclasses/status", "gateways/status", "grpcroutes/status", "httproutes/status", "listenersets/status", "tcproutes/status", "tlsroutes/status", "udproutes/status"]},
        {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]},
    ]);
    let ingress_publisher_writes = json!([
        {"apiGroups": [""], "resources": ["configmaps", "services", "secrets"], "verbs": ["create", "update", "delete"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "create", "update", "delete"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "list", "watch", "create", "update"]},
    ]);
    let cluster_policies = json!([
        {"apiGroups": ["policy.networking.k8s.io"], "resources": ["clusternetworkpolicies/status"], "verbs": ["patch"]},
    ]);
    let pools = json!([
        {"apiGroups": [keelson_balancing::GROUP], "resources": ["bgppeers/status", "loadbalancerippools/status"], "verbs": ["patch"]},
    ]);
    let announce = json!([
        {"apiGroups": [""], "resources": ["nodes", "services"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [keelson_balancing::GROUP], "resources": ["bgppeers", "loadbalancerippools"], "verbs": ["get", "list", "watch"]},
    ]);
    let reload = json!([
        {"apiGroups": ["apps"], "resources": ["daemonsets", "deployments", "statefulsets"], "verbs": ["patch"]},
        {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]},
    ]);
    let sharing = json!([
        {"apiGroups": [""], "resources": ["configmaps", "secrets"], "verbs": ["get", "create", "update", "delete"]},
        {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]},
    ]);
    // Of all secrets this one, which every node needs.
    let passwords = json!([
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [keelson_balancing::peer::PASSWORDS], "verbs": ["get", "list", "watch"]},
    ]);
    // Who is to become a server asks one where the datastore is.
    let joining = json!([{"nonResourceURLs": [keelson_apiserver::joining::PATH], "verbs": ["get"]}]);
    // Machines fetch what an administrator has them run.
    let upgrades = json!([
        {"nonResourceURLs": [UPGRADE_ORDER, UPGRADE_PROGRAMS], "verbs": ["get"]},
    ]);
    let grant = |name, scope, to, rules| {
        let to = vec![to];
        Grant { name, scope, to, rules }
    };
    let mut all = vec![
        grant(
            "system:keelson:kubelet-serving-approver",
            Scope::Cluster,
            account("kubelet-serving-approver"),
            approver,
        ),
        grant("system:keelson:dns", Scope::Cluster, account("keelson-dns"), dns),
        grant(
            "system:keelson:dns-endpoints",
            Scope::Cluster,
            account("keelson-dns-endpoints"),
            publisher,
        ),
        grant(
            "system:keelson:dns-endpoints",
            Scope::In("kube-system"),
            account("keelson-dns-endpoints"),
            publisher_writes,
        ),
        grant(
            "system:keelson:metrics",
            Scope::Cluster,
            account("keelson-metrics"),
            metrics,
        ),
        grant(
            "system:keelson:policy",
            Scope::Cluster,
            account("keelson-policy"),
            policy,
        ),
        grant(
            "system:keelson:network",
            Scope::Cluster,
            account("keelson-network"),
            network,
        ),
        grant(
            "system:keelson:servers",
            Scope::In("default"),
            account("keelson-network"),
            servers,
        ),
        grant("system:keelson:local-storage", Scope::Cluster, makers(), storage),
        grant("system:keelson:local-storage", Scope::In("kube-system"), makers(), room),
        grant(
            "system:keelson:snapshot-controller",
            Scope::Cluster,
            account("keelson-snapshot-controller"),
            snapshots,
        ),
        grant(
            "system:keelson:cluster-policies",
            Scope::Cluster,
            account("keelson-cluster-policies"),
            cluster_policies,
        ),
        grant(
            "system:keelson:load-balancer-pools",
            Scope::Cluster,
            account("keelson-load-balancer-pools"),
            pools,
        ),
        grant(
            "system:keelson:reload",
            Scope::Cluster,
            account("keelson-reload"),
            reload,
        ),
        grant(SHARING, Scope::Cluster, account("keelson-sharing"), sharing),
        grant(
            "system:keelson:announce",
            Scope::Cluster,
            account("keelson-announce"),
            announce,
        ),
        grant(
            "system:keelson:announce",
            Scope::In(keelson_balancing::peer::PASSWORDS_NAMESPACE),
            account("keelson-announce"),
            passwords,
        ),
        grant(
            "system:keelson:server",
            Scope::Cluster,
            group(keelson_apiserver::joining::GROUP),
            joining,
        ),
        grant(
            "system:keelson:ingress",
            Scope::Cluster,
            account("keelson-ingress"),
            routes,
        ),
        grant(
            "system:keelson:ingress",
            Scope::In(keelson_gateway::NAMESPACE),
            account("keelson-ingress"),
            shown,
        ),
        grant(
            INGRESS_PUBLISHER,
            Scope::Cluster,
            account("keelson-ingress-publisher"),
            ingress_publisher,
        ),
        grant(
            INGRESS_PUBLISHER,
            Scope::In(keelson_gateway::NAMESPACE),
            account("keelson-ingress-publisher"),
            ingress_publisher_writes,
        ),
        grant("system:keelson:agent", Scope::Cluster, nodes(), as_proxy),
        grant("system:keelson:upgrades", Scope::Cluster, nodes(), upgrades),
        grant("system:keelson:agent", Scope::In("kube-system"), nodes(), agent),
        grant("system:keelson:agent", Scope::In("kube-public"), nodes(), trust),
    ];
    all.extend(kubeadm::grants());
    all
}

/// Writes them; existing ones are brought back to what is needed. What can't be written keeps nothing else from being; the first such
/// error is told.
pub async fn apply(client: kube::Client, config: &Config) -> anyhow::Result<()> {
    let rest = Rest::new(client, "keelson");
    let mut done = crate::ingress::apply(&rest, config).await;
    for grant in grants() {
        // Where nothing is taken in, its namespace isn't there.
        let of_ingress = matches!(grant.scope, Scope::In(keelson_gateway::NAMESPACE));
        let is_wanted = grant.name != SHARING || !config.share_from.is_empty();
        if is_wanted && (!of_ingress || config.runs(Component::Ingress)) {
            let name = grant.name;
            done = done.and(give(&rest, grant).await.with_context(|| format!("the role {name}")));
        }
    }
    done = done.and(crate::storage::apply(&rest, config).await);
    crate::snapshots::apply(&rest, config).await;
    // The cluster runs without it.
    if config.runs(Component::Policy)
        && let Err(error) = definitions::write(&rest, &cluster_policy_definition()).await
    {
        tracing::warn!(
            error = format!("{error:#}"),
            "there is no kind of network policies of the cluster"
        );
    }
    if config.runs(Component::LoadBalancer)
        && let Err(error) = definitions::write(&rest, &pool_definition()).await
    {
        tracing::warn!(
            error = format!("{error:#}"),
            "there is no kind of pools: services of type LoadBalancer get no addresses before it is known which pools there are"
        );
    }
    if config.runs(Component::LoadBalancer)
        && let Err(error) = definitions::write(&rest, &peer_definition()).await
    {
        tracing::warn!(error = format!("{error:#}"), "there is no kind of BGP peers");
    }
    let cluster = Cluster::of(config);
    done = done.and(kubeadm::apply(&rest, &cluster).await);
    let wanted = cluster.config_map()?;
    let written = Objects::<ConfigMap>::new(&rest)
        .create_or_update(&wanted, |live| {
            let same = live.data == wanted.data;
            live.data = wanted.data.clone();
            !same
        })
        .await;
    written?;
    done
}

/// Brings one part of an object to what is wanted.
macro_rules! bring {
    ($rest:expr, $kind:ty, $field:ident, $wanted:expr) => {{
        let wanted: $kind = $wanted;
        Objects::<$kind>::new($rest)
            .create_or_update(&wanted, |live| {
                let same = live.$field == wanted.$field;
                live.$field = wanted.$field.clone();
                !same
            })
            .await?;
    }};
}

pub async fn give(rest: &Rest, grant: Grant) -> anyhow::Result<()> {
    let rules: Option<Vec<PolicyRule>> = serde_json::from_value(grant.rules)?;
    let subjects = Some(grant.to);
    let (namespace, kind) = match grant.scope {
        Scope::Cluster => (None, "ClusterRole"),
        Scope::In(namespace) => (Some(namespace.to_string()), "Role"),
    };
    let metadata = ObjectMeta {
        name: Some(grant.name.into()),
        namespace,
        ..ObjectMeta::default()
    };
    let role_ref = RoleRef {
        api_group: Some("rbac.authorization.k8s.io".into()),
        kind: kind.into(),
        name: grant.name.into(),
    };
    match grant.scope {
        Scope::Cluster => {
            let metadata_of_role = metadata.clone();
            bring!(
                rest,
                ClusterRole,
                rules,
                ClusterRole {
                    metadata: metadata_of_role,
                    rules,
                    aggregation_rule: None
                }
            );
            bring!(
                rest,
                ClusterRoleBinding,
                subjects,
                ClusterRoleBinding {
                    metadata,
                    role_ref,
                    subjects
                }
            );
        }
        Scope::In(_) => {
            bring!(
                rest,
                Role,
                rules,
                Role {
                    metadata: metadata.clone(),
                    rules
                }
            );
            bring!(
                rest,
                RoleBinding,
                subjects,
                RoleBinding {
                    metadata,
                    role_ref,
                    subjects
                }
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_node_can_be_who_reads_all_secrets() {
        let readers = ["keelson-ingress-publisher", "keelson-sharing"];
        let named = |grant: &Grant| readers.iter().any(|reader| grant.rules.to_string().contains(reader));
        assert!(!grants().iter().any(named));
    }

    /// What a name of ours may do is what whoever comes by it may do. These lead to other rights, or into pods.
    #[test]
    fn no_component_has_rights_that_lead_to_all_others() {
        let text = |v: &Value| {
            v.as_array()
                .into_iter()
                .flatten()
                .filter_map(|s| s.as_str().map(str::to_owned))
                .collect::<Vec<_>>()
        };
        for grant in grants() {
            for rule in grant.rules.as_array().expect("rules") {
                let (resources, verbs) = (text(&rule["resources"]), text(&rule["verbs"]));
                for resource in &resources {
                    let forbidden = resource == "*"
                        || resource.ends_with("/proxy")
                        || ["pods/exec", "pods/attach", "pods/portforward", "serviceaccounts/token"]
                            .contains(&resource.as_str());
                    // Copies of certificates that every node shows, who makes the copies, and the passwords that every node has.
                    let may_read = [INGRESS_PUBLISHER, SHARING].contains(&grant.name)
                        || matches!(grant.scope, Scope::In(keelson_gateway::NAMESPACE))
                        || text(&rule["resourceNames"]) == [keelson_balancing::peer::PASSWORDS];
                    let forbidden = forbidden || (resource == "secrets" && !may_read);
                    assert!(!forbidden, "{}: {rule}", grant.name);
                }
                for verb in ["*", "escalate", "bind"] {
                    assert!(!verbs.iter().any(|v| v == verb), "{}: {rule}", grant.name);
                }
                let named = text(&rule["resourceNames"]);
                assert!(
                    !verbs.iter().any(|v| v == "impersonate") || !named.is_empty(),
                    "{}: {rule}",
                    grant.name
                );
            }
        }
    }
}
