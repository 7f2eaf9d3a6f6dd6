//! What helm has noted.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_addons::helm::chart::CONFIG_HASH;
use keelson_addons::helm::release::{Release, latest};

fn note(labels: &[(&str, &str)]) -> ObjectMeta {
    ObjectMeta {
        labels: Some(labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()),
        ..ObjectMeta::default()
    }
}

#[test]
fn the_newest_revision_counts() {
    let all = [
        note(&[("version", "2"), ("status", "superseded")]),
        note(&[("version", "10"), ("status", "failed"), (CONFIG_HASH, "AB")]),
        note(&[("version", "9"), ("status", "deployed")]),
        note(&[("version", "x"), ("status", "deployed")]),
        note(&[("owner", "helm")]),
    ];
    let found = latest(&all);
    assert_eq!(
        found,
        Release {
            revision: 10,
            status: "failed".into(),
            hash: "AB".into(),
            well: Some(9)
        }
    );
    assert_eq!(latest([]), Release::default());
}
