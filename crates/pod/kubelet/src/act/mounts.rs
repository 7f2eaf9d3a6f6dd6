//! A container's mounts: its volumes, sub paths, `/etc/hosts` and the termination message file.

use super::dns;
use super::expand::expand;
use crate::kubelet::Kubelet;
use crate::pods;
use crate::volumes::Mounted;
use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use keelson_cri::v1 as cri;
use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path};

const ETC_HOSTS: &str = "/etc/hosts";

pub struct Input<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub volumes: &'a BTreeMap<String, Mounted>,
    /// References of the pod's image volumes, by volume.
    pub images: &'a HashMap<String, String>,
    pub env: &'a [(String, String)],
    pub pod_ips: &'a [String],
    pub recursive_read_only: bool,
}

pub fn build(kl: &Kubelet, input: &Input) -> Result<(Vec<cri::Mount>, Vec<cri::Device>), String> {
    let c = input.container;
    let mut mounts = Vec::new();
    for (i, m) in c.volume_mounts.iter().flatten().enumerate() {
        mounts.push(one(kl, input, i, m)?);
    }
    let mut devices = Vec::new();
    for d in c.volume_devices.iter().flatten() {
        let volume = input
            .volumes
            .get(&d.name)
            .and_then(|v| v.path.as_ref())
            .ok_or_else(|| {
                format!(
                    "cannot find volume \"{}\" to pass into container \"{}\"",
                    d.name, c.name
                )
            })?;
        let permissions = if input.volumes.get(&d.name).is_some_and(|v| v.read_only) {
            "r"
        } else {
            "mrw"
        };
        devices.push(cri::Device {
            container_path: d.device_path.clone(),
            host_path: volume.to_string_lossy().into_owned(),
            permissions: permissions.into(),
        });
    }
    let own_hosts = c.volume_mounts.iter().flatten().any(|m| m.mount_path == ETC_HOSTS);
    if !own_hosts && (!input.pod_ips.is_empty() || pods::is_host_network(input.pod)) {
        mounts.push(hosts(kl, input)?);
    }
    if let Some(path) = c.termination_message_path.as_deref().filter(|p| !p.is_empty()) {
        mounts.push(message_file(kl, input, path)?);
    }
    Ok((mounts, devices))
}

fn one(kl: &Kubelet, input: &Input, index: usize, m: &VolumeMount) -> Result<cri::Mount, String> {
    let c = input.container;
    let volume = input.volumes.get(&m.name).ok_or_else(|| {
        format!(
            "cannot find volume \"{}\" to mount into container \"{}\"",
            m.name, c.name
        )
    })?;
    let sub = sub_path(m, input.env)?;
    let (mut host_path, mut image) = (String::new(), None);
    match &volume.path {
        None => {
            let reference = input
                .images
                .get(&m.name)
                .ok_or_else(|| format!("the image of volume \"{}\" is missing", m.name))?;
            image = Some(cri::ImageSpec {
                image: reference.clone(),
                ..Default::default()
            });
        }
        Some(path) if sub.is_empty() => host_path = path.to_string_lossy().into_owned(),
        Some(path) => {
            let uid = pods::uid(input.pod);
            let target = kl
                .layout
                .sub_paths(uid)
                .join(&m.name)
                .join(&c.name)
                .join(index.to_string());
            kl.host.bind_sub_path(path, &sub, &target).map_err(|e| {
                // The details are the node's business, not the pod's.
                tracing::warn!(pod = %pods::describe(input.pod), volume = m.name, "a subPath can't be used: {e}");
                format!(
                    "failed to prepare subPath for volumeMount \"{}\" of container \"{}\"",
                    m.name, c.name
                )
            })?;
            host_path = target.to_string_lossy().into_owned();
        }
    }
    let read_only = m.read_only.unwrap_or(false);
    let propagation = match m.mount_propagation.as_deref() {
        Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional,
        None | Some("None") => cri::MountPropagation::PropagationPrivate,
        Some(other) => return Err(format!("invalid MountPropagation mode: \"{other}\"")),
    };
    if propagation != cri::MountPropagation::PropagationPrivate && image.is_none() {
        crate::shared::share(&*kl.host, &kl.layout, Path::new(&host_path));
    }
    let recursive = match m.recursive_read_only.as_deref() {
        None | Some("Disabled") => false,
        Some(_) if !read_only => {
            return Err("failed to resolve recursive read-only mode: the mount is not read-only".into());
        }
        Some("IfPossible") => input.recursive_read_only,
        Some("Enabled") if input.recursive_read_only => true,
        Some(_) => return Err("failed to resolve recursive read-only mode: the runtime does not support it".into()),
    };
    Ok(cri::Mount {
        container_path: if m.mount_path.starts_with('/') {
            m.mount_path.clone()
        } else {
            format!("/{}", m.mount_path)
        },
        host_path,
        readonly: read_only || volume.read_only,
        propagation: propagation as i32,
        recursive_read_only: recursive,
        image_sub_path: if image.is_some() { sub } else { String::new() },
        selinux_relabel: volume.relabel && image.is_none(),
        image,
        ..Default::default()
    })
}

/// The sub path, with variables filled in; it must stay inside the volume.
fn sub_path(m: &VolumeMount, env: &[(String, String)]) -> Result<String, String> {
    let expression = m.sub_path_expr.as_deref().unwrap_or_default();
    let sub = if expression.is_empty() {
        m.sub_path.clone().unwrap_or_default()
    } else {
        let missing = std::cell::Cell::new(None);
        let known = |name: &str| {
            let value = env.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
            if value.is_none() {
                missing.set(Some(name.to_owned()));
            }
            value
        };
        let text = expand(expression, &known);
        if let Some(name) = missing.take() {
            return Err(format!("missing value for \"{name}\""));
        }
        text
    };
    if Path::new(&sub).is_absolute() {
        return Err(format!("error SubPath `{sub}` must not be an absolute path"));
    }
    if Path::new(&sub).components().any(|c| c == Component::ParentDir) {
        return Err(format!("unable to provision SubPath `{sub}`: must not contain '..'"));
    }
    Ok(sub)
}

fn hosts(kl: &Kubelet, input: &Input) -> Result<cri::Mount, String> {
    let path = kl.layout.pod(pods::uid(input.pod)).join("etc-hosts");
    let text = if pods::is_host_network(input.pod) {
        let node = kl.host.read(Path::new(ETC_HOSTS), 1 << 20).unwrap_or_default();
        dns::node_hosts_file(&String::from_utf8_lossy(&node), input.pod)
    } else {
        let (host, domain) = dns::names(input.pod, &kl.cfg.cluster_domain);
        dns::hosts_file(input.pod_ips, &host, &domain, input.pod)
    };
    kl.host
        .write_in_place(&path, text.as_bytes(), 0o644)
        .map_err(|e| format!("writing the pod's hosts file: {e}"))?;
    Ok(cri::Mount {
        container_path: ETC_HOSTS.into(),
        host_path: path.to_string_lossy().into_owned(),
        selinux_relabel: true,
        ..Default::default()
    })
}

/// An empty file of its own for each instance, that the container can write whoever it runs as.
fn message_file(kl: &Kubelet, input: &Input, container_path: &str) -> Result<cri::Mount, String> {
    let dir = kl.layout.container(pods::uid(input.pod), &input.container.name);
    let path = dir.join(format!("{:08x}", rand::random::<u32>()));
    let made = kl
        .host
        .make_dir(&dir, 0o750)
        .and_then(|()| kl.host.write_in_place(&path, b"", 0o666));
    made.map_err(|e| format!("error on creating termination-log file: {e}"))?;
    Ok(cri::Mount {
        container_path: container_path.to_owned(),
        host_path: path.to_string_lossy().into_owned(),
        selinux_relabel: true,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_paths_stay_inside() {
        let m = |path: &str, expr: &str| VolumeMount {
            sub_path: Some(path.into()),
            sub_path_expr: Some(expr.into()),
            ..Default::default()
        };
        let env = [
            ("A".to_owned(), "x".to_owned()),
            ("UP".to_owned(), "..".to_owned()),
            ("ABS".to_owned(), "/y".to_owned()),
        ];
        assert_eq!(sub_path(&m("a/b", ""), &env).unwrap(), "a/b");
        assert_eq!(sub_path(&m("", "$(A)/z"), &env).unwrap(), "x/z");
        assert!(sub_path(&m("", "$(UP)/z"), &env).is_err());
        assert!(sub_path(&m("", "$(ABS)"), &env).is_err());
        assert!(sub_path(&m("", "$(NO)"), &env).is_err());
    }
}
