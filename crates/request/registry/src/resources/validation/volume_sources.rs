//! Sources of volumes that pods and persistent volumes have in common.

use super::check::{Errs, count, range_error, s};
use keelson_api::{Map, Value};
use keelson_machinery::names;
use regex::Regex;
use std::sync::LazyLock;

const HOST_PATH_TYPES: [&str; 8] = [
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];
const MANAGED_DISKS: &str =
    "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
const BLOB_DISKS: &str = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
const HOST_PORTS: &str = "must be a host:port pair or multiple pairs separated by commas";

fn required(e: &mut Errs, src: &Map, keys: &[&str]) {
    for key in keys {
        if s(src, key).is_empty() {
            e.required(key, "");
        }
    }
}

/// What a source says of a secret with a name, and with a namespace where the volume has none itself.
fn secret(e: &mut Errs, src: &Map, keys: &[&str]) {
    e.child(src, "secretRef", |e, secret| required(e, secret, keys));
}

/// A source in a pod.
pub fn plain(e: &mut Errs, key: &str, src: &Map) {
    match key {
        "iscsi" => {
            required(e, src, &["targetPortal"]);
            iscsi(e, src, "must be valid format starting with iqn, eui, or naa");
        }
        "cinder" | "storageos" => {
            common(e, key, src);
            secret(e, src, &["name"]);
        }
        _ => common(e, key, src),
    }
}

/// A source of the persistent volume of that name.
pub fn persistent(e: &mut Errs, key: &str, src: &Map, name: &str) {
    match key {
        "iscsi" => {
            required(e, src, &["targetPortal"]);
            let portal = s(src, "targetPortal");
            if src.contains_key("initiatorName") && name.len() + 1 + portal.len() > 64 {
                let why = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";
                e.invalid("targetportal", portal, why);
            }
            iscsi(e, src, "must be valid format");
            secret(e, src, &["name"]);
        }
        "cinder" | "storageos" => {
            common(e, key, src);
            secret(e, src, &["name", "namespace"]);
        }
        "glusterfs" => {
            common(e, key, src);
            match src.str("endpointsNamespace") {
                None => {}
                Some("") => e.invalid(
                    "endpointsNamespace",
                    "",
                    "if the endpointnamespace is set, it must be a valid namespace name",
                ),
                Some(namespace) => e.format("endpointsNamespace", namespace, names::dns1123_label),
            }
        }
        "azureFile" => {
            common(e, key, src);
            if src.str("secretNamespace") == Some("") {
                e.required("secretNamespace", "");
            }
        }
        _ => common(e, key, src),
    }
}

fn common(e: &mut Errs, key: &str, src: &Map) {
    match key {
        "hostPath" => {
            if s(src, "path").is_empty() {
                return e.required("path", "");
            }
            e.no_backsteps("path", s(src, "path"));
            e.optional_one_of(src, "type", &HOST_PATH_TYPES);
        }
        "nfs" => {
            required(e, src, &["server", "path"]);
            if !s(src, "path").starts_with('/') {
                e.invalid("path", s(src, "path"), "must be an absolute path");
            }
        }
        "gcePersistentDisk" => {
            required(e, src, &["pdName"]);
            partition(e, src);
        }
        "awsElasticBlockStore" => {
            required(e, src, &["volumeID"]);
            partition(e, src);
        }
        "glusterfs" => required(e, src, &["endpoints", "path"]),
        "rbd" => {
            if count(src, "monitors") == 0 {
                e.required("monitors", "");
            }
            required(e, src, &["image"]);
        }
        "cephfs" if count(src, "monitors") == 0 => {
            e.required("monitors", "");
        }
        "cinder" | "portworxVolume" => required(e, src, &["volumeID"]),
        "gitRepo" => {
            required(e, src, &["repository"]);
            e.local_path("directory", s(src, "directory"));
        }
        "flexVolume" => {
            required(e, src, &["driver"]);
            for option in src.obj("options").into_iter().flat_map(Map::keys) {
                let namespace = option.split('/').next().unwrap_or_default();
                let namespace = format!(".{}", namespace.to_lowercase());
                if namespace.ends_with(".kubernetes.io") || namespace.ends_with(".k8s.io") {
                    let why = "kubernetes.io and k8s.io namespaces are reserved";
                    e.invalid(&format!("options[{option}]"), option.as_str(), why);
                }
            }
        }
        "azureFile" => required(e, src, &["secretName", "shareName"]),
        "azureDisk" => azure_disk(e, src),
        "vsphereVolume" => required(e, src, &["volumePath"]),
        "photonPersistentDisk" => required(e, src, &["pdID"]),
        "scaleIO" => required(e, src, &["gateway", "system", "volumeName"]),
        "storageos" => {
            match s(src, "volumeName") {
                "" => e.required("volumeName", ""),
                name => e.format("volumeName", name, names::dns1123_label),
            }
            if !s(src, "volumeNamespace").is_empty() {
                e.format("volumeNamespace", s(src, "volumeNamespace"), names::dns1123_label);
            }
        }
        "quobyte" => {
            let registry = s(src, "registry");
            if registry.is_empty() {
                e.required("registry", HOST_PORTS);
            } else if s(src, "tenant").len() > 64 {
                e.required("tenant", "must be a UUID and may not exceed a length of 64 characters");
            } else {
                for _ in registry.split(',').filter(|pair| !is_host_port(pair)) {
                    e.invalid("registry", registry, HOST_PORTS);
                }
            }
            required(e, src, &["volume"]);
        }
        "flocker" => {
            let (name, id) = (s(src, "datasetName"), s(src, "datasetUUID"));
            if name.is_empty() && id.is_empty() {
                e.required("", "one of datasetName and datasetUUID is required");
            }
            if !name.is_empty() && !id.is_empty() {
                let why = "datasetName and datasetUUID can not be specified simultaneously";
                e.invalid("", "resource", why);
            }
            if name.contains('/') {
                e.invalid("datasetName", name, "must not contain '/'");
            }
        }
        "fc" => {
            let (targets, ids) = (count(src, "targetWWNs"), count(src, "wwids"));
            if targets == 0 && ids == 0 {
                e.required("targetWWNs", "must specify either targetWWNs or wwids, but not both");
            }
            if targets > 0 && ids > 0 {
                let shown = src.get("targetWWNs").cloned().unwrap_or(Value::Null);
                let why = "targetWWNs and wwids can not be specified simultaneously";
                e.invalid("targetWWNs", shown, why);
            }
            if targets > 0 {
                match src.int("lun") {
                    None => e.required("lun", "lun is required if targetWWNs is specified"),
                    Some(_) => e.in_range(src, "lun", 0, 255),
                }
            }
        }
        _ => {}
    }
}

/// From 0, though the complaint says from 1.
fn partition(e: &mut Errs, src: &Map) {
    if let Some(n) = src.int("partition").filter(|n| !(0..=255).contains(n)) {
        e.invalid("partition", n, &range_error(1, 255));
    }
}

fn azure_disk(e: &mut Errs, src: &Map) {
    required(e, src, &["diskName", "diskURI"]);
    e.optional_one_of(src, "cachingMode", &["None", "ReadOnly", "ReadWrite"]);
    e.optional_one_of(src, "kind", &["Dedicated", "Managed", "Shared"]);
    let uri = s(src, "diskURI");
    match src.str("kind") {
        Some("Managed") if !uri.starts_with("/subscriptions/") => e.not_supported("diskURI", uri, &[MANAGED_DISKS]),
        Some(kind) if kind != "Managed" && !uri.starts_with("https://") => {
            e.not_supported("diskURI", uri, &[BLOB_DISKS]);
        }
        _ => {}
    }
}

fn iscsi(e: &mut Errs, src: &Map, unknown: &str) {
    match s(src, "iqn") {
        "" => e.required("iqn", ""),
        iqn => {
            if let Some(why) = qualified_name_error(iqn, unknown) {
                e.invalid("iqn", iqn, why);
            }
        }
    }
    e.in_range(src, "lun", 0, 255);
    let chap = ["chapAuthDiscovery", "chapAuthSession"];
    if chap.iter().any(|key| src.bool(key) == Some(true)) && !src.contains_key("secretRef") {
        e.required("secretRef", "");
    }
    if let Some(initiator) = src.str("initiatorName")
        && let Some(why) = qualified_name_error(initiator, unknown)
    {
        e.invalid("initiatorname", initiator, why);
    }
}

/// What is wrong with the name of an iSCSI target or initiator.
fn qualified_name_error<'a>(name: &str, unknown: &'a str) -> Option<&'a str> {
    static IQN: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"iqn\.[0-9]{4}-[0-9]{2}\.([0-9A-Za-z.-]+)(:[^,;*&$|\t\n\f\r ]+)$").ok());
    let serial = |prefix: &str, len: usize| {
        let rest = name.strip_prefix(prefix).and_then(|rest| {
            let mut chars = rest.chars();
            chars.next().filter(|c| *c != '\n').map(|_| chars.as_str())
        });
        rest.is_some_and(|rest| rest.len() == len && rest.bytes().all(|b| b.is_ascii_alphanumeric()))
    };
    let valid = match name.get(..3) {
        Some("iqn") => IQN.as_ref().is_some_and(|r| r.is_match(name)),
        Some("eui") => serial("eui", 16),
        Some("naa") => serial("naa", 32),
        _ => return Some(unknown),
    };
    (!valid).then_some("must be valid format")
}

/// As Go splits a host from its port.
fn is_host_port(pair: &str) -> bool {
    let Some((host, port)) = pair.rsplit_once(':') else {
        return false;
    };
    match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').is_some_and(|h| !h.contains(['[', ']'])) && !port.contains([']', '[']),
        None => !host.contains([':', '[', ']']) && !port.contains(['[', ']']),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn told(key: &str, src: Value, persistent_volume: bool) -> Vec<String> {
        let mut e = Errs::default();
        let src = src.as_object().cloned().unwrap_or_default();
        if persistent_volume {
            persistent(&mut e, key, &src, "pv");
        } else {
            plain(&mut e, key, &src);
        }
        e.list.iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn names_of_iscsi_are_what_upstream_takes() {
        for (name, fine) in [
            ("iqn.2001-04.com.example:storage.kube.sys1.xyz", true),
            ("iqn.2001-04.com.example", false),
            ("iqn.01-04.com.example:x", false),
            ("eui.0123456789ABCDEF", true),
            ("eui.0123", false),
            ("naa.0123456789ABCDEF0123456789ABCDEF", true),
            ("other", false),
            ("", false),
        ] {
            assert_eq!(qualified_name_error(name, "unknown").is_none(), fine, "{name}");
        }
    }

    #[test]
    fn hosts_have_ports() {
        for (pair, fine) in [
            ("a:1", true),
            ("[::1]:1", true),
            (":1", true),
            ("a", false),
            ("::1:1", false),
            ("[a:1", false),
            ("", false),
        ] {
            assert_eq!(is_host_port(pair), fine, "{pair}");
        }
    }

    #[test]
    fn a_source_of_a_persistent_volume_names_its_secrets_namespace() {
        let src = value!({"volumeID": "x", "secretRef": {"name": "s"}});
        assert!(told("cinder", src.clone(), false).is_empty());
        assert_eq!(told("cinder", src, true), ["secretRef.namespace: Required value"]);
        let src = value!({"endpoints": "a", "path": "b", "endpointsNamespace": ""});
        assert!(told("glusterfs", src.clone(), false).is_empty());
        assert_eq!(told("glusterfs", src, true).len(), 1);
    }

    #[test]
    fn disks_of_azure_are_where_their_kind_is() {
        let disk = |kind: &str, uri: &str| value!({"diskName": "d", "diskURI": (uri), "kind": (kind)});
        assert!(told("azureDisk", disk("Managed", "/subscriptions/x"), false).is_empty());
        assert!(told("azureDisk", disk("Shared", "https://x"), false).is_empty());
        assert_eq!(told("azureDisk", disk("Managed", "https://x"), false).len(), 1);
        assert_eq!(told("azureDisk", disk("Other", "x"), false).len(), 2);
    }
}
