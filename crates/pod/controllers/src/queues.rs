//! What kube-controller-manager calls controllers' queues: by these names rules and dashboards select them.

/// A controller's name here, and its queue's there.
const NAMES: &[(&str, &str)] = &[
    ("certificate-approver", "certificate"),
    ("certificate-signer", "certificate"),
    ("clusterrole-aggregation", "ClusterRoleAggregator"),
    (
        "clustertrustbundle-publisher",
        "ca_cert_publisher_cluster_trust_bundles",
    ),
    ("bootstrap-signer", "bootstrap_signer_queue"),
    ("endpoints", "endpoint"),
    ("endpointslice", "endpoint_slice"),
    ("endpointslice-mirroring", "endpoint_slice_mirroring"),
    ("ephemeral-volume", "ephemeral_volume"),
    ("node-ttl", "ttlcontroller"),
    ("nodelifecycle", "node_lifecycle_controller"),
    ("persistentvolume-attach-detach", "pvcs"),
    ("persistentvolume-binder", "claims"),
    ("persistentvolume-expander", "volume_expand"),
    ("pod-garbage-collector", "orphaned_pods_nodes"),
    ("pv-protection", "pvprotection"),
    ("pvc-protection", "pvcprotection"),
    ("replicationcontroller", "replicationmanager"),
    ("resourceclaim", "resource_claim"),
    ("resourcequota", "resourcequota_primary"),
    ("root-ca", "root_ca_cert_publisher"),
    ("service-cidr", "ipaddresses"),
    ("service-lb", "service"),
    ("serviceaccount-token", "serviceaccount_tokens_service"),
    ("storage-version-migrator", "storage-version-migrator-controller"),
    ("taint-eviction", "noexec_taint_pod"),
    ("token-cleaner-controller", "token_cleaner"),
    ("ttl-after-finished", "ttl_jobs_to_delete"),
    ("volumeattributesclass-protection", "vacprotection"),
];

/// The name itself where upstream's is the same, or has no such queue.
pub fn of(controller: &'static str) -> &'static str {
    let found = NAMES.iter().find(|(own, _)| *own == controller);
    found.map_or(controller, |(_, upstreams)| upstreams)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(dir: &std::path::Path, text: &mut String) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => sources(&path, text),
                false if path.ends_with("queues.rs") => {}
                false => text.push_str(&std::fs::read_to_string(path).unwrap()),
            }
        }
    }

    #[test]
    fn names_are_those_of_controllers_and_queues_have_their_own() {
        let mut text = String::new();
        sources(concat!(env!("CARGO_MANIFEST_DIR"), "/src").as_ref(), &mut text);
        for (i, (own, upstreams)) in NAMES.iter().enumerate() {
            assert!(own != upstreams, "{own} needs no line");
            assert!(text.contains(&format!("{own:?}")), "no controller is called {own}");
            // One queue serves both at upstream's.
            let same = |(o, u): &(&str, &str)| o == own || (u == upstreams && *u != "certificate");
            assert!(!NAMES[..i].iter().any(same), "{own}");
        }
        assert_eq!((of("deployment"), of("node-ttl")), ("deployment", "ttlcontroller"));
    }
}
