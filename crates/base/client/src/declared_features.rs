//! Features that nodes declare in `status.declaredFeatures`, and pods that can only run where one is declared.
//!
//! The scheduler and kubelets judge a pod by the same rules. What a *change* of a pod needs the API server judges
//! (`admission/declared_features`), by the same names.

use k8s_openapi::api::core::v1::{Container, PodSpec, VolumeMount};

pub const WEB_SOCKETS: &str = "ExtendWebSocketsToKubelet";
pub const RESIZES_OF_PODS: &str = "InPlacePodLevelResourcesVerticalScaling";
pub const RESIZES_OF_INIT_CONTAINERS: &str = "InPlacePodVerticalScalingInitContainers";
pub const RESIZES_OF_MEMORY_VOLUMES: &str = "InPlacePodVerticalScalingMemoryBackedVolumes";
pub const RESTARTS_OF_ALL: &str = "RestartAllContainersOnContainerExits";
pub const USERS_ON_HOST_NETWORK: &str = "UserNamespacesHostNetworkSupport";
pub const MOUNT_OPTIONS: &str = "VolumeBindMountOptions";

/// What a pod needs of its node, sorted.
pub fn needed(pod: &PodSpec) -> Vec<&'static str> {
    let mut needed = Vec::new();
    if containers(pod).any(restarts_all) {
        needed.push(RESTARTS_OF_ALL);
    }
    if pod.host_network == Some(true) && pod.host_users == Some(false) {
        needed.push(USERS_ON_HOST_NETWORK);
    }
    if mounts(pod).any(|mount| mount.bind_mount_options.as_ref().is_some_and(|o| !o.is_empty())) {
        needed.push(MOUNT_OPTIONS);
    }
    needed
}

/// Those that aren't declared.
pub fn missing<'a>(needed: &'a [&'static str], declared: &'a [String]) -> impl Iterator<Item = &'static str> + 'a {
    let is_missing = |name: &&str| !declared.iter().any(|have| have == name);
    needed.iter().copied().filter(is_missing)
}

fn containers(pod: &PodSpec) -> impl Iterator<Item = &Container> {
    pod.containers.iter().chain(pod.init_containers.iter().flatten())
}

fn restarts_all(container: &Container) -> bool {
    let mut rules = container.restart_policy_rules.iter().flatten();
    rules.any(|rule| rule.action == "RestartAllContainers")
}

fn mounts(pod: &PodSpec) -> impl Iterator<Item = &VolumeMount> {
    let of_containers = containers(pod).flat_map(|c| c.volume_mounts.iter().flatten());
    let ephemeral = pod.ephemeral_containers.iter().flatten();
    of_containers.chain(ephemeral.flat_map(|c| c.volume_mounts.iter().flatten()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_need_what_older_nodes_would_not_heed() {
        let rule = |action: &str| json!([{"action": action, "exitCodes": {"operator": "In", "values": [1]}}]);
        let mount = json!([{"name": "v", "mountPath": "/v", "bindMountOptions": ["noexec"]}]);
        for (spec, needs) in [
            (json!({"containers": [{"name": "c"}]}), vec![]),
            (
                json!({"containers": [{"name": "c", "restartPolicyRules": rule("Restart")}]}),
                vec![],
            ),
            (
                json!({"containers": [], "initContainers": [{"name": "c", "restartPolicyRules": rule("RestartAllContainers")}]}),
                vec![RESTARTS_OF_ALL],
            ),
            (json!({"containers": [], "hostNetwork": true}), vec![]),
            (
                json!({"containers": [], "hostNetwork": true, "hostUsers": false, "ephemeralContainers": [{"name": "e", "volumeMounts": mount}]}),
                vec![USERS_ON_HOST_NETWORK, MOUNT_OPTIONS],
            ),
        ] {
            let pod: PodSpec = serde_json::from_value(spec.clone()).unwrap();
            assert_eq!(needed(&pod), needs, "{spec}");
        }
        let declared = [RESTARTS_OF_ALL.to_owned()];
        assert!(missing(&[RESTARTS_OF_ALL, MOUNT_OPTIONS], &declared).eq([MOUNT_OPTIONS]));
    }
}
