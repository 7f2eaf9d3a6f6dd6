//! Specifications as drivers write them (versions 0.x and 1.x), and what in them can't be honoured.

use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Spec {
    pub cdi_version: String,
    /// `vendor/class`.
    pub kind: String,
    pub annotations: std::collections::BTreeMap<String, String>,
    pub devices: Vec<Device>,
    pub container_edits: ContainerEdits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Device {
    pub name: String,
    pub annotations: std::collections::BTreeMap<String, String>,
    pub container_edits: ContainerEdits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ContainerEdits {
    pub env: Vec<String>,
    pub device_nodes: Vec<DeviceNode>,
    pub mounts: Vec<Mount>,
    pub hooks: Vec<Hook>,
    #[serde(rename = "additionalGIDs", alias = "additionalGids")]
    pub additional_gids: Vec<u32>,
    pub net_devices: Vec<serde_json::Value>,
    pub intel_rdt: Option<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DeviceNode {
    pub path: String,
    pub host_path: String,
    pub r#type: String,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub file_mode: Option<u32>,
    pub permissions: String,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Mount {
    pub host_path: String,
    pub container_path: String,
    pub options: Vec<String>,
    pub r#type: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hook {
    pub hook_name: String,
    pub path: String,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub timeout: Option<i64>,
}

/// Hooks that are run: beside the container, by programs of the node. Those that come later would run programs of the
/// container's own, or after it.
const HOOKS: [&str; 3] = ["prestart", "createRuntime", "createContainer"];
const OTHER_HOOKS: [&str; 3] = ["startContainer", "poststart", "poststop"];

pub fn parse(text: &str, json: bool) -> Result<Spec, String> {
    let spec: Spec = match json {
        true => serde_json::from_str(text).map_err(|e| e.to_string())?,
        false => serde_saphyr::from_str(text).map_err(|e| e.to_string())?,
    };
    let version = spec.cdi_version.trim_start_matches('v');
    if !version.starts_with("0.") && !version.starts_with("1.") {
        return Err(format!("version {:?} of the format is not known", spec.cdi_version));
    }
    check_name(&format!("{}=0", spec.kind))?;
    for d in &spec.devices {
        check_name(&format!("{}={}", spec.kind, d.name))?;
    }
    Ok(spec)
}

/// `vendor/class=device`.
pub fn check_name(name: &str) -> Result<(), String> {
    let bad = || format!("unqualified device {name:?}, it has to be of the form vendor/class=device");
    let (vendor, rest) = name.split_once('/').ok_or_else(bad)?;
    let (class, device) = rest.split_once('=').ok_or_else(bad)?;
    let sound = |text: &str, also: &str, first: fn(char) -> bool| {
        let plain = |c: char| c.is_ascii_alphanumeric() || also.contains(c);
        text.chars().all(plain)
            && text.chars().next().is_some_and(first)
            && text.chars().last().is_some_and(|c| c.is_ascii_alphanumeric())
    };
    let good = sound(vendor, "_-.", |c| c.is_ascii_alphabetic())
        && sound(class, "_-.", |c| c.is_ascii_alphabetic())
        && sound(device, "_-.:", |c| c.is_ascii_alphanumeric());
    if good { Ok(()) } else { Err(bad()) }
}

impl ContainerEdits {
    /// What of it can't be done.
    pub fn check(&self) -> Result<(), String> {
        let absolute = |what: &str, path: &str| match path.starts_with('/') {
            true => Ok(()),
            false => Err(format!("{what} {path:?} is no absolute path")),
        };
        if !self.net_devices.is_empty() {
            return Err("netDevices are not supported".into());
        }
        if self.intel_rdt.is_some() {
            return Err("intelRdt is not supported".into());
        }
        if let Some(odd) = self
            .env
            .iter()
            .find(|e| e.split_once('=').is_none_or(|(name, _)| name.is_empty()))
        {
            return Err(format!("invalid environment variable {odd:?}"));
        }
        for d in &self.device_nodes {
            absolute("device", &d.path)?;
            if !d.permissions.chars().all(|c| "rwm".contains(c)) {
                return Err(format!("device {:?}: invalid permissions {:?}", d.path, d.permissions));
            }
            if !matches!(d.r#type.as_str(), "" | "b" | "c" | "u") {
                return Err(format!("device {:?}: type {:?} is not supported", d.path, d.r#type));
            }
        }
        for m in &self.mounts {
            absolute("mount", &m.container_path)?;
            match m.r#type.as_str() {
                "" | "bind" => absolute("mount of", &m.host_path)?,
                "tmpfs" => {}
                other => return Err(format!("mount {:?}: type {other:?} is not supported", m.container_path)),
            }
        }
        for h in &self.hooks {
            absolute("hook", &h.path)?;
            match h.hook_name.as_str() {
                name if HOOKS.contains(&name) => {}
                name if OTHER_HOOKS.contains(&name) => return Err(format!("{name} hooks are not supported")),
                name => return Err(format!("invalid hook name {name:?}")),
            }
            if h.timeout.is_some_and(|t| t <= 0) {
                return Err(format!("hook {:?}: invalid timeout", h.path));
            }
        }
        Ok(())
    }
}
