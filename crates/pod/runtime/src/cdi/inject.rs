//! What a container is to have for its devices, and how it gets into its specification.

use super::format::{ContainerEdits, DeviceNode, Mount};
use crate::containers::devices::Device;
use keelson_sys::cgroup::DeviceKind;
use serde_json::{Map, Value, json};
use std::io;
use std::path::Path;

/// How long a hook may take that says nothing about it.
const HOOK_SECONDS: i64 = 60;
/// The most that one may say.
const LONGEST_HOOK: i64 = 600;

#[derive(Debug, Default)]
pub struct Edits {
    pub devices: Vec<Device>,
    env: Vec<String>,
    mounts: Vec<Value>,
    /// By name, in order.
    hooks: Vec<(String, Value)>,
    groups: Vec<u32>,
}

impl Edits {
    /// Adds to what is there. Devices are looked up on the node.
    pub(super) fn add(&mut self, edits: &ContainerEdits) -> Result<(), String> {
        edits.check()?;
        for node in &edits.device_nodes {
            let device = device(node).map_err(|e| format!("device {:?}: {e}", node.path))?;
            self.devices.retain(|d| d.path != device.path);
            self.devices.push(device);
        }
        self.env.extend(edits.env.iter().cloned());
        self.mounts.extend(edits.mounts.iter().map(mount));
        for h in &edits.hooks {
            let seconds = h.timeout.unwrap_or(HOOK_SECONDS).min(LONGEST_HOOK);
            let hook = json!({"path": h.path, "args": h.args, "env": h.env, "timeout": seconds});
            self.hooks.push((h.hook_name.clone(), hook));
        }
        let new = edits.additional_gids.iter().filter(|g| **g != 0);
        self.groups.extend(new);
        Ok(())
    }

    /// The container's devices with these among them; one of the same path gives way.
    pub fn with_devices(&self, own: Vec<Device>) -> Vec<Device> {
        let stays = |d: &Device| !self.devices.iter().any(|mine| mine.path == d.path);
        own.into_iter()
            .filter(stays)
            .chain(self.devices.iter().cloned())
            .collect()
    }

    /// Puts all but the devices into a specification.
    pub fn inject(&self, spec: &mut Value) {
        let process = &mut spec["process"];
        for entry in &self.env {
            let name = entry.split_once('=').map_or(entry.as_str(), |(name, _)| name);
            let same = |e: &Value| {
                e.as_str()
                    .and_then(|e| e.strip_prefix(name))
                    .is_some_and(|r| r.starts_with('='))
            };
            let env = list(&mut process["env"]);
            match env.iter_mut().find(|e| same(e)) {
                Some(old) => *old = json!(entry),
                // A home that nobody asked for stands behind everything, as runtimes have it.
                None => {
                    let home = env
                        .last()
                        .and_then(Value::as_str)
                        .is_some_and(|e| e.starts_with("HOME="));
                    env.insert(env.len() - usize::from(home), json!(entry));
                }
            }
        }
        if !self.groups.is_empty() {
            let groups = list(&mut process["user"]["additionalGids"]);
            for g in &self.groups {
                if !groups.contains(&json!(g)) {
                    groups.push(json!(g));
                }
            }
        }
        let mounts = list(&mut spec["mounts"]);
        for m in &self.mounts {
            mounts.retain(|had| had["destination"] != m["destination"]);
            mounts.push(m.clone());
        }
        if self.hooks.is_empty() {
            return;
        }
        if !spec["hooks"].is_object() {
            spec["hooks"] = Value::Object(Map::new());
        }
        for (name, hook) in &self.hooks {
            list(&mut spec["hooks"][name]).push(hook.clone());
        }
    }
}

fn list(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    match value {
        Value::Array(list) => list,
        _ => unreachable!("it has just been made one"),
    }
}

fn mount(m: &Mount) -> Value {
    let kind = if m.r#type == "tmpfs" { "tmpfs" } else { "bind" };
    let mut options = m.options.clone();
    if kind == "bind" && !options.iter().any(|o| o == "bind" || o == "rbind") {
        options.push("rbind".into());
    }
    let source = if m.host_path.is_empty() {
        kind
    } else {
        m.host_path.as_str()
    };
    json!({"destination": m.container_path, "type": kind, "source": source, "options": options})
}

/// The node as it is on the host, but for what the specification says of it.
fn device(node: &DeviceNode) -> io::Result<Device> {
    let host = if node.host_path.is_empty() {
        &node.path
    } else {
        &node.host_path
    };
    let access = match node.permissions.as_str() {
        "" => "rwm",
        given => given,
    };
    let said = match node.r#type.as_str() {
        "b" => Some(DeviceKind::Block),
        "c" | "u" => Some(DeviceKind::Char),
        _ => None,
    };
    let container = Path::new(&node.path);
    let mut device = match (
        Device::at(Path::new(host), container, access),
        said,
        node.major.filter(|m| *m > 0),
    ) {
        // What it says itself need not be on the host.
        (Err(_) | Ok(None), Some(kind), Some(major)) => Device {
            path: container.to_path_buf(),
            kind,
            major,
            minor: 0,
            mode: 0o666,
            uid: 0,
            gid: 0,
            access: access.to_owned(),
        },
        (found, _, _) => found?.ok_or_else(|| io::Error::other(format!("{host:?} is no device")))?,
    };
    if let (Some(kind), Some(major)) = (said, node.major.filter(|m| *m > 0)) {
        (device.kind, device.major, device.minor) = (kind, major, node.minor.unwrap_or(0));
    }
    if said.is_some_and(|kind| kind != device.kind) {
        return Err(io::Error::other(format!("{host:?} is not of type {:?}", node.r#type)));
    }
    device.mode = node.file_mode.map_or(device.mode, |m| m & 0o7777);
    device.uid = node.uid.unwrap_or(device.uid);
    device.gid = node.gid.unwrap_or(device.gid);
    Ok(device)
}
