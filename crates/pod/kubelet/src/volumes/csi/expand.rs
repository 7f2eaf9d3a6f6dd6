//! Volumes that have grown: what the controller made larger, the driver makes larger on the node, and the claim is told.
//!
//! [`decide`] is pure: from a claim, its volume and what is known of it here to what is to be done. A claim whose controller
//! keeps upstream's `allocatedResources` is grown when its status says that it waits for the node; one of an older
//! controller when its volume is larger than the claim says.

use super::super::claims;
use super::super::kind::{Ask, Bound, Failure, Mounted};
use super::drivers::in_time;
use super::source::Source;
use super::{Csi, paths};
use crate::resources::quantity;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use keelson_client::{EventType, Kind, Objects, Patch, events};
use keelson_csi::{ended, v1 as csi};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::HashMap;
use tonic::Code;

const STORAGE: &str = "storage";

/// What is known of volumes' sizes on this node, by the volume's name.
#[derive(Default)]
pub struct Sizes(Mutex<HashMap<String, Size>>);

impl Sizes {
    /// Forgets volumes that nothing has to be known of any more.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.0.lock().retain(|name, _| keep(name));
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// What it was grown to here, in bytes.
    pub grown: i64,
    /// The driver doesn't grow it while it is in use: it isn't asked again before the next mount.
    pub not_in_use: bool,
    /// Growing it failed for certain.
    pub failed: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Decision {
    Leave,
    /// To this size. `update` tells the claim; `recover` by the way that lets its owner change their mind.
    Grow {
        to: Quantity,
        update: bool,
        recover: bool,
    },
}

fn stored(list: Option<&quantity::ResourceList>) -> Option<Quantity> {
    list?.get(STORAGE).cloned()
}

/// `have` is the size the volume has on this node, in bytes.
fn decide(bound: &Bound, have: i64) -> Decision {
    let status = bound.claim.status.clone().unwrap_or_default();
    let spec = bound.volume.spec.as_ref();
    let Some(wanted) = stored(spec.and_then(|s| s.capacity.as_ref())) else {
        return Decision::Leave;
    };
    if quantity::value(&wanted) <= have {
        return Decision::Leave;
    }
    let phase = status.allocated_resource_statuses.as_ref().and_then(|s| s.get(STORAGE));
    if phase.is_none() && status.allocated_resources.is_none() {
        return Decision::Grow {
            to: wanted,
            update: true,
            recover: false,
        };
    }
    let to = stored(status.allocated_resources.as_ref()).unwrap_or(wanted);
    let told = quantity::value_of(status.capacity.as_ref(), STORAGE) >= quantity::value(&to) && phase.is_none();
    let modes = bound
        .claim
        .spec
        .as_ref()
        .and_then(|s| s.access_modes.clone())
        .unwrap_or_default();
    let annotations = bound.claim.metadata.annotations.as_ref();
    let not_required = annotations.is_some_and(|a| a.contains_key("volume.kubernetes.io/node-expansion-not-required"));
    match phase.map(String::as_str) {
        // Another node told the claim; each node has to grow what is mounted on several.
        None if told && modes.iter().any(|m| m == "ReadWriteMany") && !not_required => Decision::Grow {
            to,
            update: false,
            recover: true,
        },
        Some("NodeResizePending" | "NodeResizeInProgress") => Decision::Grow {
            to,
            update: true,
            recover: true,
        },
        _ => Decision::Leave,
    }
}

/// Why a volume wasn't grown.
enum Refusal {
    Unsupported(String),
    /// Not while it is in use.
    InUse(String),
    /// Never to this size.
    Infeasible(String),
    Other {
        message: String,
        certain: bool,
    },
}

impl Refusal {
    fn message(&self) -> &str {
        match self {
            Refusal::Unsupported(m) | Refusal::InUse(m) | Refusal::Infeasible(m) => m,
            Refusal::Other { message, .. } => message,
        }
    }

    /// Whether nothing of it goes on.
    fn certain(&self) -> bool {
        !matches!(self, Refusal::Other { certain: false, .. })
    }
}

impl Csi {
    /// Grows a volume that grew while no pod here had it.
    pub async fn expand_at_mount(&self, ask: &Ask, source: &Source, mounted: &Mounted) -> Result<(), Failure> {
        let Some(bound) = &ask.bound else { return Ok(()) };
        let status = bound.claim.status.as_ref();
        let have = quantity::value_of(status.and_then(|s| s.capacity.as_ref()), STORAGE);
        let size = Size {
            grown: have,
            ..Size::default()
        };
        self.sizes.0.lock().insert(ask.name().to_owned(), size);
        let grown = self.expand(ask, bound, source, mounted, have).await;
        grown.map_err(|message| Failure {
            reason: Some(if source.block { "FailedMapVolume" } else { "FailedMount" }),
            step: match source.block {
                true => "MapVolume.MarkVolumeAsMounted failed while expanding volume",
                false => "MountVolume.Setup failed while expanding volume",
            },
            message,
        })
    }

    /// Grows a volume in use, if it has grown. A failure is told and tried again at the next look.
    pub async fn expand_in_use(&self, ask: &Ask, source: &Source, mounted: &Mounted) {
        let Some(named) = claims::named(&ask.pod, &ask.volume) else {
            return;
        };
        let size = self.sizes.0.lock().get(ask.name()).copied().unwrap_or_default();
        if source.read_only || size.not_in_use {
            return;
        }
        let bound = match claims::resolve(&self.tools.rest, &ask.pod, &named).await {
            Ok(bound) => bound,
            Err(e) => {
                tracing::debug!(volume = ask.name(), "a claim can't be looked at: {e}");
                return;
            }
        };
        if let Err(e) = self.expand(ask, &bound, source, mounted, size.grown).await {
            let name = ask.name();
            let message = format!("NodeExpandVolume.NodeExpandVolume failed for volume {name:?} : {e}");
            self.tools.warn(&ask.pod, "VolumeResizeFailed", message);
        }
    }

    async fn expand(
        &self,
        ask: &Ask,
        bound: &Bound,
        source: &Source,
        mounted: &Mounted,
        have: i64,
    ) -> Result<(), String> {
        let Decision::Grow { to, update, recover } = decide(bound, have) else {
            return Ok(());
        };
        let name = ask.name();
        if source.read_only {
            let message =
                format!("MountVolume.NodeExpandVolume failed for volume {name:?} requested read-only file system");
            self.tell(
                ask,
                &bound.claim,
                EventType::Warning,
                "FileSystemResizeFailed",
                &message,
            );
            return Ok(());
        }
        let mut claim = bound.claim.clone();
        if recover && update {
            let progress = json!({"allocatedResourceStatuses": {STORAGE: "NodeResizeInProgress"}});
            claim = self.patch(&claim, progress, true).await?;
        }
        match self.call(ask, source, mounted, &to).await {
            Ok(()) => {}
            Err(refusal) => return self.refused(ask, &claim, &to, (update, recover), refusal).await,
        }
        let grown = quantity::value(&to);
        self.sizes.0.lock().insert(
            name.to_owned(),
            Size {
                grown,
                ..Size::default()
            },
        );
        let message = format!(
            "MountVolume.NodeExpandVolume succeeded for volume {name:?} {}",
            self.node
        );
        self.tell(ask, &claim, EventType::Normal, "FileSystemResizeSuccessful", &message);
        let status = claim.status.as_ref();
        let told = quantity::value_of(status.and_then(|s| s.capacity.as_ref()), STORAGE);
        if !update || (!recover && told >= grown) {
            return Ok(());
        }
        let done = self.patch(&claim, finished(&claim, &to), true).await;
        done.map(drop)
            .map_err(|e| format!("mountVolume.NodeExpandVolume update pvc status failed: {e}"))
    }

    async fn call(&self, ask: &Ask, source: &Source, mounted: &Mounted, to: &Quantity) -> Result<(), Refusal> {
        let other = |message: String| Refusal::Other { message, certain: true };
        let driver = self.drivers.wanted(&source.driver, ask.uid()).map_err(other)?;
        let able = super::capabilities(&driver).await.map_err(|e| Refusal::Other {
            message: format!(
                "Expander.NodeExpand failed to check if node supports expansion : {}",
                crate::rpc_text(&e)
            ),
            certain: ended(&e),
        })?;
        if !super::source::can(&able, super::Capability::ExpandVolume) {
            let name = &source.driver;
            return Err(Refusal::Unsupported(format!(
                "NodeExpand is not supported by the CSI driver {name}"
            )));
        }
        let secrets = self
            .secrets(source.expand_secret.as_ref(), "NodeExpandSecretRef")
            .await
            .map_err(other)?;
        let layout = &self.tools.layout;
        let (path, staged) = match source.block {
            true => (
                paths::block_published(layout, ask.name(), ask.uid()),
                paths::block_staged(layout, ask.name()),
            ),
            false => (
                mounted.path.clone().unwrap_or_default(),
                paths::staged(&paths::device(layout, &source.driver, &source.handle)),
            ),
        };
        let request = csi::NodeExpandVolumeRequest {
            volume_id: source.handle.clone(),
            volume_path: self.told(&source.driver, &path),
            staging_target_path: self.told(&source.driver, &staged),
            capacity_range: Some(csi::CapacityRange {
                required_bytes: quantity::value(to),
                ..Default::default()
            }),
            volume_capability: Some(source.capability(&able, None)),
            secrets,
        };
        let Err(e) = in_time(driver.node().node_expand_volume(request)).await else {
            return Ok(());
        };
        let text = crate::rpc_text(&e);
        Err(match e.code() {
            Code::FailedPrecondition => {
                Refusal::InUse(format!("Expander.NodeExpand failed to expand the volume : {text}"))
            }
            Code::InvalidArgument | Code::OutOfRange | Code::NotFound => {
                Refusal::Infeasible(format!("Expander.NodeExpand failed to expand the volume {text}"))
            }
            _ => Refusal::Other {
                message: format!("Expander.NodeExpand failed to expand the volume : {text}"),
                certain: ended(&e),
            },
        })
    }

    /// What a refusal means: for the claim, and for whether the volume may be used as it is.
    async fn refused(
        &self,
        ask: &Ask,
        claim: &PersistentVolumeClaim,
        to: &Quantity,
        (update, recover): (bool, bool),
        refusal: Refusal,
    ) -> Result<(), String> {
        if matches!(refusal, Refusal::Unsupported(_)) && (!recover || !update) {
            return Ok(());
        }
        let before = self.sizes.0.lock().get(ask.name()).copied().unwrap_or_default();
        if recover && refusal.certain() {
            // Its owner asks for another size by now: the controller may start over with that.
            let asked = claim
                .spec
                .as_ref()
                .and_then(|s| stored(s.resources.as_ref()?.requests.as_ref()));
            let changed = before.failed && asked.is_some_and(|a| !quantity::same(&a, to));
            let never = changed || matches!(refusal, Refusal::Infeasible(_));
            let patch = failed(claim, refusal.message(), never, self.tools.host.now());
            if let Err(e) = self.patch(claim, patch, false).await {
                tracing::warn!(
                    volume = ask.name(),
                    "a claim can't be told that it could not be grown: {e}"
                );
            }
        }
        let not_in_use = matches!(refusal, Refusal::InUse(_));
        let size = Size {
            not_in_use,
            failed: before.failed || refusal.certain(),
            ..before
        };
        self.sizes.0.lock().insert(ask.name().to_owned(), size);
        if not_in_use {
            tracing::info!(
                volume = ask.name(),
                "a volume isn't grown while it is in use: {}",
                refusal.message()
            );
            return Ok(());
        }
        Err(refusal.message().to_owned())
    }

    fn tell(&self, ask: &Ask, claim: &PersistentVolumeClaim, kind: EventType, reason: &str, message: &str) {
        for object in [
            events::reference(&Pod::RESOURCE, &ask.pod.metadata),
            events::reference(&PersistentVolumeClaim::RESOURCE, &claim.metadata),
        ] {
            self.tools.recorder.event_for(&object, kind, reason, message.to_owned());
        }
    }

    /// Changes a claim's status; `same` only if nobody has changed it meanwhile.
    async fn patch(
        &self,
        claim: &PersistentVolumeClaim,
        status: Value,
        same: bool,
    ) -> Result<PersistentVolumeClaim, String> {
        let meta = &claim.metadata;
        let (ns, name) = (
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        );
        let mut body = json!({ "status": status });
        if same {
            body["metadata"] = json!({"resourceVersion": meta.resource_version});
        }
        Objects::<PersistentVolumeClaim>::new(&self.tools.rest)
            .patch_status(ns, name, Patch::Strategic(&body))
            .await
            .map_err(|e| format!("patchPVCStatus failed to patch PVC {name:?}: {}", crate::error_text(&e)))
    }
}

/// The status of a claim that has got its size: what was said of the growing goes.
fn finished(claim: &PersistentVolumeClaim, to: &Quantity) -> Value {
    const OURS: [&str; 4] = [
        "FileSystemResizePending",
        "Resizing",
        "ControllerResizeError",
        "NodeResizeError",
    ];
    let conditions = claim.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let gone: Vec<Value> = conditions
        .filter(|c| OURS.contains(&c.type_.as_str()))
        .map(|c| json!({"$patch": "delete", "type": c.type_}))
        .collect();
    let mut status = json!({"capacity": {STORAGE: to}, "allocatedResourceStatuses": {STORAGE: null}});
    if !gone.is_empty() {
        status["conditions"] = gone.into();
    }
    status
}

fn failed(claim: &PersistentVolumeClaim, why: &str, never: bool, now: jiff::Timestamp) -> Value {
    const ERROR: &str = "NodeResizeError";
    let mut status = json!({});
    let conditions = claim.status.iter().flat_map(|s| s.conditions.iter().flatten());
    if !conditions.clone().any(|c| c.type_ == ERROR && c.status == "True") {
        status["conditions"] = json!([{"type": ERROR, "status": "True",
            "lastTransitionTime": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "message": format!("failed to expand pvc with {why}")}]);
    }
    if never {
        status["allocatedResourceStatuses"] = json!({STORAGE: "NodeResizeInfeasible"});
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(status: Value, modes: &[&str], size: &str) -> Bound {
        let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": modes}, "status": status});
        let volume = json!({"metadata": {"name": "pv"}, "spec": {"capacity": {STORAGE: size}}});
        Bound {
            claim: serde_json::from_value(claim).unwrap(),
            volume: serde_json::from_value(volume).unwrap(),
            read_only: false,
        }
    }

    fn grow(to: &str, update: bool, recover: bool) -> Decision {
        Decision::Grow {
            to: Quantity(to.into()),
            update,
            recover,
        }
    }

    #[test]
    fn when_a_volume_is_grown() {
        let once = ["ReadWriteOnce"];
        let gi = 1 << 30;
        let old = json!({"capacity": {STORAGE: "1Gi"}});
        assert_eq!(decide(&bound(old.clone(), &once, "1Gi"), gi), Decision::Leave);
        assert_eq!(decide(&bound(old, &once, "2Gi"), gi), grow("2Gi", true, false));
        let phase = |phase: &str| {
            json!({"capacity": {STORAGE: "1Gi"}, "allocatedResources": {STORAGE: "2Gi"},
                "allocatedResourceStatuses": {STORAGE: phase}})
        };
        assert_eq!(
            decide(&bound(phase("NodeResizePending"), &once, "2Gi"), gi),
            grow("2Gi", true, true)
        );
        assert_eq!(
            decide(&bound(phase("NodeResizeInfeasible"), &once, "2Gi"), gi),
            Decision::Leave
        );
        assert_eq!(
            decide(&bound(phase("ControllerResizeInProgress"), &once, "2Gi"), gi),
            Decision::Leave
        );
        let elsewhere = json!({"capacity": {STORAGE: "2Gi"}, "allocatedResources": {STORAGE: "2Gi"}});
        assert_eq!(decide(&bound(elsewhere.clone(), &once, "2Gi"), gi), Decision::Leave);
        assert_eq!(
            decide(&bound(elsewhere, &["ReadWriteMany"], "2Gi"), gi),
            grow("2Gi", false, true)
        );
    }

    #[test]
    fn what_a_claim_is_told() {
        let conditions =
            json!({"conditions": [{"type": "Resizing", "status": "True"}, {"type": "Other", "status": "True"}]});
        let claim = bound(conditions, &[], "2Gi").claim;
        assert_eq!(
            finished(&claim, &Quantity("2Gi".into())),
            json!({"capacity": {STORAGE: "2Gi"}, "allocatedResourceStatuses": {STORAGE: null},
                "conditions": [{"$patch": "delete", "type": "Resizing"}]})
        );
        let told = failed(&claim, "x", true, jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(told["conditions"][0]["message"], "failed to expand pvc with x");
        assert_eq!(told["allocatedResourceStatuses"][STORAGE], "NodeResizeInfeasible");
    }
}
