//! What is asked of a driver for one volume of one pod, read from the pod or from the persistent volume. Pure.

use super::super::kind::Ask;
use super::paths;
use crate::pods;
use k8s_openapi::api::core::v1::SecretReference;
use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec};
use keelson_csi::v1::volume_capability::access_mode::Mode;
use keelson_csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use keelson_csi::v1::{VolumeCapability, node_service_capability::rpc::Type as Capability};
use std::collections::{BTreeSet, HashMap};

/// What a driver says it can.
pub type Capabilities = BTreeSet<i32>;

pub fn can(capabilities: &Capabilities, what: Capability) -> bool {
    capabilities.contains(&(what as i32))
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    pub driver: String,
    pub handle: String,
    /// In the pod itself: it lives and ends with the pod.
    pub inline: bool,
    pub block: bool,
    pub read_only: bool,
    pub fs_type: String,
    pub attributes: HashMap<String, String>,
    pub mount_options: Vec<String>,
    pub access_modes: Vec<String>,
    pub stage_secret: Option<SecretReference>,
    pub publish_secret: Option<SecretReference>,
    pub expand_secret: Option<SecretReference>,
}

pub fn of(ask: &Ask) -> Option<Source> {
    if let Some(bound) = &ask.bound {
        let spec = bound.volume.spec.as_ref()?;
        let csi = spec.csi.as_ref()?;
        return Some(Source {
            driver: csi.driver.clone(),
            handle: csi.volume_handle.clone(),
            inline: false,
            block: ask.is_block(),
            read_only: bound.read_only,
            fs_type: csi.fs_type.clone().unwrap_or_default(),
            attributes: csi.volume_attributes.clone().unwrap_or_default().into_iter().collect(),
            mount_options: spec.mount_options.clone().unwrap_or_default(),
            access_modes: spec.access_modes.clone().unwrap_or_default(),
            stage_secret: csi.node_stage_secret_ref.clone(),
            publish_secret: csi.node_publish_secret_ref.clone(),
            expand_secret: csi.node_expand_secret_ref.clone(),
        });
    }
    let csi = ask.volume.csi.as_ref()?;
    let secret = csi.node_publish_secret_ref.as_ref().map(|r| SecretReference {
        name: Some(r.name.clone()),
        namespace: Some(pods::namespace(&ask.pod).to_owned()),
    });
    Some(Source {
        driver: csi.driver.clone(),
        handle: paths::inline_handle(ask.uid(), ask.name()),
        inline: true,
        read_only: csi.read_only == Some(true),
        fs_type: csi.fs_type.clone().unwrap_or_default(),
        attributes: csi.volume_attributes.clone().unwrap_or_default().into_iter().collect(),
        publish_secret: secret,
        ..Source::default()
    })
}

impl Source {
    /// How the volume is to be had. `group` is given to drivers that give files to groups themselves.
    pub fn capability(&self, capabilities: &Capabilities, group: Option<u32>) -> VolumeCapability {
        let access = if self.block {
            AccessType::Block(BlockVolume {})
        } else {
            let own = can(capabilities, Capability::VolumeMountGroup);
            AccessType::Mount(MountVolume {
                fs_type: self.fs_type.clone(),
                mount_flags: self.mount_options.clone(),
                volume_mount_group: group.filter(|_| own).map(|g| g.to_string()).unwrap_or_default(),
            })
        };
        VolumeCapability {
            access_mode: Some(AccessMode {
                mode: self.mode(capabilities) as i32,
            }),
            access_type: Some(access),
        }
    }

    /// The first of the volume's access modes, in the words of the driver.
    fn mode(&self, capabilities: &Capabilities) -> Mode {
        let exact = can(capabilities, Capability::SingleNodeMultiWriter);
        match self.access_modes.first().map_or("ReadWriteOnce", String::as_str) {
            "ReadWriteOnce" if exact => Mode::SingleNodeMultiWriter,
            "ReadWriteOncePod" if exact => Mode::SingleNodeSingleWriter,
            "ReadWriteOnce" | "ReadWriteOncePod" => Mode::SingleNodeWriter,
            "ReadOnlyMany" => Mode::MultiNodeReaderOnly,
            "ReadWriteMany" => Mode::MultiNodeMultiWriter,
            _ => Mode::Unknown,
        }
    }

    /// Whether this driver takes volumes that live the way this one does.
    pub fn check_lifecycle(&self, driver: Option<&CSIDriver>) -> Result<(), String> {
        let mode = if self.inline { "Ephemeral" } else { "Persistent" };
        let name = &self.driver;
        let Some(driver) = driver else {
            return if self.inline {
                Err(format!(
                    "volume mode \"{mode}\" not supported by driver {name} (no CSIDriver object)"
                ))
            } else {
                Ok(())
            };
        };
        let modes = driver.spec.volume_lifecycle_modes.clone().unwrap_or_default();
        if modes.iter().any(|m| m == mode) {
            return Ok(());
        }
        let only: Vec<String> = modes.iter().map(|m| format!("{m:?}")).collect();
        Err(format!(
            "volume mode \"{mode}\" not supported by driver {name} (only supports [{}])",
            only.join(" ")
        ))
    }

    /// Whether the kubelet gives the volume's files to the pod's group.
    pub fn takes_group(&self, capabilities: &Capabilities, driver: Option<&CSIDriver>) -> bool {
        if self.read_only || self.block || can(capabilities, Capability::VolumeMountGroup) {
            return false;
        }
        let policy = driver.and_then(|d| d.spec.fs_group_policy.as_deref());
        match policy.unwrap_or("ReadWriteOnceWithFSType") {
            "None" => false,
            "File" => true,
            _ if self.fs_type.is_empty() => false,
            _ => {
                self.inline
                    || self
                        .access_modes
                        .iter()
                        .any(|m| m == "ReadWriteOnce" || m == "ReadWriteOncePod")
            }
        }
    }

    /// What the driver is told about the volume, and about the pod if it wants that.
    pub fn context(&self, ask: &Ask, driver: Option<&CSIDriver>) -> HashMap<String, String> {
        let mut context = self.attributes.clone();
        if driver.is_some_and(|d| d.spec.pod_info_on_mount == Some(true)) {
            let account = pods::spec(&ask.pod).service_account_name.clone().unwrap_or_default();
            let facts = [
                ("pod.name", pods::name(&ask.pod).to_owned()),
                ("pod.namespace", pods::namespace(&ask.pod).to_owned()),
                ("pod.uid", ask.uid().to_owned()),
                ("serviceAccount.name", account),
                ("ephemeral", self.inline.to_string()),
            ];
            context.extend(facts.map(|(k, v)| (format!("csi.storage.k8s.io/{k}"), v)));
        }
        context
    }
}

/// Whether a driver's volumes are attached to the node by somebody else before they are used. Without its object it is
/// taken to want that.
pub fn needs_attach(driver: Option<&CSIDriverSpec>) -> bool {
    driver.and_then(|d| d.attach_required) != Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn driver(spec: serde_json::Value) -> CSIDriver {
        serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": spec})).unwrap()
    }

    fn with_modes(modes: &[&str]) -> Source {
        Source {
            driver: "d".into(),
            fs_type: "ext4".into(),
            access_modes: modes.iter().map(|m| (*m).to_owned()).collect(),
            ..Source::default()
        }
    }

    #[test]
    fn access_modes_in_the_drivers_words() {
        let plain = Capabilities::new();
        let exact = Capabilities::from([Capability::SingleNodeMultiWriter as i32]);
        for (mode, coarse, fine) in [
            ("ReadWriteOnce", Mode::SingleNodeWriter, Mode::SingleNodeMultiWriter),
            ("ReadWriteOncePod", Mode::SingleNodeWriter, Mode::SingleNodeSingleWriter),
            ("ReadOnlyMany", Mode::MultiNodeReaderOnly, Mode::MultiNodeReaderOnly),
            ("ReadWriteMany", Mode::MultiNodeMultiWriter, Mode::MultiNodeMultiWriter),
        ] {
            let source = with_modes(&[mode]);
            assert_eq!((source.mode(&plain), source.mode(&exact)), (coarse, fine), "{mode}");
        }
    }

    #[test]
    fn groups_by_policy() {
        let none = Capabilities::new();
        let by = |p: &str| driver(json!({"fsGroupPolicy": p}));
        let (once, many) = (with_modes(&["ReadWriteOnce"]), with_modes(&["ReadWriteMany"]));
        assert!(once.takes_group(&none, None));
        assert!(!many.takes_group(&none, None));
        assert!(many.takes_group(&none, Some(&by("File"))));
        assert!(!once.takes_group(&none, Some(&by("None"))));
        let no_type = Source {
            fs_type: String::new(),
            ..once.clone()
        };
        assert!(!no_type.takes_group(&none, None));
        let reading = Source {
            read_only: true,
            ..once.clone()
        };
        assert!(!reading.takes_group(&none, Some(&by("File"))));
        let own = Capabilities::from([Capability::VolumeMountGroup as i32]);
        assert!(!once.takes_group(&own, Some(&by("File"))));
        let Some(AccessType::Mount(mount)) = once.capability(&own, Some(7)).access_type else {
            panic!("no mount")
        };
        assert_eq!(mount.volume_mount_group, "7");
    }

    #[test]
    fn lifecycles_have_to_be_offered() {
        let inline = Source {
            inline: true,
            ..with_modes(&[])
        };
        assert_eq!(
            inline.check_lifecycle(None).unwrap_err(),
            "volume mode \"Ephemeral\" not supported by driver d (no CSIDriver object)"
        );
        assert_eq!(
            inline
                .check_lifecycle(Some(&driver(json!({"volumeLifecycleModes": ["Persistent"]}))))
                .unwrap_err(),
            "volume mode \"Ephemeral\" not supported by driver d (only supports [\"Persistent\"])"
        );
        assert!(with_modes(&[]).check_lifecycle(None).is_ok());
    }
}
