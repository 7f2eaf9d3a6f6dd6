//! When an object is applied again, and when not yet.

use keelson_addons::drift::{Applied, Need, need, to_send};
use keelson_addons::inventory::ObjectId;
use keelson_addons::live::Live;
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

const SAID: [u8; 16] = [1; 16];

fn live(revision: &str, value: u8) -> Live {
    Live::of(&json!({"metadata": {"name": "a", "resourceVersion": revision}, "data": {"v": value}}))
}

#[test]
fn what_is_as_it_was_left_needs_nothing_and_contested_fields_less_and_less() {
    let (first, at) = (live("5", 1), Instant::now());
    let mut applied = Applied::after(None, SAID, None, &first, at);
    assert_eq!((applied.revision, applied.taken_back), (5, 0));
    let of = |applied: &Applied, live: Option<Option<&Live>>, after: u64| {
        need(Some(applied), &SAID, live, at + Duration::from_secs(after))
    };
    assert_eq!(need(None, &SAID, Some(None), at), Need::Apply);
    assert_eq!(
        need(Some(&applied), &[2; 16], Some(Some(&first)), at),
        Need::Apply,
        "the file says another thing"
    );
    assert_eq!(of(&applied, Some(Some(&first)), 0), Need::Nothing);
    assert_eq!(of(&applied, None, 0), Need::Nothing, "nobody knows");
    assert_eq!(of(&applied, Some(None), 0), Need::Apply, "it is gone");
    assert_eq!(
        of(&applied, Some(Some(&live("4", 2))), 0),
        Need::Nothing,
        "older than what was applied"
    );
    assert_eq!(of(&applied, Some(Some(&live("6", 2))), 0), Need::Apply);
    applied.taken_back = 3;
    let held = Need::Hold(Duration::from_secs(8));
    assert_eq!(of(&applied, Some(Some(&live("6", 2))), 0), held);
    assert_eq!(of(&applied, Some(Some(&live("6", 2))), 8), Need::Apply);
    applied.taken_back = 40;
    let held = Need::Hold(Duration::from_secs(300));
    assert_eq!(of(&applied, Some(Some(&live("6", 2))), 0), held);
}

#[test]
fn only_what_came_back_is_contested_and_quiet_ends_it() {
    let at = Instant::now();
    let later = |seconds: u64| at + Duration::from_secs(seconds);
    let first = Applied::after(None, SAID, None, &live("5", 1), at);
    // Ours was changed and is as before.
    let second = Applied::after(Some(&first), SAID, Some(&live("6", 2)), &live("7", 1), later(1));
    assert_eq!(second.taken_back, 1);
    // Somebody else's field was changed: it stays, and nobody fights.
    let other = Applied::after(Some(&second), SAID, Some(&live("8", 3)), &live("8", 3), later(2));
    assert_eq!(other.taken_back, 1);
    // The file says another thing.
    let file = Applied::after(Some(&second), [2; 16], Some(&live("8", 3)), &live("9", 4), later(2));
    assert_eq!(file.taken_back, 1);
    let quiet = Applied::after(Some(&second), SAID, Some(&live("8", 2)), &live("9", 1), later(5000));
    assert_eq!(quiet.taken_back, 0);
}

#[test]
fn what_the_server_writes_is_not_sent() {
    let id = ObjectId {
        namespace: "n".into(),
        name: "a".into(),
        ..ObjectId::default()
    };
    let said = json!({"apiVersion": "v1", "kind": "ConfigMap", "status": {}, "data": {"a": "b"},
        "metadata": {"name": "a", "uid": "u", "resourceVersion": "1", "managedFields": [], "creationTimestamp": null, "labels": {"x": "y"}}});
    assert_eq!(
        to_send("web", &id, &said),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"},
            "metadata": {"name": "a", "namespace": "n", "labels": {"x": "y", "keelson.dev/addon": "web"}}})
    );
}
