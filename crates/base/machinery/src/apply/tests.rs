use super::*;
use crate::canonical;
use crate::testing::pod_like;
use keelson_api::{ApiError, Reason, SchemaRef, Value, value};

struct World {
    schema: SchemaRef,
    live: Value,
    reset: Set,
}

impl World {
    fn new() -> World {
        World {
            schema: pod_like(),
            live: Value::Null,
            reset: Set::of_fields(&[&["status"]]),
        }
    }
    fn manager<'a>(&'a self, now: &'a str) -> FieldManager<'a> {
        FieldManager {
            schema: &self.schema,
            api_version: "v1",
            kind: "Pod",
            subresource: "",
            reset_fields: &self.reset,
            converter: None,
            now,
        }
    }
    fn finish(&mut self, mut v: Value) {
        canonical::canonicalize(&mut v, &self.schema).unwrap();
        v.set_at(&["metadata", "uid"], "u");
        self.live = v;
    }
    fn apply(&mut self, who: &str, config: Value, force: bool) -> Result<(), ApiError> {
        let mut config = config;
        config.set_at(&["apiVersion"], "v1");
        config.set_at(&["kind"], "Pod");
        let new = self
            .manager("2030-01-02T03:04:05Z")
            .apply(&self.live, &config, who, force)?;
        self.finish(new);
        Ok(())
    }
    fn update(&mut self, who: &str, change: impl Fn(&mut Value)) {
        let mut new = if self.live.is_null() {
            value!({"apiVersion": "v1", "kind": "Pod"})
        } else {
            self.live.clone()
        };
        change(&mut new);
        canonical::canonicalize(&mut new, &self.schema).unwrap();
        let new = self.manager("2031-01-02T03:04:05Z").update(&self.live, new, who);
        self.finish(new);
    }
    fn owned(&self, who: &str) -> Vec<String> {
        let entries = self.live.at(&["metadata", "managedFields"]).and_then(Value::as_array);
        let entry = entries
            .into_iter()
            .flatten()
            .find(|e| e.get("manager").and_then(Value::as_str) == Some(who));
        entry.map_or(Vec::new(), |e| {
            Set::from_value(e.get("fieldsV1").unwrap())
                .unwrap()
                .paths()
                .iter()
                .map(Path::to_string)
                .collect()
        })
    }
    fn containers(&self) -> &Value {
        self.live.at(&["spec", "containers"]).unwrap()
    }
}

#[test]
fn a_create_is_tracked() {
    let mut w = World::new();
    w.update("me", |v| {
        v.set_at(&["metadata", "labels", "a"], "b");
        v.set_at(
            &["spec"],
            value!({"replicas": 1, "containers": [{"name": "c", "command": ["x"]}]}),
        );
    });
    assert_eq!(
        w.owned("me"),
        [
            ".metadata.labels",
            ".metadata.labels.a",
            ".spec.replicas",
            ".spec.containers[name=\"c\"]",
            ".spec.containers[name=\"c\"].command",
            ".spec.containers[name=\"c\"].name",
        ]
    );
    let entry = &w.live.at(&["metadata", "managedFields"]).unwrap().as_array().unwrap()[0];
    assert_eq!(entry.get("operation").unwrap(), &Value::from("Update"));
    assert_eq!(entry.get("time").unwrap(), &Value::from("2031-01-02T03:04:05Z"));
}

#[test]
fn applying_merges_and_prunes_what_is_no_longer_applied() {
    let mut w = World::new();
    let both = value!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"containers": [{"name": "x", "image": "1"}, {"name": "y"}]}});
    w.apply("one", both, false).unwrap();
    assert_eq!(w.owned("one").len(), 7);
    w.apply("two", value!({"metadata": {"labels": {"a": "1"}}}), false)
        .unwrap();
    w.apply(
        "one",
        value!({"spec": {"containers": [{"name": "x", "image": "2"}]}}),
        false,
    )
    .unwrap();
    assert_eq!(w.containers(), &value!([{"name": "x", "image": "2"}]));
    // `a` is still applied by two; `b` by no one.
    assert_eq!(w.live.at(&["metadata", "labels"]), Some(&value!({"a": "1"})));
}

#[test]
fn conflicts_name_the_manager_and_force_takes_over() {
    let mut w = World::new();
    w.apply(
        "one",
        value!({"spec": {"replicas": 1, "containers": [{"name": "x", "image": "1"}]}}),
        false,
    )
    .unwrap();
    let mine = value!({"spec": {"replicas": 2}});
    let e = w.apply("two", mine.clone(), false).unwrap_err();
    assert_eq!((e.code, e.reason), (409, Reason::Conflict));
    assert_eq!(
        e.message,
        "Apply failed with 1 conflict: conflict with \"one\": .spec.replicas"
    );
    let cause = &e.details.unwrap().causes[0];
    assert_eq!(
        (cause.reason.as_str(), cause.message.as_str(), cause.field.as_str()),
        ("FieldManagerConflict", "conflict with \"one\"", ".spec.replicas")
    );
    w.apply("two", mine, true).unwrap();
    assert_eq!(w.owned("two"), [".spec.replicas"]);
    assert!(!w.owned("one").contains(&".spec.replicas".to_string()));
    // The same value is no conflict: it is shared.
    w.apply("three", value!({"spec": {"replicas": 2}}), false).unwrap();
    assert_eq!(w.owned("two"), w.owned("three"));
}

#[test]
fn several_conflicts_are_listed_by_manager() {
    let mut w = World::new();
    w.update("kubectl-edit", |v| {
        v.set_at(&["spec"], value!({"replicas": 1, "paused": true, "containers": []}))
    });
    let e = w
        .apply("two", value!({"spec": {"replicas": 2, "paused": false}}), false)
        .unwrap_err();
    assert_eq!(
        e.message,
        "Apply failed with 2 conflicts: conflicts with \"kubectl-edit\" using v1:\n- .spec.paused\n- .spec.replicas"
    );
}

#[test]
fn an_update_steals() {
    let mut w = World::new();
    w.apply(
        "one",
        value!({"spec": {"replicas": 1, "containers": [{"name": "x", "image": "1"}]}}),
        false,
    )
    .unwrap();
    w.update("two", |v| v.set_at(&["spec", "replicas"], 5));
    assert_eq!(w.owned("two"), [".spec.replicas"]);
    assert!(!w.owned("one").contains(&".spec.replicas".to_string()));
    w.update("two", |v| {
        v.set_at(&["spec", "containers"], Value::Array(vec![]));
    });
    assert!(w.owned("one").is_empty(), "{:?}", w.owned("one"));
}

#[test]
fn a_reapply_of_the_same_changes_nothing() {
    let mut w = World::new();
    let config = value!({"spec": {"replicas": 1}});
    w.apply("one", config.clone(), false).unwrap();
    let before = w.live.clone();
    let mut config = config;
    config.set_at(&["apiVersion"], "v1");
    config.set_at(&["kind"], "Pod");
    let again = w
        .manager("2040-01-01T00:00:00Z")
        .apply(&w.live, &config, "one", false)
        .unwrap();
    assert_eq!(again, before);
}

#[test]
fn what_others_left_unowned_stays_when_the_same_is_applied_again() {
    let mut w = World::new();
    let config = |image: &str| value!({"spec": {"containers": [{"name": "x", "image": image}]}});
    w.apply("one", config("1"), false).unwrap();
    // As a default would: owned by nobody.
    w.live.set_at(
        &["spec", "containers"],
        value!([{"name": "x", "image": "1", "command": ["c"]}]),
    );
    w.apply("one", config("2"), false).unwrap();
    assert_eq!(w.containers(), &value!([{"name": "x", "image": "2", "command": ["c"]}]));
    // One that is left out goes, and what is in it.
    w.apply("one", value!({"spec": {"replicas": 1}}), false).unwrap();
    assert_eq!(w.containers(), &Value::Null);
}

#[test]
fn untracked_objects_get_a_manager_at_the_first_apply() {
    let mut w = World::new();
    w.live = value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "uid": "u"}, "spec": {"replicas": 3, "containers": null, "strategy": {}}, "status": {}});
    w.update("quiet", |v| v.set_at(&["spec", "paused"], true));
    assert!(w.live.at(&["metadata", "managedFields"]).is_none());
    let e = w.apply("one", value!({"spec": {"replicas": 4}}), false).unwrap_err();
    assert_eq!(
        e.message,
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .spec.replicas"
    );
}

#[test]
fn reset_fields_are_not_owned() {
    let mut w = World::new();
    w.apply(
        "one",
        value!({"spec": {"replicas": 1}, "status": {"phase": "Running"}}),
        false,
    )
    .unwrap();
    assert_eq!(w.owned("one"), [".spec.replicas"]);
}

#[test]
fn bad_configurations_are_refused() {
    let mut w = World::new();
    let e = w
        .apply(
            "one",
            value!({"metadata": {"name": "n", "namespace": "ns"}, "spec": {"zap": 1}}),
            false,
        )
        .unwrap_err();
    assert_eq!(
        e.message,
        "failed to create typed patch object (ns/n; /v1, Kind=Pod): .spec.zap: field not declared in schema"
    );
    let twice = value!({"spec": {"containers": [{"name": "a"}, {"name": "a"}]}});
    let e = w.apply("one", twice, false).unwrap_err();
    assert!(
        e.message
            .ends_with(".spec.containers: duplicate entries for key [name=\"a\"]"),
        "{}",
        e.message
    );
    let e = w
        .apply("one", value!({"metadata": {"managedFields": []}}), false)
        .unwrap_err();
    assert_eq!(
        (e.code, e.message.as_str()),
        (400, "metadata.managedFields must be nil")
    );
}

#[test]
fn list_keys_have_defaults() {
    let mut w = World::new();
    let ports = value!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80}]}]}});
    w.apply("one", ports, false).unwrap();
    assert!(
        w.owned("one")
            .contains(&".spec.containers[name=\"a\"].ports[containerPort=80,protocol=\"TCP\"]".to_string())
    );
}

#[test]
fn kubectl_upgrades_from_its_annotation() {
    let mut w = World::new();
    let last = r#"{"apiVersion":"v1","kind":"Pod","metadata":{},"spec":{"replicas":1}}"#;
    w.update("kubectl-client-side-apply", |v| {
        v.set_at(
            &[
                "metadata",
                "annotations",
                "kubectl.kubernetes.io/last-applied-configuration",
            ],
            last,
        );
        v.set_at(&["spec"], value!({"replicas": 1, "containers": []}));
    });
    w.apply("kubectl", value!({"metadata": {}, "spec": {"replicas": 2}}), false)
        .unwrap();
    assert_eq!(w.live.at(&["spec", "replicas"]), Some(&Value::Int(2)));
    let annotation = w.live.at(&[
        "metadata",
        "annotations",
        "kubectl.kubernetes.io/last-applied-configuration",
    ]);
    assert_eq!(
        annotation.and_then(Value::as_str),
        Some("{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{},\"spec\":{\"replicas\":2}}\n")
    );
}

#[test]
fn old_updaters_are_merged() {
    let mut w = World::new();
    w.update("m0", |v| v.set_at(&["metadata", "labels", "l0"], "x"));
    for i in 1..13 {
        w.update(&format!("m{i}"), |v| {
            v.set_at(&["metadata", "labels", &format!("l{i}")], "x")
        });
    }
    let entries = w.live.at(&["metadata", "managedFields"]).unwrap().as_array().unwrap();
    assert_eq!(entries.len(), 10);
    assert_eq!(w.owned("ancient-changes").len(), 5);
}

#[test]
fn atomic_maps_are_owned_whole() {
    let mut w = World::new();
    w.apply("one", value!({"spec": {"nodeSelector": {"a": "1", "b": "2"}}}), false)
        .unwrap();
    assert_eq!(w.owned("one"), [".spec.nodeSelector"]);
    w.apply("one", value!({"spec": {"nodeSelector": {"a": "1"}}}), false)
        .unwrap();
    assert_eq!(w.live.at(&["spec", "nodeSelector"]), Some(&value!({"a": "1"})));
}

#[test]
fn only_times_that_changed_are_taken_back() {
    let entry = |t: &str| value!({"manager": "m", "operation": "Update", "time": t});
    let old = value!({"metadata": {"managedFields": [entry("1")]}, "spec": 1});
    let mut new = value!({"metadata": {"managedFields": [entry("2")]}, "spec": 1});
    ignore_timestamps(&old, &mut new);
    assert_eq!(new, old);
    let mut new = value!({"metadata": {"managedFields": [entry("2")]}, "spec": 2});
    ignore_timestamps(&old, &mut new);
    assert_ne!(
        new.at(&["metadata", "managedFields"]),
        old.at(&["metadata", "managedFields"])
    );
}

#[test]
fn replicas_travel_through_scale() {
    let paths = |v: &str| (v == "v1").then(|| Some(Path::fields(&["spec", "replicas"])));
    let mut w = World::new();
    w.apply("one", value!({"spec": {"replicas": 1, "paused": true}}), false)
        .unwrap();
    let parent = w.live.at(&["metadata", "managedFields"]).cloned();
    let scale = scale::to_scale(parent.as_ref(), &paths).unwrap().unwrap();
    assert_eq!(
        scale.as_array().unwrap()[0].get("apiVersion"),
        Some(&Value::from("autoscaling/v1"))
    );
    let taken = value!([{"manager": "hpa", "operation": "Update", "apiVersion": "autoscaling/v1", "subresource": "scale",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]);
    let after = scale::to_parent(parent.as_ref(), Some(&taken), "v1", &paths).unwrap();
    w.live.set_at(&["metadata", "managedFields"], after.unwrap());
    assert_eq!(w.owned("one"), [".spec.paused"]);
    assert_eq!(w.owned("hpa"), [".spec.replicas"]);
}
