//! What a pod asks for in all: containers together, the largest init container, sidecars beside both, and the overhead.

use keelson_api::quantity::Quantity;
use keelson_api::{Map, Object, Str, Value};
use std::collections::BTreeMap;

pub type Amounts = BTreeMap<Str, Quantity>;

/// The amounts of a resource list.
pub fn amounts(list: Option<&Map>) -> Amounts {
    list.into_iter()
        .flatten()
        .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.parse().ok()?)))
        .collect()
}

fn add(into: &mut Amounts, other: &Amounts) {
    for (k, v) in other {
        into.entry(k.clone()).and_modify(|q| q.add(*v)).or_insert(*v);
    }
}

fn max(into: &mut Amounts, other: &Amounts) {
    for (k, v) in other {
        into.entry(k.clone()).and_modify(|q| *q = (*q).max(*v)).or_insert(*v);
    }
}

/// What a resource may be said of for a pod as a whole.
pub fn for_pods(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// The `requests` or `limits` of all containers of a spec.
pub fn of_containers(spec: &Map, key: &str) -> Amounts {
    let list = |name: &str| spec.arr(name).into_iter().flatten();
    let of = |c: &Value| amounts(c.at(&["resources", key]).and_then(Value::as_object));
    let mut sum = Amounts::new();
    list("containers").for_each(|c| add(&mut sum, &of(c)));
    let (mut sidecars, mut init) = (Amounts::new(), Amounts::new());
    for c in list("initContainers") {
        let mut own = of(c);
        if c.get("restartPolicy").and_then(Value::as_str) == Some("Always") {
            add(&mut sum, &own);
            add(&mut sidecars, &own);
            own = sidecars.clone();
        } else {
            add(&mut own, &sidecars);
        }
        max(&mut init, &own);
    }
    max(&mut sum, &init);
    sum
}

/// The total of `requests` or `limits`.
pub fn total(pod: &Object, key: &str) -> Amounts {
    let spec = pod.get("spec").and_then(Value::as_object);
    let mut sum = spec.map(|s| of_containers(s, key)).unwrap_or_default();
    let pod_level = amounts(pod.at(&["spec", "resources", key]).and_then(Value::as_object));
    for (k, v) in pod_level {
        if for_pods(&k) {
            sum.insert(k, v);
        }
    }
    for (k, v) in amounts(pod.at(&["spec", "overhead"]).and_then(Value::as_object)) {
        match sum.get_mut(&k) {
            Some(q) => q.add(v),
            // Overhead limits nothing that isn't limited.
            None if key == "requests" => drop(sum.insert(k, v)),
            None => {}
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    #[test]
    fn sidecars_run_beside_and_init_containers_before() {
        let cpu = |n: &str| value!({"requests": {"cpu": n}});
        let mut pod = Object::new();
        pod.set_at(&["spec", "containers"], value!([{"resources": cpu("1")}]).clone());
        pod.set_at(
            &["spec", "initContainers"],
            value!([
                {"resources": cpu("200m"), "restartPolicy": "Always"}, {"resources": cpu("3")},
            ]),
        );
        pod.set_at(&["spec", "overhead"], value!({"cpu": "100m"}));
        assert_eq!(total(&pod, "requests")["cpu"].to_string(), "3300m");
    }
}
