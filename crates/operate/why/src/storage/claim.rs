//! A claim without a volume.

use crate::finding::{Finding, Report};
use crate::object::Fields;
use crate::picture::{Lookup, Need, Picture, selector, selects};
use crate::pod::quantity;
use serde_json::Value;

pub fn diagnose(claim: &Value, picture: &Picture, report: &mut Report) {
    if claim.text("/status/phase") == "Bound" {
        return report.add_all(growing(claim, picture));
    }
    if waits_for_pod(claim, picture) {
        let users = picture.all("Pod", claim.namespace()).filter(|p| uses(p, claim)).count();
        if users == 0 {
            return report.notes.push(
                "its class binds when a pod uses it (WaitForFirstConsumer), and no pod does yet: that is as it should be".into(),
            );
        }
    }
    report.add_all(unbound(claim, picture));
}

fn uses(pod: &Value, claim: &Value) -> bool {
    let names = pod.list("/spec/volumes").iter().map(|v| crate::pod::claim_of(pod, v));
    names.into_iter().any(|n| n == claim.name())
}

fn class<'a>(claim: &Value, picture: &'a Picture) -> Option<&'a Value> {
    let name = claim.text("/spec/storageClassName");
    picture.find("StorageClass", "", name).found()
}

fn waits_for_pod(claim: &Value, picture: &Picture) -> bool {
    claim.text("/spec/volumeName").is_empty()
        && class(claim, picture).is_some_and(|c| c.text("/volumeBindingMode") == "WaitForFirstConsumer")
        && picture.event(claim, &["ProvisioningFailed"]).is_none()
}

/// Why a claim has no volume; `None` for one that has, or whose reason isn't its own.
pub fn unbound(claim: &Value, picture: &Picture) -> Option<Finding> {
    let shown = format!("pvc/{}", claim.name());
    match claim.text("/status/phase") {
        "Bound" => return None,
        "Lost" => {
            let volume = claim.text("/spec/volumeName");
            return Some(
                Finding::certain("claim-lost", shown, format!("its volume {volume} is gone, and with it its data"))
                    .mended_by("Restore the PersistentVolume object if the storage behind it still exists; else make the claim anew."),
            );
        }
        _ => {}
    }
    let volume = claim.text("/spec/volumeName");
    if !volume.is_empty() {
        return named(claim, volume, picture);
    }
    let name = claim.text("/spec/storageClassName");
    if !claim.has("/spec/storageClassName") {
        let is_default =
            |c: &Value| c.text("/metadata/annotations/storageclass.kubernetes.io~1is-default-class") == "true";
        if picture.knows("StorageClass", "") && !picture.all("StorageClass", "").any(is_default) {
            return Some(
                Finding::certain("no-default-class", shown, "it names no storage class, and the cluster has no default one")
                    .shown_by(told(claim, picture))
                    .mended_by("Name a class (spec.storageClassName), or mark one as default: kubectl annotate sc NAME storageclass.kubernetes.io/is-default-class=true"),
            );
        }
    }
    match picture.find("StorageClass", "", name) {
        Lookup::Missing if !name.is_empty() => {
            return Some(static_fit(claim, picture).unwrap_or_else(|| {
                Finding::certain("class-missing", shown, format!("its storage class {name} doesn't exist"))
                    .shown_by(told(claim, picture))
                    .mended_by("Correct spec.storageClassName (kubectl get storageclass lists what there is); a claim's class can't be changed, so make it anew.")
            }));
        }
        Lookup::Found(class) if class.text("/provisioner") != "kubernetes.io/no-provisioner" => {
            return provisioning(claim, class, picture);
        }
        _ => {}
    }
    static_fit(claim, picture)
}

fn told<'a>(claim: &Value, picture: &'a Picture) -> &'a str {
    let event = picture.event(
        claim,
        &[
            "ProvisioningFailed",
            "FailedBinding",
            "ExternalProvisioning",
            "WaitForPodScheduled",
        ],
    );
    event.map_or("", |e| e.text("/message"))
}

/// A class with a provisioner: what it said.
fn provisioning(claim: &Value, class: &Value, picture: &Picture) -> Option<Finding> {
    let shown = format!("pvc/{}", claim.name());
    let provisioner = class.text("/provisioner");
    if let Some(event) = picture.event(claim, &["ProvisioningFailed"]) {
        let message = event.text("/message");
        let words = message.to_lowercase();
        let has = |any: &[&str]| any.iter().any(|w| words.contains(w));
        let (cause, says, fix) = if has(&[
            "resourceexhausted",
            "not enough",
            "no space",
            "insufficient",
            "out of capacity",
        ]) {
            (
                "storage-full",
                "there is no room for the volume it claims",
                "Free storage, add a disk or node, or claim less.",
            )
        } else if has(&["quota"]) {
            (
                "storage-quota",
                "the storage's quota is used up",
                "Raise the quota, or delete volumes.",
            )
        } else if has(&["permissiondenied", "unauthenticated", "forbidden", "access denied"]) {
            (
                "storage-credentials",
                "the storage refuses the driver's credentials",
                "Check the secret that the class names, and the rights it gives.",
            )
        } else if has(&["parameter", "invalidargument", "invalid argument"]) {
            (
                "class-parameters",
                "the driver doesn't understand the class's parameters or the claim",
                "Correct the class (make it anew: a class can't be changed).",
            )
        } else {
            (
                "provisioning-failed",
                "its driver can't make the volume",
                "The driver's words are above; its controller's log tells more.",
            )
        };
        return Some(Finding::certain(cause, shown, says).shown_by(message).mended_by(fix));
    }
    let driver = picture.find("CSIDriver", "", provisioner);
    if driver.is_missing() {
        return Some(
            Finding::likely(
                "provisioner-missing",
                shown,
                format!("nobody makes volumes of its class: the driver {provisioner} isn't installed"),
            )
            .shown_by(told(claim, picture))
            .mended_by(format!("Install the driver {provisioner}, or use another class.")),
        );
    }
    let waits = class.text("/volumeBindingMode") == "WaitForFirstConsumer";
    let chosen = claim.has("/metadata/annotations/volume.kubernetes.io~1selected-node");
    if waits && !chosen {
        return None;
    }
    let age = picture.since(claim.text("/metadata/creationTimestamp"));
    age.filter(|a| a.as_secs() > 60).map(|_| {
        Finding::likely(
            "provisioner-silent",
            shown,
            format!("the driver {provisioner} was asked for the volume, and has not answered"),
        )
        .shown_by(told(claim, picture))
        .mended_by("See the driver's controller: it has to run, and its log tells what it waits for.")
    })
}

/// It names its volume.
fn named(claim: &Value, volume: &str, picture: &Picture) -> Option<Finding> {
    let shown = format!("pvc/{}", claim.name());
    match picture.find("PersistentVolume", "", volume) {
        Lookup::Missing => Some(
            Finding::certain(
                "volume-missing",
                shown,
                format!("it names the volume {volume}, which doesn't exist"),
            )
            .mended_by("Correct spec.volumeName, or make the PersistentVolume."),
        ),
        Lookup::Found(object) => {
            let why = unfit(claim, object)?;
            Some(
                Finding::certain(
                    "volume-unfit",
                    shown,
                    format!("it names the volume {volume}, which doesn't fit: {why}"),
                )
                .shown_by(told(claim, picture))
                .mended_by("Make claim and volume agree in class, size, access modes and volume mode."),
            )
        }
        Lookup::Unknown => None,
    }
}

/// Volumes that were made beforehand: why none of them is the claim's.
fn static_fit(claim: &Value, picture: &Picture) -> Option<Finding> {
    if !picture.knows("PersistentVolume", "") {
        return None;
    }
    let class = claim.text("/spec/storageClassName");
    let same = |v: &&Value| v.text("/spec/storageClassName") == class;
    let volumes: Vec<&Value> = picture.all("PersistentVolume", "").filter(same).collect();
    if volumes.is_empty() && !class.is_empty() && picture.find("StorageClass", "", class).is_missing() {
        return None;
    }
    if volumes.iter().any(|v| unfit(claim, v).is_none()) {
        return None;
    }
    let each = volumes
        .iter()
        .take(10)
        .filter_map(|v| Some(format!("volume {}: {}", v.name(), unfit(claim, v)?)));
    Some(
        Finding::certain(
            "no-volume-matches",
            format!("pvc/{}", claim.name()),
            "no volume there is fits it, and its class makes none",
        )
        .shown_by(told(claim, picture))
        .shown_by_all(each)
        .mended_by("Make a PersistentVolume of its class, size and access modes, or use a class with a provisioner."),
    )
}

/// Why a volume isn't for a claim.
fn unfit(claim: &Value, volume: &Value) -> Option<String> {
    let class = |o: &Value| o.text("/spec/storageClassName").to_string();
    let holder = volume.text("/spec/claimRef/name");
    let ours = holder == claim.name() && volume.text("/spec/claimRef/namespace") == claim.namespace();
    if !holder.is_empty() && !ours {
        return Some(format!(
            "it belongs to the claim {}/{holder}",
            volume.text("/spec/claimRef/namespace")
        ));
    }
    let uid = volume.text("/spec/claimRef/uid");
    if ours && !uid.is_empty() && !claim.uid().is_empty() && uid != claim.uid() {
        return Some(
            "it belonged to an earlier claim of this name (Released): remove spec.claimRef.uid to give it away again"
                .into(),
        );
    }
    if class(claim) != class(volume) {
        return Some(format!("its class is {:?}, not {:?}", class(volume), class(claim)));
    }
    let (wants, has) = (
        claim.text("/spec/resources/requests/storage"),
        volume.text("/spec/capacity/storage"),
    );
    if quantity(wants) > quantity(has) {
        return Some(format!("it has {has}, {wants} are wanted"));
    }
    let offered = volume.list("/spec/accessModes");
    if let Some(mode) = claim.list("/spec/accessModes").iter().find(|m| !offered.contains(m)) {
        return Some(format!("it can't be accessed {}", mode.as_str().unwrap_or_default()));
    }
    let mode = |o: &Value| match o.text("/spec/volumeMode") {
        "" => "Filesystem".to_string(),
        mode => mode.to_string(),
    };
    if mode(claim) != mode(volume) {
        return Some(format!("it is a {}, not a {}", mode(volume), mode(claim)));
    }
    if let Some(wanted) = selector(claim, "/spec/selector")
        && !selects(&wanted, volume)
    {
        return Some("the claim's selector doesn't select it".into());
    }
    None
}

/// A bound claim that is to grow.
fn growing(claim: &Value, picture: &Picture) -> Option<Finding> {
    let (wants, has) = (
        claim.text("/spec/resources/requests/storage"),
        claim.text("/status/capacity/storage"),
    );
    if quantity(wants) <= quantity(has) {
        return None;
    }
    let shown = format!("pvc/{}", claim.name());
    let failed = picture.event(claim, &["VolumeResizeFailed", "FileSystemResizeFailed"]);
    if let Some(event) = failed {
        return Some(
            Finding::certain(
                "resize-failed",
                shown,
                format!("it is to grow from {has} to {wants}, which fails"),
            )
            .shown_by(event.text("/message"))
            .mended_by("The driver's words are above."),
        );
    }
    if claim.condition_is("FileSystemResizePending", "True").is_some() {
        return Some(
            Finding::certain(
                "resize-waits-for-pod",
                shown,
                "its volume has grown; its file system does when a pod mounts it",
            )
            .mended_by("Start a pod that uses it, or start its pod anew."),
        );
    }
    let class = class(claim, picture)?;
    (!class.flag("/allowVolumeExpansion")).then(|| {
        Finding::certain(
            "resize-not-allowed",
            shown,
            format!(
                "it is to grow to {wants}, but its class {} doesn't allow that",
                class.name()
            ),
        )
        .mended_by("Set allowVolumeExpansion on the class, if its driver can do it.")
    })
}

pub fn needs(claim: &Value) -> Vec<Need> {
    vec![
        Need::All("Event", claim.namespace().into()),
        Need::All("StorageClass", String::new()),
        Need::All("PersistentVolume", String::new()),
        Need::All("CSIDriver", String::new()),
        Need::All("Pod", claim.namespace().into()),
    ]
}
