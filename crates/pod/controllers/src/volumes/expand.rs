//! Says that somebody else enlarges a volume whose claim asks for more: no kind of volume left in Kubernetes is enlarged by a
//! controller of its own; CSI drivers bring theirs, and nodes do the rest.

use super::matching;
use crate::context::Context;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use keelson_api::Quantity;
use keelson_client::events::EventType::Normal;
use keelson_client::{ApiObject, Controller, Informer, ObjectKey, Outcome, Reconcile, Recorder};

pub fn start(context: &Context) {
    let claims = context.informer::<PersistentVolumeClaim>();
    let volumes = context.informer::<PersistentVolume>();
    let controller = Controller::new("persistentvolume-expander")
        .input(&claims)
        .input(&volumes);
    let queue = controller.queue();
    claims.on_change(move |change| {
        let claim = change.object();
        let grew = |old: &PersistentVolumeClaim| {
            matching::requested(claim) > matching::requested(old) || held(claim) > held(old)
        };
        if is_bound(claim) && change.old().is_none_or(|old| grew(old)) {
            queue.add(claim.key());
        }
    });
    let rest = context.rest("expand-controller");
    let recorder = context.recorder(&rest, "volume_expand");
    context.run(
        controller,
        Expander {
            claims,
            volumes,
            recorder,
        },
    );
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound")
}

/// What the claim has.
fn held(claim: &PersistentVolumeClaim) -> Quantity {
    matching::storage(claim.status.as_ref().and_then(|s| s.capacity.as_ref()))
}

struct Expander {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    recorder: Recorder,
}

#[async_trait]
impl Reconcile for Expander {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(claim) = self.claims.store().get_key(key).filter(|c| is_bound(c)) else {
            return Ok(Outcome::Done);
        };
        let name = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref());
        let Some(volume) = name.and_then(|n| self.volumes.store().get("", n)) else {
            return Ok(Outcome::Retry);
        };
        let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        anyhow::ensure!(
            reference.and_then(|r| r.uid.as_deref()) == Some(claim.uid()),
            "persistent volume {} is not bound to the claim",
            volume.name()
        );
        if matching::requested(&claim) > held(&claim) || super::has_annotation(&*volume, super::bond::BEFORE_RESIZE) {
            let text = "waiting for an external controller to expand this PVC";
            self.recorder.event(&*claim, Normal, "ExternalExpanding", text);
        }
        Ok(Outcome::Done)
    }
}
