use super::*;

const GOING: &str = r#","deletionTimestamp":"2026-01-01T00:00:00Z""#;

fn snapshot(meta: &str, spec: &str, status: &str) -> VolumeSnapshot {
    let text = format!(
        r#"{{"metadata":{{"name":"s","namespace":"ns","uid":"u"{meta}}},"spec":{{{spec}}}{}}}"#,
        match status {
            "" => String::new(),
            status => format!(r#","status":{{{status}}}"#),
        }
    );
    VolumeSnapshot::decode(text.as_bytes()).expect("a snapshot")
}

fn content(meta: &str, source: &str, uid: &str, policy: &str, status: &str) -> VolumeSnapshotContent {
    let text = format!(
        r#"{{"metadata":{{"name":"snapcontent-u","uid":"c","labels":{{"{MANAGED_BY}":"n1"}}{meta}}},"spec":{{"volumeSnapshotRef":{{"name":"s","namespace":"ns","uid":"{uid}"}},
            "deletionPolicy":"{policy}","driver":"d","source":{{{source}}}}},"status":{{{status}}}}}"#
    );
    VolumeSnapshotContent::decode(text.as_bytes()).expect("a content")
}

fn claim(meta: &str, phase: &str) -> PersistentVolumeClaim {
    let text = format!(
        r#"{{"metadata":{{"name":"data","namespace":"ns","uid":"pvc"{meta}}},"spec":{{"volumeName":"pv"}},"status":{{"phase":"{phase}"}}}}"#
    );
    PersistentVolumeClaim::decode(text.as_bytes()).expect("a claim")
}

fn volume(uid: &str) -> PersistentVolume {
    let text = format!(
        r#"{{"metadata":{{"name":"pv"}},"spec":{{"claimRef":{{"namespace":"ns","name":"data","uid":"{uid}"}},"volumeMode":"Filesystem",
            "csi":{{"driver":"d","volumeHandle":"h"}}}}}}"#
    );
    PersistentVolume::decode(text.as_bytes()).expect("a volume")
}

fn class(name: &str, driver: &str, default: bool, parameters: &str) -> Arc<VolumeSnapshotClass> {
    let text = format!(
        r#"{{"metadata":{{"name":"{name}","annotations":{{"{DEFAULT}":"{default}"}}}},"driver":"{driver}","deletionPolicy":"Delete",
            "parameters":{{{parameters}}}}}"#
    );
    Arc::new(VolumeSnapshotClass::decode(text.as_bytes()).expect("a class"))
}

/// What the next step is, the snapshot having what it has.
fn next(
    snapshot: &VolumeSnapshot,
    content: Option<&VolumeSnapshotContent>,
    claim: Option<&PersistentVolumeClaim>,
    volume: Option<&PersistentVolume>,
    classes: &[Arc<VolumeSnapshotClass>],
) -> Step {
    plan(&View {
        snapshot,
        content,
        claim,
        volume,
        classes,
        node: Some("n1"),
        restoring: false,
    })
}

fn reason(step: Step) -> (&'static str, String) {
    match step {
        Step::Refuse { reason, message, .. } => (reason, message),
        other => panic!("{other:?} is no refusal"),
    }
}

fn held() -> String {
    format!(r#","finalizers":["{AS_SOURCE}"]"#)
}

const OF_CLAIM: &str = r#""source":{"persistentVolumeClaimName":"data"}"#;

#[test]
fn a_snapshot_gets_its_class_its_claim_its_content_and_is_told_of_it() {
    let (bound, of) = (claim("", "Bound"), volume("pvc"));
    let classes = [
        class("other", "e", true, ""),
        class("plain", "d", false, ""),
        class("mine", "d", true, ""),
    ];
    let new = snapshot("", OF_CLAIM, "");
    assert_eq!(
        next(&new, None, Some(&bound), Some(&of), &classes),
        Step::Finalizers(vec![AS_SOURCE.into()])
    );
    let unclassed = snapshot(&held(), OF_CLAIM, "");
    assert_eq!(
        next(&unclassed, None, Some(&bound), Some(&of), &classes),
        Step::SetClass("mine".into())
    );
    let classed = format!(r#"{OF_CLAIM},"volumeSnapshotClassName":"mine""#);
    let classed = snapshot(&held(), &classed, "");
    assert_eq!(next(&classed, None, Some(&bound), Some(&of), &classes), Step::HoldClaim);
    let kept = claim(&format!(r#","finalizers":["{CLAIM}"]"#), "Bound");
    let Step::Create(made) = next(&classed, None, Some(&kept), Some(&of), &classes) else {
        panic!("no content")
    };
    assert_eq!(made.name(), "snapcontent-u");
    assert_eq!(made.spec.source.volume_handle.as_deref(), Some("h"));
    assert_eq!(made.spec.source_volume_mode.as_deref(), Some("Filesystem"));
    assert_eq!(
        made.metadata.labels.as_ref().map(|l| l[MANAGED_BY].as_str()),
        Some("n1")
    );
    assert!(made.is_of(&classed));
    let done = r#""snapshotHandle":"x","creationTime":1700000000500000000,"restoreSize":67108864,"readyToUse":true"#;
    let done = content("", r#""volumeHandle":"h""#, "u", "Delete", done);
    let both = format!(r#","finalizers":["{AS_SOURCE}","{BOUND}"]"#);
    let (class_of, failed) = (
        format!(r#"{OF_CLAIM},"volumeSnapshotClassName":"mine""#),
        r#""error":{"message":"once"},"readyToUse":false"#,
    );
    let protected = snapshot(&both, &class_of, failed);
    let Step::Tell(status) = next(&protected, Some(&done), Some(&kept), Some(&of), &classes) else {
        panic!("not told")
    };
    assert_eq!(
        status.bound_volume_snapshot_content_name.as_deref(),
        Some("snapcontent-u")
    );
    assert_eq!(status.restore_size, Some(Text("64Mi".into())));
    assert_eq!((status.ready_to_use, status.error.clone()), (Some(true), None));
    assert_eq!(
        status.creation_time.as_ref().map(|t| t.0.as_second()),
        Some(1_700_000_000)
    );
    let mut lost = content("", r#""volumeHandle":"h""#, "u", "Delete", r#""readyToUse":false"#);
    lost.metadata.labels = None;
    assert_eq!(
        next(&protected, Some(&lost), Some(&kept), Some(&of), &classes),
        Step::Label("n1".into()),
        "nobody would act on it"
    );
    let mut ready = protected;
    ready.status = Some(*status);
    assert_eq!(next(&ready, Some(&done), Some(&kept), Some(&of), &[]), Step::Nothing);
}

#[test]
fn what_cannot_be_made_is_said() {
    let (bound, of) = (claim("", "Bound"), volume("pvc"));
    let unclassed = snapshot(&held(), OF_CLAIM, "");
    let none = reason(next(&unclassed, None, Some(&bound), Some(&of), &[]));
    assert_eq!(none.0, "SetDefaultSnapshotClassFailed");
    assert!(none.1.ends_with("cannot find default snapshot class"), "{}", none.1);
    let two = [class("a", "d", true, ""), class("b", "d", true, "")];
    assert!(
        reason(next(&unclassed, None, Some(&bound), Some(&of), &two))
            .1
            .ends_with("2 default snapshot classes were found")
    );
    let pending = claim("", "Pending");
    let text = reason(next(&unclassed, None, Some(&pending), None, &two)).1;
    assert!(text.contains("not yet bound to a PV"), "{text}");
    let stolen = volume("somebody-elses");
    let text = reason(next(&unclassed, None, Some(&bound), Some(&stolen), &two)).1;
    assert!(text.contains("not bound or invalid"), "{text}");
    let named = |class: &str| {
        let spec = format!(r#"{OF_CLAIM},"volumeSnapshotClassName":"{class}""#);
        snapshot(&held(), &spec, "")
    };
    let missing = reason(next(&named("gone"), None, Some(&bound), Some(&of), &two));
    assert_eq!(missing.0, "GetSnapshotClassFailed");
    let other = [class("other", "e", false, "")];
    let text = reason(next(&named("other"), None, Some(&bound), Some(&of), &other)).1;
    assert!(
        text.contains("is of driver e"),
        "a handle means nothing to another driver: {text}"
    );
    let half = [class("half", "d", false, &format!(r#""{SECRET_NAME_OF_CLASS}":"x""#))];
    let kept = claim(&format!(r#","finalizers":["{CLAIM}"]"#), "Bound");
    let text = reason(next(&named("half"), None, Some(&kept), Some(&of), &half)).1;
    assert!(text.contains("Both must be specified"), "{text}");
}

#[test]
fn contents_that_are_somebody_elses_are_not_taken() {
    let made = snapshot(&held(), OF_CLAIM, "");
    let before = snapshot(&held(), r#""source":{"volumeSnapshotContentName":"snapcontent-u"}"#, "");
    let of = |s: &VolumeSnapshot, source: &str, uid: &str| {
        let content = content("", source, uid, "Retain", "");
        next(s, Some(&content), None, None, &[])
    };
    let (volume, handle) = (r#""volumeHandle":"h""#, r#""snapshotHandle":"h""#);
    assert_eq!(reason(of(&made, handle, "u")).0, "SnapshotContentMismatch");
    assert_eq!(reason(of(&made, volume, "other")).0, "SnapshotContentMisbound");
    assert_eq!(reason(of(&made, volume, "")).0, "SnapshotContentMisbound");
    assert_eq!(reason(of(&before, volume, "u")).0, "SnapshotContentMismatch");
    assert_eq!(reason(of(&before, handle, "other")).0, "SnapshotContentMisbound");
    assert_eq!(of(&before, handle, ""), Step::Bind);
    assert!(matches!(of(&before, handle, "u"), Step::Tell(_)));
    assert_eq!(reason(next(&before, None, None, None, &[])).0, "SnapshotContentMissing");
    // One that had a content isn't given another, of another moment, in its place.
    let lost = snapshot(
        &held(),
        OF_CLAIM,
        r#""boundVolumeSnapshotContentName":"snapcontent-u","readyToUse":false"#,
    );
    assert_eq!(reason(next(&lost, None, None, None, &[])).0, "SnapshotContentMissing");
}

#[test]
fn a_content_goes_first_or_stays() {
    let meta = format!(r#"{GOING},"finalizers":["{AS_SOURCE}","{BOUND}","other"]"#);
    let going = snapshot(&meta, OF_CLAIM, r#""boundVolumeSnapshotContentName":"snapcontent-u""#);
    let source = r#""volumeHandle":"h""#;
    let step = |meta: &str, uid: &str, policy: &str| {
        let content = content(meta, source, uid, policy, "");
        next(&going, Some(&content), None, None, &[])
    };
    let marked = format!(r#","annotations":{{"{BEING_DELETED}":"yes"}}"#);
    assert_eq!(step("", "u", "Delete"), Step::Mark);
    assert_eq!(step(&marked, "u", "Delete"), Step::DeleteContent);
    let gone = format!("{marked}{GOING}");
    let bound = Step::Finalizers(vec![BOUND.into(), "other".into()]);
    assert_eq!(step(&gone, "u", "Delete"), bound, "until the content has gone");
    let all = || Step::Finalizers(vec!["other".into()]);
    assert_eq!(step(&marked, "u", "Retain"), all());
    assert_eq!(step("", "other", "Delete"), all(), "another's content is not touched");
    assert_eq!(next(&going, None, None, None, &[]), all());
    let content = content("", source, "u", "Delete", "");
    let waits = plan(&View {
        snapshot: &going,
        content: Some(&content),
        claim: None,
        volume: None,
        classes: &[],
        node: None,
        restoring: true,
    });
    assert_eq!(waits, Step::Wait);
}
