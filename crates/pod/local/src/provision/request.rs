//! What a claim asks of the driver, and the volume that the API gets for what it made. Pure.

use super::{Facts, annotation};
use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume,
    PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_api::Quantity;
use keelson_client::{ApiObject, Kind, events};
use keelson_csi::v1::controller_service_capability::rpc::Type as Can;
use keelson_csi::v1::volume_capability::access_mode::Mode;
use keelson_csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use keelson_csi::v1::volume_content_source::{SnapshotSource, Type as SourceType, VolumeSource};
use keelson_csi::v1::{self as csi};
use std::collections::BTreeMap;

pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On volumes that the driver still has.
pub const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
/// Parameters of a class that are for the provisioner, not the driver.
const RESERVED: &str = "csi.storage.k8s.io/";
const FS_TYPE: &str = "csi.storage.k8s.io/fstype";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

pub fn class_of(claim: &PersistentVolumeClaim) -> Option<&str> {
    annotation(claim, BETA_CLASS)
        .or_else(|| claim.spec.as_ref()?.storage_class_name.as_deref())
        .filter(|c| !c.is_empty())
}

pub fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.uid())
}

pub fn storage(list: Option<&BTreeMap<String, Text>>) -> Option<Quantity> {
    Quantity::parse(&list?.get("storage")?.0).ok()
}

pub fn bytes(list: Option<&BTreeMap<String, Text>>) -> i64 {
    storage(list).map_or(0, |q| q.value())
}

pub fn requested(claim: &PersistentVolumeClaim) -> i64 {
    let resources = claim.spec.as_ref().and_then(|s| s.resources.as_ref());
    bytes(resources.and_then(|r| r.requests.as_ref()))
}

/// A size as people write it, if it is a whole number of such.
pub fn quantity(bytes: i64) -> Text {
    let units = [(1_i64 << 40, "Ti"), (1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")];
    let whole = units.iter().find(|(unit, _)| bytes % unit == 0 && bytes != 0);
    Text(whole.map_or_else(|| bytes.to_string(), |(unit, name)| format!("{}{name}", bytes / unit)))
}

fn parameters(class: &StorageClass) -> impl Iterator<Item = (&String, &String)> {
    class.parameters.iter().flatten()
}

fn capabilities(facts: &Facts, claim: &PersistentVolumeClaim, class: &StorageClass) -> Vec<csi::VolumeCapability> {
    let spec = claim.spec.as_ref();
    let block = spec.and_then(|s| s.volume_mode.as_deref()) == Some("Block");
    let fs_type = parameters(class)
        .find(|(name, _)| *name == FS_TYPE)
        .map(|(_, v)| v.clone());
    let several = facts.can(Can::SingleNodeMultiWriter);
    let mode = |mode: &String| match mode.as_str() {
        "ReadWriteOnce" if several => Mode::SingleNodeMultiWriter,
        "ReadWriteOncePod" if several => Mode::SingleNodeSingleWriter,
        "ReadWriteOnce" | "ReadWriteOncePod" => Mode::SingleNodeWriter,
        "ReadOnlyMany" => Mode::MultiNodeReaderOnly,
        "ReadWriteMany" => Mode::MultiNodeMultiWriter,
        _ => Mode::Unknown,
    };
    let kind = || match block {
        true => AccessType::Block(BlockVolume {}),
        false => AccessType::Mount(MountVolume {
            fs_type: fs_type.clone().unwrap_or_default(),
            mount_flags: class.mount_options.clone().unwrap_or_default(),
            ..Default::default()
        }),
    };
    let modes = spec.iter().flat_map(|s| s.access_modes.iter().flatten());
    modes
        .map(|m| csi::VolumeCapability {
            access_mode: Some(AccessMode { mode: mode(m).into() }),
            access_type: Some(kind()),
        })
        .collect()
}

/// The driver's name of what a volume begins with.
#[derive(Debug)]
pub enum Source {
    Volume(String),
    Snapshot(String),
}

/// The request, or why there can't be one.
pub fn create(
    facts: &Facts,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    source: Option<Source>,
) -> Result<csi::CreateVolumeRequest, String> {
    if let Some((name, _)) = parameters(class).find(|(n, _)| n.starts_with(RESERVED) && *n != FS_TYPE) {
        return Err(format!(
            "parameter {name} of the class is not supported by this provisioner"
        ));
    }
    if claim.spec.as_ref().is_some_and(|s| s.selector.is_some()) {
        return Err("claim Selector is not supported".into());
    }
    let attributes = claim
        .spec
        .as_ref()
        .and_then(|s| s.volume_attributes_class_name.as_deref());
    if let Some(name) = attributes.filter(|n| !n.is_empty()) {
        return Err(format!(
            "volume attributes class {name:?}: the driver can't change volumes"
        ));
    }
    Ok(csi::CreateVolumeRequest {
        name: volume_name(claim),
        capacity_range: Some(csi::CapacityRange {
            required_bytes: requested(claim),
            limit_bytes: 0,
        }),
        volume_capabilities: capabilities(facts, claim, class),
        parameters: parameters(class)
            .filter(|(name, _)| !name.starts_with(RESERVED))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        volume_content_source: source.map(|source| csi::VolumeContentSource {
            r#type: Some(match source {
                Source::Volume(volume_id) => SourceType::Volume(VolumeSource { volume_id }),
                Source::Snapshot(snapshot_id) => SourceType::Snapshot(SnapshotSource { snapshot_id }),
            }),
        }),
        accessibility_requirements: Some(csi::TopologyRequirement {
            requisite: vec![facts.topology()],
            preferred: vec![facts.topology()],
        }),
        ..Default::default()
    })
}

fn affinity(topologies: &[csi::Topology]) -> Option<VolumeNodeAffinity> {
    let term = |t: &csi::Topology| {
        let segments: BTreeMap<_, _> = t.segments.iter().collect();
        let requirement = |(key, value): (&String, &String)| NodeSelectorRequirement {
            key: key.clone(),
            operator: "In".into(),
            values: Some(vec![value.clone()]),
        };
        NodeSelectorTerm {
            match_expressions: Some(segments.into_iter().map(requirement).collect()),
            match_fields: None,
        }
    };
    (!topologies.is_empty()).then(|| VolumeNodeAffinity {
        required: Some(NodeSelector {
            node_selector_terms: topologies.iter().map(term).collect(),
        }),
    })
}

/// The object for what the driver made; it is bound to the claim from the start.
pub fn volume(
    facts: &Facts,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    made: csi::Volume,
) -> PersistentVolume {
    let spec = claim.spec.clone().unwrap_or_default();
    let policy = class.reclaim_policy.clone().unwrap_or_else(|| "Delete".into());
    let fs_type = parameters(class)
        .find(|(name, _)| *name == FS_TYPE)
        .map(|(_, v)| v.clone());
    let size = if made.capacity_bytes > 0 {
        made.capacity_bytes
    } else {
        requested(claim)
    };
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(volume_name(claim)),
            annotations: Some(BTreeMap::from([(PROVISIONED_BY.into(), facts.name.clone())])),
            finalizers: (policy == "Delete").then(|| vec![FINALIZER.into()]),
            ..Default::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: Some(BTreeMap::from([("storage".into(), quantity(size))])),
            claim_ref: Some(events::reference(&PersistentVolumeClaim::RESOURCE, claim.meta())),
            csi: Some(CSIPersistentVolumeSource {
                driver: facts.name.clone(),
                volume_handle: made.volume_id,
                fs_type,
                volume_attributes: (!made.volume_context.is_empty()).then(|| made.volume_context.into_iter().collect()),
                ..Default::default()
            }),
            mount_options: class.mount_options.clone(),
            node_affinity: affinity(&made.accessible_topology),
            persistent_volume_reclaim_policy: Some(policy),
            storage_class_name: class_of(claim).map(Into::into),
            volume_mode: spec.volume_mode,
            ..Default::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            name: "d".into(),
            node: "n".into(),
            segments: BTreeMap::from([("where".into(), "n".into())]),
            can: [Can::SingleNodeMultiWriter.into()].into(),
        }
    }

    fn claim(more: &str) -> PersistentVolumeClaim {
        let text = format!(
            r#"{{"metadata":{{"name":"c","namespace":"ns","uid":"u"}},"spec":{{"accessModes":["ReadWriteOnce"],"storageClassName":"s","resources":{{"requests":{{"storage":"3Gi"}}}}{more}}}}}"#
        );
        PersistentVolumeClaim::decode(text.as_bytes()).expect("a claim")
    }

    fn class(parameters: &str) -> StorageClass {
        let text = format!(r#"{{"metadata":{{"name":"s"}},"provisioner":"d","parameters":{{{parameters}}}}}"#);
        StorageClass::decode(text.as_bytes()).expect("a class")
    }

    #[test]
    fn what_is_asked_and_what_becomes_of_it() {
        let (facts, claim) = (facts(), claim(""));
        let class = class(r#""allocation":"thin","csi.storage.k8s.io/fstype":"ext4""#);
        let asked = create(&facts, &claim, &class, None).expect("a request");
        assert_eq!((asked.name.as_str(), asked.parameters.len()), ("pvc-u", 1));
        let mode = asked.volume_capabilities[0].access_mode.as_ref().map(|m| m.mode());
        assert_eq!(mode, Some(Mode::SingleNodeMultiWriter));
        let made = csi::Volume {
            capacity_bytes: 3 << 30,
            volume_id: "h".into(),
            accessible_topology: vec![facts.topology()],
            ..Default::default()
        };
        let volume = volume(&facts, &claim, &class, made);
        assert!(facts.owns(&volume));
        let spec = volume.spec.as_ref().expect("a spec");
        assert_eq!(spec.capacity.as_ref().map(|c| c["storage"].0.as_str()), Some("3Gi"));
        assert_eq!(spec.claim_ref.as_ref().and_then(|r| r.uid.as_deref()), Some("u"));
        assert_eq!(
            volume.metadata.finalizers.as_deref(),
            Some(&[FINALIZER.to_string()][..])
        );
        let elsewhere = Facts {
            segments: BTreeMap::from([("where".into(), "m".into())]),
            ..facts
        };
        assert!(!elsewhere.owns(&volume));
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let facts = facts();
        let secret = class(r#""csi.storage.k8s.io/provisioner-secret-name":"x""#);
        assert!(create(&facts, &claim(""), &secret, None).is_err());
        let selector = claim(r#","selector":{"matchLabels":{"a":"b"}}"#);
        assert!(create(&facts, &selector, &class(""), None).is_err());
        assert_eq!(quantity(1_500_000_000).0, "1500000000");
    }
}
