//! Writes what became of an add-on, when it differs from what is written; what is new and bad is an event, too.

use super::Applier;
use crate::addon::{APPLIED, Addon, AddonStatus, CONFLICT, READY};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use keelson_client::{ApiObject, EventType, Kind, ObjectKey, Patch, is_not_found};
use serde_json::json;

/// What fails once may just have come too early.
const TRIES: u32 = 4;

impl Applier {
    /// As it is written now; `None` if the add-on is gone meanwhile.
    pub(super) async fn write(&self, addon: &Addon, mut status: AddonStatus) -> anyhow::Result<Option<AddonStatus>> {
        status.fit();
        let before = addon.status.clone().unwrap_or_default();
        self.tell(addon, &before, &status);
        if before == status {
            return Ok(Some(status));
        }
        let body = json!({"metadata": {"uid": addon.uid()}, "status": status});
        match self.addons.patch_status("", addon.name(), Patch::Merge(&body)).await {
            Err(error) if is_not_found(&error) => Ok(None),
            written => Ok(written?.status),
        }
    }

    fn tell(&self, addon: &Addon, before: &AddonStatus, now: &AddonStatus) {
        let event = |kind, condition: &Condition| {
            self.recorder.event_for(
                &keelson_client::events::reference(&Addon::RESOURCE, addon.meta()),
                kind,
                &condition.reason,
                condition.message.clone(),
            );
        };
        let of = |status: &AddonStatus, kind: &str| status.conditions.iter().find(|c| c.type_ == kind).cloned();
        let changed = |kind: &str| {
            let (was, is) = (of(before, kind), of(now, kind));
            let same =
                |a: &Condition, b: &Condition| a.status == b.status && a.reason == b.reason && a.message == b.message;
            is.filter(|is| !was.is_some_and(|was| same(&was, is)))
        };
        if let Some(applied) = changed(APPLIED) {
            let tries = self.queue.failures(&ObjectKey::cluster(addon.name()));
            match (applied.status.as_str(), applied.reason.as_str()) {
                ("True", _) if before.hash != now.hash => event(EventType::Normal, &applied),
                ("True", _) | (_, "Removing" | "Pruning" | "Dependency") => {}
                (_, "Invalid" | "Unreadable" | "DependencyCircle" | "TooMuch") => event(EventType::Warning, &applied),
                _ if tries == TRIES => event(EventType::Warning, &applied),
                _ => {}
            }
        }
        for bad in [(READY, "Failed"), (CONFLICT, "FilesDiffer")] {
            if let Some(condition) = changed(bad.0).filter(|c| c.reason == bad.1) {
                event(EventType::Warning, &condition);
            }
        }
    }
}
