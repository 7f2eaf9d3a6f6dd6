//! Upstream's names of controllers, and which of ours they are.

use anyhow::bail;

/// Upstream's name, and ours.
const NAMES: &[(&str, &str)] = &[
    ("serviceaccount-token-controller", "serviceaccount-token"),
    ("endpoints-controller", "endpoints"),
    ("endpointslice-controller", "endpointslice"),
    ("endpointslice-mirroring-controller", "endpointslice-mirroring"),
    ("replicationcontroller-controller", "replicationcontroller"),
    ("pod-garbage-collector-controller", "pod-garbage-collector"),
    ("resourcequota-controller", "resourcequota"),
    ("namespace-controller", "namespace"),
    ("serviceaccount-controller", "serviceaccount"),
    ("garbage-collector-controller", "garbage-collector"),
    ("daemonset-controller", "daemonset"),
    ("job-controller", "job"),
    ("deployment-controller", "deployment"),
    ("replicaset-controller", "replicaset"),
    ("horizontal-pod-autoscaler-controller", "horizontal-pod-autoscaler"),
    ("disruption-controller", "disruption"),
    ("statefulset-controller", "statefulset"),
    ("cronjob-controller", "cronjob"),
    ("certificatesigningrequest-signing-controller", "certificate-signer"),
    ("certificatesigningrequest-approving-controller", "certificate-approver"),
    ("certificatesigningrequest-cleaner-controller", "certificate-cleaner"),
    (
        "podcertificaterequest-cleaner-controller",
        "podcertificaterequest-cleaner",
    ),
    ("ttl-controller", "ttl"),
    ("bootstrap-signer-controller", "bootstrap-signer"),
    ("bootstrapsigner", "bootstrap-signer"),
    ("token-cleaner-controller", "token-cleaner-controller"),
    ("tokencleaner", "token-cleaner-controller"),
    ("node-ipam-controller", "node-ipam"),
    ("node-lifecycle-controller", "nodelifecycle"),
    ("taint-eviction-controller", "taint-eviction"),
    ("device-taint-eviction-controller", "device-taint-eviction"),
    ("persistentvolume-binder-controller", "persistentvolume-binder"),
    (
        "persistentvolume-attach-detach-controller",
        "persistentvolume-attach-detach",
    ),
    ("persistentvolume-expander-controller", "persistentvolume-expander"),
    ("clusterrole-aggregation-controller", "clusterrole-aggregation"),
    (
        "persistentvolumeclaim-protection-controller",
        "persistentvolumeclaim-protection",
    ),
    ("persistentvolume-protection-controller", "persistentvolume-protection"),
    ("ttl-after-finished-controller", "ttl-after-finished"),
    (
        "root-ca-certificate-publisher-controller",
        "root-ca-certificate-publisher",
    ),
    (
        "kube-apiserver-serving-clustertrustbundle-publisher-controller",
        "clustertrustbundle-publisher",
    ),
    ("ephemeral-volume-controller", "ephemeral-volume"),
    ("resourceclaim-controller", "resourceclaim"),
    (
        "legacy-serviceaccount-token-cleaner-controller",
        "legacy-serviceaccount-token-cleaner",
    ),
    (
        "volumeattributesclass-protection-controller",
        "volumeattributesclass-protection",
    ),
    ("service-cidr-controller", "service-cidr"),
    ("storage-version-migrator-controller", "storage-version-migrator"),
];

/// What upstream's program doesn't run either, unless it is named.
const EXTRA: [&str; 6] = [
    "cluster-network-policy",
    "kubelet-serving-approver",
    "reload",
    "service-lb",
    "sharing",
    "volumesnapshot",
];

/// The list as it stands here.
pub fn ours(given: &[String]) -> anyhow::Result<Vec<String>> {
    let mut list = Vec::new();
    for name in given {
        let (sign, bare) = match name.strip_prefix('-') {
            Some(bare) => ("-", bare),
            None => ("", name.as_str()),
        };
        let Some(own) = own(bare) else {
            bail!("--controllers {name}: there is no controller of this name here");
        };
        list.push(format!("{sign}{own}"));
    }
    let unnamed = EXTRA.iter().filter(|extra| !given.iter().any(|name| name == *extra));
    list.extend(unnamed.map(|extra| format!("-{extra}")));
    Ok(list)
}

fn own(name: &str) -> Option<&str> {
    let upstreams = NAMES.iter().find(|(upstreams, _)| *upstreams == name);
    upstreams
        .map(|(_, own)| *own)
        .or_else(|| (name == "*" || keelson_controllers::names().any(|own| own == name)).then_some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_to_a_controller_and_every_controller_has_one() {
        for (upstreams, own) in NAMES {
            assert!(
                keelson_controllers::names().any(|name| name == *own),
                "{upstreams}: {own}"
            );
        }
        for own in keelson_controllers::names() {
            assert!(
                NAMES.iter().any(|(_, known)| *known == own) || EXTRA.contains(&own),
                "{own}"
            );
        }
        let list = |names: &[&str]| ours(&names.iter().map(|n| n.to_string()).collect::<Vec<_>>());
        let all = list(&["*", "bootstrapsigner", "-ttl-controller"]).unwrap();
        assert_eq!(all[..3], ["*", "bootstrap-signer", "-ttl"]);
        assert!(all.contains(&"-service-lb".to_string()));
        assert!(list(&["storageversion-garbage-collector-controller"]).is_err());
    }
}
