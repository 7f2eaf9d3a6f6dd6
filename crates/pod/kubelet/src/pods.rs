//! Small questions asked of a pod object. Pure; knows nothing of the node or of the runtime.

use crate::managers::sum;
use k8s_openapi::api::core::v1::{
    Container, ContainerRestartRule, ContainerStatus, EphemeralContainer, Pod, PodCondition, PodSpec, PodStatus,
};
use std::collections::BTreeSet;

/// Where the kubelet found a pod: `api` or `file`.
pub const SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";
/// Marks the API object that mirrors a static pod.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// The hash of a static pod's manifest.
pub const HASH_ANNOTATION: &str = "kubernetes.io/config.hash";

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

/// `name_namespace(uid)`, as upstream's messages name a pod.
pub fn describe(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

pub fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

pub fn is_static(pod: &Pod) -> bool {
    annotation(pod, SOURCE_ANNOTATION).is_some_and(|s| s != "api")
}

pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, MIRROR_ANNOTATION).is_some()
}

/// The pod's specification; an absent one reads as empty.
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&EMPTY)
}

/// The pod's status; an absent one reads as empty.
pub fn status(pod: &Pod) -> &PodStatus {
    static EMPTY: std::sync::LazyLock<PodStatus> = std::sync::LazyLock::new(PodStatus::default);
    pod.status.as_ref().unwrap_or(&EMPTY)
}

pub fn containers(pod: &Pod) -> &[Container] {
    &spec(pod).containers
}

pub fn init_containers(pod: &Pod) -> &[Container] {
    spec(pod).init_containers.as_deref().unwrap_or_default()
}

pub fn ephemeral_containers(pod: &Pod) -> &[EphemeralContainer] {
    spec(pod).ephemeral_containers.as_deref().unwrap_or_default()
}

/// The volumes that containers of any sort use: as files, and as devices.
pub fn used_volumes(pod: &Pod) -> (BTreeSet<String>, BTreeSet<String>) {
    let ephemeral: Vec<Container> = ephemeral_containers(pod).iter().map(as_container).collect();
    let all = || containers(pod).iter().chain(init_containers(pod)).chain(&ephemeral);
    let mounts = all().flat_map(|c| c.volume_mounts.iter().flatten().map(|m| m.name.clone()));
    // A volume that variables are read from is used although nobody sees it.
    let read = all().flat_map(|c| c.env.iter().flatten()).filter_map(|e| {
        let file = e.value_from.as_ref()?.file_key_ref.as_ref()?;
        Some(file.volume_name.clone())
    });
    let devices = all().flat_map(|c| c.volume_devices.iter().flatten().map(|d| d.name.clone()));
    (mounts.chain(read).collect(), devices.collect())
}

/// The group that a pod's own volumes are given to.
pub fn fs_group(pod: &Pod) -> Option<u32> {
    let group = spec(pod).security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// Whether an init container's work is done, by the pod's status.
pub fn has_ended(pod: &Pod, container: &str) -> bool {
    let all = pod
        .status
        .iter()
        .flat_map(|s| s.init_container_statuses.iter().flatten());
    let state = all
        .filter(|s| s.name == container)
        .filter_map(|s| s.state.as_ref())
        .next();
    state
        .and_then(|s| s.terminated.as_ref())
        .is_some_and(|t| t.exit_code == 0)
}

/// An init container that keeps running beside the main ones.
pub fn is_sidecar(c: &Container) -> bool {
    c.restart_policy.as_deref() == Some("Always")
}

pub fn has_sidecars(pod: &Pod) -> bool {
    init_containers(pod).iter().any(is_sidecar)
}

pub fn is_host_network(pod: &Pod) -> bool {
    spec(pod).host_network.unwrap_or(false)
}

pub fn restart_policy(pod: &Pod) -> &str {
    spec(pod).restart_policy.as_deref().unwrap_or("Always")
}

pub fn is_terminal_phase(phase: Option<&str>) -> bool {
    matches!(phase, Some("Succeeded" | "Failed"))
}

pub fn is_terminal(pod: &Pod) -> bool {
    is_terminal_phase(status(pod).phase.as_deref())
}

pub fn generation(pod: &Pod) -> Option<i64> {
    pod.metadata.generation
}

/// An ephemeral container seen as an ordinary one (the fields are the same but for the target).
pub fn as_container(e: &EphemeralContainer) -> Container {
    Container {
        args: e.args.clone(),
        command: e.command.clone(),
        env: e.env.clone(),
        env_from: e.env_from.clone(),
        image: e.image.clone(),
        image_pull_policy: e.image_pull_policy.clone(),
        lifecycle: e.lifecycle.clone(),
        liveness_probe: e.liveness_probe.clone(),
        name: e.name.clone(),
        ports: e.ports.clone(),
        readiness_probe: e.readiness_probe.clone(),
        resize_policy: e.resize_policy.clone(),
        resources: e.resources.clone(),
        restart_policy: e.restart_policy.clone(),
        security_context: e.security_context.clone(),
        startup_probe: e.startup_probe.clone(),
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path.clone(),
        termination_message_policy: e.termination_message_policy.clone(),
        tty: e.tty,
        volume_devices: e.volume_devices.clone(),
        volume_mounts: e.volume_mounts.clone(),
        working_dir: e.working_dir.clone(),
        ..Default::default()
    }
}

/// The container of this name, whatever its kind.
pub fn find_container(pod: &Pod, name: &str) -> Option<Container> {
    containers(pod)
        .iter()
        .chain(init_containers(pod))
        .find(|c| c.name == name)
        .cloned()
        .or_else(|| {
            ephemeral_containers(pod)
                .iter()
                .find(|e| e.name == name)
                .map(as_container)
        })
}

/// Of which kind a container is, as metrics call it.
pub fn container_type(pod: &Pod, name: &str) -> &'static str {
    match field_path(pod, name) {
        Some(p) if p.starts_with("spec.init") => "init_container",
        Some(p) if p.starts_with("spec.eph") => "ephemeral_container",
        _ => "container",
    }
}

/// `spec.containers{name}`: where an event about this container points.
pub fn field_path(pod: &Pod, container: &str) -> Option<String> {
    let list = if containers(pod).iter().any(|c| c.name == container) {
        "containers"
    } else if init_containers(pod).iter().any(|c| c.name == container) {
        "initContainers"
    } else if ephemeral_containers(pod).iter().any(|c| c.name == container) {
        "ephemeralContainers"
    } else {
        return None;
    };
    Some(format!("spec.{list}{{{container}}}"))
}

pub fn find_status<'a>(list: Option<&'a Vec<ContainerStatus>>, name: &str) -> Option<&'a ContainerStatus> {
    list?.iter().find(|s| s.name == name)
}

/// The status of the container of this name among all three lists.
pub fn any_status<'a>(status: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    find_status(status.container_statuses.as_ref(), name)
        .or_else(|| find_status(status.init_container_statuses.as_ref(), name))
        .or_else(|| find_status(status.ephemeral_container_statuses.as_ref(), name))
}

pub fn condition<'a>(status: &'a PodStatus, kind: &str) -> Option<&'a PodCondition> {
    status.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// The first restart rule whose exit codes match.
pub fn matching_rule(c: &Container, exit_code: i32) -> Option<&ContainerRestartRule> {
    c.restart_policy_rules.as_ref()?.iter().find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.as_ref().is_some_and(|v| v.contains(&exit_code));
            match codes.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            }
        })
    })
}

/// Whether a container that exited with this code starts again: its rules, then its policy, then the pod's.
pub fn should_restart(c: &Container, pod: &Pod, exit_code: i32) -> bool {
    if let Some(policy) = c.restart_policy.as_deref() {
        if let Some(rule) = matching_rule(c, exit_code)
            && matches!(rule.action.as_str(), "Restart" | "RestartAllContainers")
        {
            return true;
        }
        match policy {
            "Always" => return true,
            "OnFailure" => return exit_code != 0,
            "Never" => return false,
            _ => {}
        }
    }
    match restart_policy(pod) {
        "OnFailure" => exit_code != 0,
        "Never" => false,
        _ => true,
    }
}

/// Whether some container may ask for the whole pod to be restarted in place.
pub fn could_restart_all(pod: &Pod) -> bool {
    containers(pod).iter().chain(init_containers(pod)).any(|c| {
        c.restart_policy_rules
            .as_ref()
            .is_some_and(|r| r.iter().any(|r| r.action == "RestartAllContainers"))
    })
}

/// The identity of a container's definition (its name and image): a change restarts it.
pub fn container_hash(c: &Container) -> u64 {
    hash(&[&c.name, c.image.as_deref().unwrap_or_default()])
}

/// Whether a container with this hash was made from this definition: by us, or by the kubelet of upstream's whose place we took.
pub fn made_from(noted: u64, c: &Container) -> bool {
    noted == container_hash(c) || noted == upstreams_hash(c)
}

/// Upstream's identity of a container: FNV-1a in 32 bits of what Go prints of the bytes of its image and name in JSON.
fn upstreams_hash(c: &Container) -> u64 {
    let json = serde_json::json!({"image": c.image.as_deref().unwrap_or_default(), "name": c.name}).to_string();
    let bytes: Vec<String> = json.bytes().map(|b| b.to_string()).collect();
    let printed = format!("([]uint8)[{}]", bytes.join(" "));
    u64::from(sum::of(&printed))
}

/// A hash that stays the same across releases: what runs is told by it from what is wanted.
pub fn hash(parts: &[&str]) -> u64 {
    // FNV-1a.
    parts.join("\0").bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Whether the pod is one the node cannot do without (static, mirror, or system-critical priority).
pub fn is_critical(pod: &Pod) -> bool {
    is_static(pod) || is_mirror(pod) || spec(pod).priority.unwrap_or(0) >= 2_000_000_000
}

/// Whether the pod may run as another than the host's users.
pub fn wants_user_namespace(pod: &Pod) -> bool {
    spec(pod).host_users == Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_of_upstreams_kubelet_is_known_by_its_hash() {
        let container = |name: &str, image: &str| Container {
            name: name.into(),
            image: Some(image.into()),
            ..Default::default()
        };
        let web = container("web", "example.local/web:1");
        // As upstream's kubelet 1.37.2 notes them.
        assert!(made_from(0x06ab_2892, &web));
        assert!(made_from(
            0x96f4_af9b,
            &container("über", "registry.k8s.io/pause:3.10.2")
        ));
        assert!(made_from(container_hash(&web), &web));
        let newer = container("web", "example.local/web:2");
        assert!(!made_from(0x06ab_2892, &newer) && !made_from(container_hash(&web), &newer) && !made_from(0, &web));
    }
}
