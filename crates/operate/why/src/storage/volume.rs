//! A PersistentVolume that nobody can use, or that stays.

use crate::finding::{Finding, Report};
use crate::object::Fields;
use crate::picture::{Need, Picture};
use serde_json::Value;

pub fn diagnose(volume: &Value, picture: &Picture, report: &mut Report) {
    let claim = format!(
        "{}/{}",
        volume.text("/spec/claimRef/namespace"),
        volume.text("/spec/claimRef/name")
    );
    let policy = volume.text("/spec/persistentVolumeReclaimPolicy");
    match volume.text("/status/phase") {
        "Released" if policy == "Retain" => report.add(
            Finding::certain("volume-released", volume.shown(), format!("its claim {claim} is gone, and it is kept (Retain) with its data: no other claim gets it"))
                .mended_by("To give it away again: kubectl patch pv NAME --type=json -p '[{\"op\":\"remove\",\"path\":\"/spec/claimRef\"}]'. To be rid of it: delete it and the storage behind it."),
        ),
        "Released" | "Failed" => {
            let event = picture.event(volume, &["VolumeFailedDelete", "VolumeDelete"]);
            let message = event.map_or(volume.text("/status/message"), |e| e.text("/message"));
            if volume.text("/status/phase") == "Failed" || !message.is_empty() {
                report.add(
                    Finding::certain("volume-not-deleted", volume.shown(), format!("its claim {claim} is gone, and its driver can't delete it"))
                        .shown_by(message)
                        .mended_by("The driver's words are above: its controller has to run, and the volume may not be in use."),
                );
            }
        }
        _ => {}
    }
}

pub fn needs(_: &Value) -> Vec<Need> {
    vec![Need::All("Event", "default".into())]
}
