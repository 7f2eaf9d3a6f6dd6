//! What goes when, of what is said no more.

use keelson_addons::addon::AddonStatus;
use keelson_addons::inventory::{Entry, stale};

fn entry(group: &str, kind: &str, name: &str) -> Entry {
    Entry {
        group: group.into(),
        kind: kind.into(),
        name: name.into(),
        ..Entry::default()
    }
}

#[test]
fn what_is_said_no_more_goes_in_the_order_opposite_to_that_in_which_it_came() {
    let applied = [
        entry("", "Namespace", "shop"),
        entry("apiextensions.k8s.io", "CustomResourceDefinition", "tabs.example.com"),
        entry("", "ConfigMap", "a"),
        entry("", "ConfigMap", "b"),
        entry("apps", "Deployment", "web"),
        entry("example.com", "Tab", "one"),
    ];
    let names = |said: &[&str]| -> Vec<String> {
        let stale = stale(&applied, |id| said.contains(&id.name.as_str()));
        stale.into_iter().map(|e| e.name.clone()).collect()
    };
    assert_eq!(names(&[]), ["one", "web", "b", "a", "tabs.example.com", "shop"]);
    assert_eq!(names(&["shop", "a", "web", "one"]), ["b", "tabs.example.com"]);
}

#[test]
fn of_many_objects_each_has_less_to_say() {
    let objects = (0..2000).map(|n| Entry {
        message: "ä".repeat(450),
        ..entry("apps", "Deployment", &format!("web-{n}"))
    });
    let mut status = AddonStatus {
        objects: objects.collect(),
        ..AddonStatus::default()
    };
    status.fit();
    let length = serde_json::to_vec(&status).map_or(usize::MAX, |json| json.len());
    assert!(length < 1 << 20, "{length}");
    let once = status.clone();
    status.fit();
    assert_eq!(status, once, "written once");
}
