//! The quality-of-service class of a pod, from its requests and limits.

use crate::resources::pod_resources::for_pods;
use keelson_api::{Map, Object, Value, quantity::Quantity};

fn amount(resources: Option<&Map>, of: &str, name: &str) -> Option<Quantity> {
    let q = resources?.obj(of)?.str(name)?;
    q.parse::<Quantity>().ok()
}

fn of_resources(resources: Option<&Map>) -> &'static str {
    let any = |key: &str| resources.and_then(|r| r.obj(key)).is_some_and(|m| !m.is_empty());
    if !any("requests") && !any("limits") {
        return "BestEffort";
    }
    let of = |name: &str| {
        let zero = Quantity::default();
        let request = amount(resources, "requests", name).unwrap_or(zero);
        let limit = amount(resources, "limits", name).unwrap_or(zero);
        if request != limit {
            "Burstable"
        } else if request == zero {
            "BestEffort"
        } else {
            "Guaranteed"
        }
    };
    match (of("cpu"), of("memory")) {
        (a, b) if a == b => a,
        _ => "Burstable",
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn class(pod: &Object) -> &'static str {
    if let Some(r) = pod.at(&["spec", "resources"]).and_then(Value::as_object).filter(|r| {
        let lists = ["requests", "limits"].into_iter().filter_map(|key| r.obj(key));
        lists.flat_map(Map::keys).any(|name| for_pods(name))
    }) {
        return of_resources(Some(r));
    }
    let mut found: Option<&'static str> = None;
    for list in ["initContainers", "containers"] {
        for c in pod.at(&["spec", list]).and_then(Value::as_array).into_iter().flatten() {
            let this = of_resources(c.get("resources").and_then(Value::as_object));
            match found {
                _ if this == "Burstable" => return this,
                None => found = Some(this),
                Some(before) if before != this => return "Burstable",
                Some(_) => {}
            }
        }
    }
    found.unwrap_or("BestEffort")
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn pod(containers: Value) -> Object {
        Object::try_from(value!({"spec": {}}))
            .map(|mut o| {
                o.set_at(&["spec", "containers"], containers);
                o
            })
            .unwrap()
    }

    #[test]
    fn classes_follow_requests_and_limits() {
        let both = value!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(class(&pod(value!([{"name": "a"}]))), "BestEffort");
        let guaranteed = value!([{"resources": {"requests": {"cpu": "1000m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1024Mi"}}}]);
        assert_eq!(class(&pod(guaranteed.clone())), "Guaranteed");
        let mut mixed = guaranteed;
        mixed.as_array_mut().unwrap().push(value!({"name": "b"}));
        assert_eq!(class(&pod(mixed)), "Burstable");
        let mut cpu_only = value!([{"resources": {}}]);
        cpu_only.as_array_mut().unwrap()[0].set_at(&["resources", "requests"], both);
        assert_eq!(class(&pod(cpu_only)), "Burstable");
    }
}
