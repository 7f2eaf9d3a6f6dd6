//! The way by the written form against the way that reads everything, over many random lives.

use super::super::manager::{FieldManager, STRIPPED};
use super::super::typed::{self, is_settled};
use super::super::{Set, fields_v1};
use crate::canonical;
use crate::testing::pod_like;
use keelson_api::{SchemaRef, Value, value};

const ROUNDS: u64 = 60;
const STEPS: u64 = 40;

/// A few numbers that look random, the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

fn changed(object: &mut Value, dice: &mut Dice) {
    let v = dice.below(4);
    let text = format!("v{v}");
    match dice.below(9) {
        0 => object.set_at(&["metadata", "labels", &format!("l{}", dice.below(3))], text),
        1 => drop(object.remove_at(&["metadata", "labels", &format!("l{}", dice.below(3))])),
        2 => object.set_at(&["metadata", "finalizers"], value!([text, "odd \"one\""])),
        3 => object.set_at(&["spec", "replicas"], v as i64),
        4 => object.set_at(&["spec", "nodeSelector"], value!({"n": text})),
        5 => drop(object.remove_at(&["spec", "nodeSelector"])),
        6 => object.set_at(&["status", "phase"], text),
        7 => object.set_at(&["metadata", "generation"], v as i64),
        _ => {
            let container = |n: u64, dice: &mut Dice| {
                let ports = value!([{"containerPort": 80 + dice.below(3) as i64, "protocol": "TCP"}]);
                value!({"name": format!("c{n}"), "image": format!("i{}", dice.below(3)), "ports": ports})
            };
            let list: Vec<Value> = (0..dice.below(3)).map(|n| container(n, dice)).collect();
            object.set_at(&["spec", "containers"], list);
        }
    }
}

fn manager<'a>(schema: &'a SchemaRef, subresource: &'a str, reset: &'a Set, now: &'a str) -> FieldManager<'a> {
    FieldManager {
        schema,
        api_version: "v1",
        kind: "Pod",
        subresource,
        reset_fields: reset,
        converter: None,
        now,
    }
}

#[test]
fn both_ways_come_to_the_same() {
    let (schema, mut dice, mut short) = (pod_like(), Dice(1), 0);
    let (spec, status) = (Set::of_fields(&[&["spec"]]), Set::of_fields(&[&["status"]]));
    for _ in 0..ROUNDS {
        let mut live = value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}});
        for step in 0..STEPS {
            let now = format!("2030-01-02T03:04:{:02}Z", step / 2);
            let who = format!("m{}", dice.below(5));
            let sub = if dice.below(3) == 0 { "status" } else { "" };
            let reset = if sub.is_empty() { &status } else { &spec };
            let by = manager(&schema, sub, reset, &now);
            let next = if dice.below(4) == 0 {
                let mut config = value!({"apiVersion": "v1", "kind": "Pod"});
                changed(&mut config, &mut dice);
                by.apply(&live, &config, &who, true).unwrap()
            } else {
                let mut new = live.clone();
                changed(&mut new, &mut dice);
                canonical::canonicalize(&mut new, &schema).unwrap();
                let mut bare = new.clone();
                let asked = bare.remove_at(&["metadata", "managedFields"]);
                let read = by.update_read(&live, bare.clone(), asked.as_ref(), &who);
                if let Some(Value::Array(said)) = &asked {
                    let mut before = live.clone();
                    before.remove_at(&["metadata", "managedFields"]);
                    short += u64::from(by.update_written(said, &before, &bare, &who).is_some());
                }
                let next = by.update(&live, new, &who);
                assert_eq!(next, read);
                next
            };
            live = next;
            canonical::canonicalize(&mut live, &schema).unwrap();
            live.set_at(&["metadata", "uid"], "u");
        }
    }
    assert!(short > ROUNDS * STEPS / 2, "{short} only went the short way");
}

/// What is written of a new object at once, against what comparing it gives.
#[test]
fn who_makes_an_object_owns_what_comparing_says() {
    let (schema, mut dice, mut at_once) = (pod_like(), Dice(7), 0);
    let resets = [
        Set::default(),
        Set::of_fields(&[&["status"]]),
        Set::of_fields(&[&["spec", "replicas"]]),
    ];
    let check = |new: &Value, at_once: &mut u64| {
        for reset in &resets {
            let by = manager(&schema, "", reset, "2030-01-02T03:04:05Z");
            let zero = by.empty_object();
            let first = typed::first(&zero, new, &schema, reset, &STRIPPED);
            *at_once += u64::from(first.is_some());
            let compared = by.first_compared(&zero, new);
            assert!(
                first.is_none() || first == compared,
                "{new:?}: {first:?}, not {compared:?}"
            );
        }
    };
    for _ in 0..ROUNDS {
        let mut new = value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "uid": "u"}});
        for _ in 0..10 {
            changed(&mut new, &mut dice);
            canonical::canonicalize(&mut new, &schema).unwrap();
            check(&new, &mut at_once);
        }
    }
    assert_eq!(at_once, 3 * 10 * ROUNDS);
    for odd in [
        value!({"spec": {"containers": [{"name": "a"}, {"name": "a", "image": "b"}]}}),
        value!({"spec": {"containers": [{"image": "b"}]}}),
        value!({"spec": {"containers": 1, "nobody": "knows"}}),
        value!({"metadata": {"finalizers": ["a", "a"]}, "spec": null, "status": {}}),
        value!({}),
        value!({"metadata": {"labels": {}, "annotations": {"k": ""}}, "spec": {"replicas": 0}}),
    ] {
        check(&odd, &mut at_once);
    }
}

#[test]
fn what_is_settled_is_read_and_written_the_same() {
    let schema = pod_like();
    for (set, settled) in [
        (r#"{"f:metadata":{"f:labels":{".":{},"f:a":{}}}}"#, true),
        (
            r#"{"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{".":{},"f:name":{}}}}}"#,
            true,
        ),
        (
            r#"{"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{"f:ports":{"k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{}}}}}}"#,
            true,
        ),
        (r#"{"f:metadata":{"f:finalizers":{"v:\"a\\\"b\"":{}}}}"#, true),
        // Not as we write it.
        ("{}", false),
        (r#"{".":{}}"#, false),
        (r#"{"f:spec":{".":{}}}"#, false),
        (r#"{"f:spec":1}"#, false),
        (r#"{"q:spec":{}}"#, false),
        (r#"{"f:spec":{"f:containers":{"k:{\"name\": \"a\"}":{}}}}"#, false),
        (r#"{"f:spec":{"f:containers":{"k:{\"b\":\"\",\"a\":\"\"}":{}}}}"#, false),
        (r#"{"f:spec":{"f:containers":{"k:[]":{}}}}"#, false),
        (r#"{"f:metadata":{"f:finalizers":{"v:01":{}}}}"#, false),
        // Something is owned of what the type has as a whole.
        (r#"{"f:spec":{"f:nodeSelector":{"f:a":{}}}}"#, false),
        (
            r#"{"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{"f:command":{"i:0":{}}}}}}"#,
            false,
        ),
    ] {
        let value: Value = serde_json::from_str(set).unwrap();
        let map = value.as_object().unwrap();
        assert_eq!(is_settled(map, &schema), settled, "{set}");
        if settled {
            assert_eq!(Set::from_value(&value).unwrap().to_value(), value, "{set}");
        }
    }
    assert!(fields_v1::is_as_written("i:3") && !fields_v1::is_as_written("i:03"));
}
