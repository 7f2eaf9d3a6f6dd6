//! The security settings of sandboxes and containers as CRI takes them. Pure.

use crate::pods;
use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, SeccompProfile, SecurityContext};
use keelson_cri::v1 as cri;

const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The container's settings, with those of the pod where it has none.
pub fn effective(pod: &Pod, c: &Container) -> SecurityContext {
    let mut sc = c.security_context.clone().unwrap_or_default();
    if let Some(p) = &pods::spec(pod).security_context {
        sc.run_as_user = sc.run_as_user.or(p.run_as_user);
        sc.run_as_group = sc.run_as_group.or(p.run_as_group);
        sc.run_as_non_root = sc.run_as_non_root.or(p.run_as_non_root);
        sc.se_linux_options = sc.se_linux_options.or_else(|| p.se_linux_options.clone());
        sc.seccomp_profile = sc.seccomp_profile.or_else(|| p.seccomp_profile.clone());
        sc.app_armor_profile = sc.app_armor_profile.or_else(|| p.app_armor_profile.clone());
    }
    sc
}

/// Whether any container of the pod is privileged.
pub fn any_privileged(pod: &Pod) -> bool {
    let privileged = |sc: &Option<SecurityContext>| sc.as_ref().is_some_and(|s| s.privileged == Some(true));
    pods::containers(pod)
        .iter()
        .chain(pods::init_containers(pod))
        .any(|c| privileged(&c.security_context))
        || pods::ephemeral_containers(pod)
            .iter()
            .any(|c| privileged(&c.security_context))
}

pub fn namespaces(pod: &Pod, userns: Option<cri::UserNamespace>) -> cri::NamespaceOption {
    let spec = pods::spec(pod);
    let node_or = |host: Option<bool>, other: cri::NamespaceMode| {
        (if host == Some(true) {
            cri::NamespaceMode::Node
        } else {
            other
        }) as i32
    };
    let pid = if spec.share_process_namespace == Some(true) {
        cri::NamespaceMode::Pod
    } else {
        cri::NamespaceMode::Container
    };
    cri::NamespaceOption {
        network: node_or(spec.host_network, cri::NamespaceMode::Pod),
        pid: node_or(spec.host_pid, pid),
        ipc: node_or(spec.host_ipc, cri::NamespaceMode::Pod),
        target_id: String::new(),
        userns_options: userns,
    }
}

fn supplemental(pod: &Pod, volume_groups: &[i64]) -> (Vec<i64>, i32) {
    let sc = pods::spec(pod).security_context.as_ref();
    let mut groups: Vec<i64> = Vec::new();
    groups.extend(sc.and_then(|s| s.fs_group));
    groups.extend(sc.and_then(|s| s.supplemental_groups.clone()).unwrap_or_default());
    groups.extend(volume_groups);
    let strict = sc.and_then(|s| s.supplemental_groups_policy.as_deref()) == Some("Strict");
    let policy = if strict {
        cri::SupplementalGroupsPolicy::Strict
    } else {
        cri::SupplementalGroupsPolicy::Merge
    };
    (groups, policy as i32)
}

fn int(v: i64) -> cri::Int64Value {
    cri::Int64Value { value: v }
}

pub fn sandbox(
    pod: &Pod,
    userns: Option<cri::UserNamespace>,
    volume_groups: &[i64],
) -> cri::LinuxSandboxSecurityContext {
    let sc = pods::spec(pod).security_context.as_ref();
    let (groups, policy) = supplemental(pod, volume_groups);
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, userns)),
        run_as_user: sc.and_then(|s| s.run_as_user).map(int),
        run_as_group: sc.and_then(|s| s.run_as_group).map(int),
        supplemental_groups: groups,
        supplemental_groups_policy: policy,
        privileged: any_privileged(pod),
        seccomp: Some(profile(cri::security_profile::ProfileType::RuntimeDefault, "")),
        ..Default::default()
    }
}

fn profile(kind: cri::security_profile::ProfileType, path: &str) -> cri::SecurityProfile {
    cri::SecurityProfile {
        profile_type: kind as i32,
        localhost_ref: path.to_owned(),
    }
}

fn seccomp(p: Option<&SeccompProfile>, root: &std::path::Path, default: bool) -> Result<cri::SecurityProfile, String> {
    use cri::security_profile::ProfileType as T;
    Ok(match p {
        None if default => profile(T::RuntimeDefault, ""),
        None => profile(T::Unconfined, ""),
        Some(p) => match p.type_.as_str() {
            "RuntimeDefault" => profile(T::RuntimeDefault, ""),
            "Localhost" => match p.localhost_profile.as_deref().filter(|s| !s.is_empty()) {
                Some(file) => profile(T::Localhost, &root.join(file).to_string_lossy()),
                None => return Err("localhostProfile must be set if seccompProfile type is Localhost.".into()),
            },
            _ => profile(T::Unconfined, ""),
        },
    })
}

fn app_armor(p: Option<&AppArmorProfile>) -> Option<cri::SecurityProfile> {
    use cri::security_profile::ProfileType as T;
    let p = p?;
    Some(match p.type_.as_str() {
        "RuntimeDefault" => profile(T::RuntimeDefault, ""),
        "Localhost" => profile(T::Localhost, p.localhost_profile.as_deref().unwrap_or_default()),
        _ => profile(T::Unconfined, ""),
    })
}

/// Whom the image says to run as.
#[derive(Clone, Debug, Default)]
pub struct ImageUser {
    pub uid: Option<i64>,
    pub name: String,
}

pub struct ContainerInput<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub user: &'a ImageUser,
    pub userns: Option<cri::UserNamespace>,
    pub volume_groups: &'a [i64],
    pub seccomp_root: &'a std::path::Path,
    pub seccomp_default: bool,
}

pub fn container(input: &ContainerInput) -> Result<cri::LinuxContainerSecurityContext, String> {
    let ContainerInput {
        pod, container, user, ..
    } = *input;
    let sc = effective(pod, container);
    verify_non_root(pod, container, &sc, user)?;
    let (groups, policy) = supplemental(pod, input.volume_groups);
    let privileged = sc.privileged == Some(true);
    let unmasked = sc.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| {
        if unmasked {
            Vec::new()
        } else {
            list.iter().map(|s| (*s).to_owned()).collect()
        }
    };
    let explicit_user = sc.run_as_user.map(int);
    Ok(cri::LinuxContainerSecurityContext {
        capabilities: sc.capabilities.as_ref().map(|c| cri::Capability {
            add_capabilities: c.add.clone().unwrap_or_default(),
            drop_capabilities: c.drop.clone().unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespaces(pod, input.userns.clone())),
        selinux_options: sc.se_linux_options.as_ref().map(|o| cri::SeLinuxOption {
            user: o.user.clone().unwrap_or_default(),
            role: o.role.clone().unwrap_or_default(),
            r#type: o.type_.clone().unwrap_or_default(),
            level: o.level.clone().unwrap_or_default(),
        }),
        run_as_username: if explicit_user.is_none() && user.uid.is_none() {
            user.name.clone()
        } else {
            String::new()
        },
        run_as_user: explicit_user.or_else(|| user.uid.map(int)),
        run_as_group: sc.run_as_group.map(int),
        readonly_rootfs: sc.read_only_root_filesystem == Some(true),
        supplemental_groups: groups,
        supplemental_groups_policy: policy,
        no_new_privs: sc.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(seccomp(
            sc.seccomp_profile.as_ref(),
            input.seccomp_root,
            input.seccomp_default,
        )?),
        apparmor: app_armor(sc.app_armor_profile.as_ref()),
        ..Default::default()
    })
}

fn verify_non_root(pod: &Pod, c: &Container, sc: &SecurityContext, user: &ImageUser) -> Result<(), String> {
    if sc.run_as_non_root != Some(true) {
        return Ok(());
    }
    let who = format!("(pod: \"{}\", container: {})", pods::describe(pod), c.name);
    match (sc.run_as_user, user.uid) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {who}")),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(format!("container has runAsNonRoot and image will run as root {who}")),
        (None, None) if !user.name.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {who}",
            user.name
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(spec: serde_json::Value, user: ImageUser) -> Result<cri::LinuxContainerSecurityContext, String> {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec}))
                .unwrap();
        container(&ContainerInput {
            pod: &pod,
            container: &pods::containers(&pod)[0],
            user: &user,
            userns: None,
            volume_groups: &[],
            seccomp_root: std::path::Path::new("/seccomp"),
            seccomp_default: false,
        })
    }

    #[test]
    fn root_is_refused_where_it_must_not_run() {
        let spec = json!({"securityContext": {"runAsNonRoot": true}, "containers": [{"name": "c"}]});
        assert!(
            run(
                spec.clone(),
                ImageUser {
                    uid: Some(0),
                    ..Default::default()
                }
            )
            .unwrap_err()
            .contains("image will run as root")
        );
        assert!(
            run(
                spec.clone(),
                ImageUser {
                    uid: None,
                    name: "nobody".into()
                }
            )
            .unwrap_err()
            .contains("non-numeric user (nobody)")
        );
        assert_eq!(
            run(
                spec,
                ImageUser {
                    uid: Some(7),
                    ..Default::default()
                }
            )
            .unwrap()
            .run_as_user
            .unwrap()
            .value,
            7
        );
    }

    #[test]
    fn the_containers_own_settings_win() {
        let spec = json!({"securityContext": {"runAsUser": 1, "fsGroup": 5, "supplementalGroups": [6]},
            "containers": [{"name": "c", "securityContext": {"runAsUser": 2, "allowPrivilegeEscalation": false,
                "seccompProfile": {"type": "Localhost", "localhostProfile": "a.json"}}}]});
        let sc = run(spec, ImageUser::default()).unwrap();
        assert_eq!((sc.run_as_user.unwrap().value, sc.no_new_privs), (2, true));
        assert_eq!(sc.supplemental_groups, [5, 6]);
        assert_eq!(sc.seccomp.unwrap().localhost_ref, "/seccomp/a.json");
    }
}
