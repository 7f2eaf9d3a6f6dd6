//! Allocation of devices is upstream's: `devices/cases.jsonl` has the inputs of its table (v1.37.2) and what its allocator
//! answers, a case a line. Share ids are the same for all there.
#![allow(clippy::unwrap_used)]

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use keelson_scheduler::devices::pool::Reach;
use keelson_scheduler::devices::selector::Selectors;
use keelson_scheduler::devices::slice::{DeviceId, Slice};
use keelson_scheduler::devices::state::State;
use keelson_scheduler::devices::{Allocator, Failure};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn list<T: DeserializeOwned>(case: &Value, key: &str) -> Vec<Arc<T>> {
    let items = case[key].as_array().cloned().unwrap_or_default();
    items
        .into_iter()
        .map(|item| Arc::new(serde_json::from_value(item).unwrap()))
        .collect()
}

fn device(name: &str) -> DeviceId {
    let parts: Vec<&str> = name.split('/').collect();
    DeviceId::new(parts[0], parts[1], parts[2])
}

fn state(case: &Value) -> State {
    let mut state = State::default();
    let names = |key: &str| -> Vec<DeviceId> {
        let names = case[key].as_array().into_iter().flatten();
        names.map(|name| device(name.as_str().unwrap())).collect()
    };
    state.devices.extend(names("allocated"));
    for id in names("shared") {
        state.shared.entry(id).or_default().shares += 1;
    }
    for (name, amounts) in case["capacity"].as_object().into_iter().flatten() {
        let shared = state.shared.entry(device(name)).or_default();
        for (name, amount) in amounts.as_object().unwrap() {
            let amount = keelson_api::Quantity::parse(amount.as_str().unwrap()).unwrap();
            shared.taken.insert(name.clone(), amount);
        }
    }
    state
}

fn allocate(case: &Value, until: Option<Instant>) -> Result<Option<Value>, Failure> {
    let slices: Vec<Arc<ResourceSlice>> = list(case, "slices");
    let reach = Reach::of(slices.iter().map(|slice| Arc::new(Slice::of(slice))));
    let known: Vec<Arc<DeviceClass>> = list(case, "classes");
    let classes = |name: &str| known.iter().find(|c| c.metadata.name.as_deref() == Some(name)).cloned();
    let allocator = Allocator {
        reach: &reach,
        classes: &classes,
        state: &state(case),
        selectors: &Selectors::default(),
    };
    let node: Node = serde_json::from_value(case["node"].clone()).unwrap();
    let claims: Vec<Arc<ResourceClaim>> = list(case, "claims");
    let mut id = || "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa".to_owned();
    let found = allocator.allocate(&node, &claims, until, &mut id)?;
    Ok(found.map(|results| serde_json::to_value(results).unwrap()))
}

/// Without what says nothing.
fn bare(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let members = members.iter().map(|(key, member)| (key.clone(), bare(member)));
            members
                .filter(|(_, member)| *member != json!({}) && *member != json!([]) && !member.is_null())
                .collect()
        }
        Value::Array(items) => items.iter().map(bare).collect(),
        other => other.clone(),
    }
}

#[test]
fn allocations_are_upstreams() {
    let mut wrong = Vec::new();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut count = 0;
    for line in include_str!("devices/cases.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        count += 1;
        let (found, error) = match allocate(&case, None) {
            Ok(found) => (found.unwrap_or_default(), String::new()),
            Err(Failure::Fatal(error) | Failure::Here(error)) => (Value::Null, error),
            Err(Failure::Late) => (Value::Null, "late".into()),
        };
        let is_same = match case["error"].as_str() {
            // What a lister says of what isn't there is its own.
            Some(expected) => error.starts_with(expected),
            // Nothing for no claims, and none, are the same there.
            None => error.is_empty() && list(&bare(&found)) == list(&bare(&case["results"])),
        };
        if !is_same {
            let name = &case["name"];
            wrong.push(format!(
                "{name}: {error}\n  found    {found}\n  expected {} {}",
                case["results"], case["error"]
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {count} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert_eq!(count, 233);
}

/// Six of five devices, by a request that nothing but trying shows to be in vain.
fn in_vain(asked: usize, devices: usize) -> Value {
    let devices: Vec<_> = (0..devices).map(|n| json!({"name": format!("device-{n}")})).collect();
    json!({
        "node": {"metadata": {"name": "node"}},
        "classes": [{"metadata": {"name": "class"}, "spec": {}}],
        "claims": [{"metadata": {"name": "claim"}, "spec": {"devices": {"requests": [
            {"name": "req", "exactly": {"deviceClassName": "class", "allocationMode": "ExactCount", "count": asked}},
        ]}}}],
        "slices": [{"metadata": {"name": "slice"}, "spec": {
            "driver": "driver", "nodeName": "node", "pool": {"name": "pool", "generation": 1, "resourceSliceCount": 1},
            "devices": devices,
        }}],
    })
}

#[test]
fn a_search_ends_when_its_time_is_over() {
    assert_eq!(allocate(&in_vain(6, 5), None), Ok(None));
    assert_eq!(allocate(&in_vain(6, 5), Some(Instant::now())), Err(Failure::Late));
    let start = Instant::now();
    let until = start + Duration::from_millis(200);
    assert_eq!(
        allocate(&in_vain(32, 31), Some(until)),
        Err(Failure::Late),
        "this would take years"
    );
    assert!(start.elapsed() < Duration::from_secs(20));
}

/// So many claims of one shared device, by so many requests.
fn shared(claims: usize, requests: usize, count: i64) -> Value {
    let mut case = in_vain(1, 1);
    let exactly = json!({"deviceClassName": "class", "allocationMode": "ExactCount", "count": count});
    let requests: Vec<_> = (0..requests)
        .map(|n| json!({"name": format!("r{n}"), "exactly": exactly}))
        .collect();
    let claim = |n| json!({"metadata": {"name": format!("claim-{n}")}, "spec": {"devices": {"requests": requests}}});
    case["claims"] = (0..claims).map(claim).collect();
    case["slices"][0]["spec"]["devices"][0]["allowMultipleAllocations"] = true.into();
    case
}

#[test]
fn what_is_asked_for_is_bounded() {
    assert!(matches!(allocate(&shared(8, 32, 1), None), Ok(Some(_))));
    for (case, expected) in [
        (shared(1, 33, 1), "claim claim-0: it has more than 32 requests"),
        (
            shared(1, 5_000, -1),
            "claim claim-0, request r0: -1 devices can't be asked for",
        ),
        (
            shared(1, 1, 0),
            "claim claim-0, request r0: 0 devices can't be asked for",
        ),
        (
            shared(9, 32, 1),
            "claims of a pod can't have more than 256 devices in all",
        ),
        (
            shared(256, 32, 1),
            "claims of a pod can't have more than 256 devices in all",
        ),
    ] {
        assert_eq!(allocate(&case, None), Err(Failure::Fatal(expected.into())));
    }
}
