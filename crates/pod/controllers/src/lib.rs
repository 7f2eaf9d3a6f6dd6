//! The controllers: declared inputs and outputs, a pure plan, a thin reconcile each.
//!
//! Each controller has a file or folder of its own. It reads informers, which all share, decides by a function without
//! I/O, and writes under its own identity. [`wire`] turns changes into keys, [`claim`] decides whose object is whose.
//! Nothing here polls or resyncs: a controller with nothing to do does nothing.

mod account_tokens;
mod autoscaler;
mod bootstrap_tokens;
mod certificates;
pub mod claim;
mod cluster_policies;
mod cluster_roles;
pub mod config;
pub mod context;
mod cronjob;
mod daemonset;
mod deployment;
mod device_taints;
mod disruption;
mod endpoints;
mod endpointslice;
mod gc;
mod history;
mod job;
mod load_balancer;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod node_ttl;
mod pod_certificates;
mod pod_control;
mod pod_gc;
pub mod pods;
mod queues;
mod quota;
mod reload;
mod replicaset;
mod resource_claims;
mod root_ca;
mod service_cidr;
mod service_pods;
mod serviceaccount;
mod sharing;
mod statefulset;
mod storage_migration;
pub mod taint_eviction;
mod token_cleaner;
mod trigger_times;
mod trust_bundle;
mod ttl;
mod util;
mod volumes;
pub mod wire;

pub use cluster_policies::definition as cluster_policy_definition;
pub use config::Config;
use context::Context;
use keelson_client::leader::acquire;
use keelson_client::{ClientFactory, Rest};
pub use load_balancer::{Port, Reserved, definition as pool_definition, peer_definition};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
pub use volumes::snapshot_definitions;

/// A controller's name, and how it is started.
type Entry = (&'static str, fn(&Context));

/// Every controller there is, in the order in which they are started.
const CONTROLLERS: &[Entry] = &[
    ("namespace", namespace::start),
    ("serviceaccount", serviceaccount::start),
    ("serviceaccount-token", account_tokens::start),
    ("legacy-serviceaccount-token-cleaner", account_tokens::start_cleaning),
    ("root-ca-certificate-publisher", root_ca::start),
    ("deployment", deployment::start),
    ("replicaset", replicaset::start_replica_sets),
    ("replicationcontroller", replicaset::start_replication_controllers),
    ("job", job::start),
    ("garbage-collector", gc::start),
    ("statefulset", statefulset::start),
    ("daemonset", daemonset::start),
    ("cronjob", cronjob::start),
    ("horizontal-pod-autoscaler", autoscaler::start),
    ("ttl-after-finished", ttl::start),
    ("resourcequota", quota::start),
    ("disruption", disruption::start),
    ("persistentvolume-binder", volumes::start),
    ("persistentvolume-attach-detach", volumes::start_attaching),
    ("persistentvolume-expander", volumes::start_expanding),
    ("persistentvolumeclaim-protection", volumes::start_claim_protection),
    ("persistentvolume-protection", volumes::start_volume_protection),
    ("volumeattributesclass-protection", volumes::start_class_protection),
    ("ephemeral-volume", volumes::start_ephemeral),
    ("volumesnapshot", volumes::start_snapshots),
    ("resourceclaim", resource_claims::start),
    ("clusterrole-aggregation", cluster_roles::start),
    ("certificate-approver", certificates::start_approving),
    ("kubelet-serving-approver", certificates::nodes::start),
    ("certificate-signer", certificates::start_signing),
    ("certificate-cleaner", certificates::start_cleaning),
    ("token-cleaner-controller", token_cleaner::start),
    ("podcertificaterequest-cleaner", pod_certificates::start),
    ("clustertrustbundle-publisher", trust_bundle::start),
    ("service-cidr", service_cidr::start),
    ("storage-version-migrator", storage_migration::start),
    ("node-ipam", node_ipam::start),
    ("ttl", node_ttl::start),
    ("bootstrap-signer", bootstrap_tokens::start),
    ("nodelifecycle", node_lifecycle::start),
    ("taint-eviction", taint_eviction::start),
    ("device-taint-eviction", device_taints::start),
    ("pod-garbage-collector", pod_gc::start),
    ("endpointslice", endpointslice::start),
    ("endpointslice-mirroring", endpointslice::start_mirroring),
    ("endpoints", endpoints::start),
    ("service-lb", load_balancer::start),
    ("cluster-network-policy", cluster_policies::start),
    ("reload", reload::start),
    ("sharing", sharing::start),
];

/// The names that [`Config::controllers`] may contain.
pub fn names() -> impl Iterator<Item = &'static str> {
    CONTROLLERS.iter().map(|(name, _)| *name)
}

/// Runs the controllers until `stop`, and only while this process is the leader. Losing the leadership is an error:
/// whoever started this decides whether to start it anew.
pub async fn run(clients: Arc<dyn ClientFactory>, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    config.check()?;
    let election = match &config.leader_election {
        None => None,
        Some(election) => {
            let rest = Rest::new(
                clients.client("system:kube-controller-manager"),
                "kube-controller-manager",
            )
            .telling(&config.telling);
            match acquire(&rest, election.clone(), &stop).await {
                Some(leading) => Some(leading),
                None => return Ok(()),
            }
        }
    };
    let leading = election
        .as_ref()
        .map_or_else(|| stop.child_token(), |l| l.token().clone());
    let config = Arc::new(config);
    let context = Context::new(clients, config.clone(), leading.clone());
    for (name, start) in CONTROLLERS {
        if config.is_enabled(name) {
            start(&context);
        }
    }
    leading.cancelled().await;
    context.finish().await;
    if let Some(election) = election {
        election.finish().await;
    }
    anyhow::ensure!(stop.is_cancelled(), "the controllers' leadership was lost");
    Ok(())
}
