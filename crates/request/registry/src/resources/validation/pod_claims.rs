//! What a pod's status says of its claims of devices: those that were made for it, and the one of its extended resources.

use super::check::{Errs, count, s};
use keelson_api::{Map, Value};
use keelson_machinery::names::{dns1123_label, dns1123_subdomain};
use std::collections::{BTreeMap, BTreeSet};

pub fn status(status: &Map, spec: &Map, e: &mut Errs) {
    let claims = spec.arr("resourceClaims");
    let known: BTreeSet<&str> = claims.into_iter().flatten().map(name_of).collect();
    let mut seen = BTreeSet::new();
    e.each(status, "resourceClaimStatuses", |e, _, made| {
        let name = s(made, "name");
        if !known.contains(name) {
            let why = "must match the name of an entry in `spec.resourceClaims`";
            e.invalid("name", name, why);
        }
        if !seen.insert(name.to_owned()) {
            e.duplicate("name", name);
        }
        if made.contains_key("resourceClaimName") {
            e.format("resourceClaimName", s(made, "resourceClaimName"), dns1123_subdomain);
        }
    });
    e.child(status, "extendedResourceClaimStatus", |e, told| extended(e, told, spec));
}

fn name_of(value: &Value) -> &str {
    value.get("name").and_then(Value::as_str).unwrap_or_default()
}

fn extended(e: &mut Errs, told: &Map, spec: &Map) {
    if count(told, "requestMappings") == 0 {
        e.required("requestMappings", "at least one request mapping is required");
    }
    let lists = ["initContainers", "containers"].into_iter();
    let containers = lists.filter_map(|list| spec.arr(list)).flatten();
    let containers: BTreeMap<&str, &Value> = containers.map(|c| (name_of(c), c)).collect();
    let mut seen = BTreeSet::new();
    let mut requests = Vec::new();
    e.each(told, "requestMappings", |e, _, mapping| {
        let (container, resource) = (s(mapping, "containerName"), s(mapping, "resourceName"));
        match containers.get(container) {
            None => {
                let why = "must match the name of an entry in spec.initContainers.name or spec.containers.name";
                e.invalid("containerName", container, why);
            }
            Some(of) if of.at(&["resources", "requests", resource]).is_none() => {
                let why = "must match the extended resource name of an entry in spec.initContainers.resources.requests or \
                           spec.containers.resources.requests";
                e.invalid("resourceName", resource, why);
            }
            Some(_) => {}
        }
        let request = s(mapping, "requestName");
        requests.push(request.to_owned());
        if !seen.insert([container, resource, request].map(str::to_owned)) {
            for (key, value) in [("containerName", container), ("resourceName", resource), ("requestName", request)] {
                e.duplicate(key, value);
            }
        }
    });
    // Upstream names no entry here.
    for request in requests {
        e.format("requestName", &request, dns1123_label);
    }
    match s(told, "resourceClaimName") {
        "" => e.required("resourceClaimName", ""),
        name => e.format("resourceClaimName", name, dns1123_subdomain),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::shown;
    use super::*;
    use keelson_api::value;

    fn told(of: Value) -> Vec<String> {
        let containers = value!([{"name": "c", "resources": {"requests": {"x.io/gpu": "1"}}}]);
        let spec = value!({"containers": containers, "resourceClaims": [{"name": "a"}]});
        let mut e = Errs::default();
        status(of.as_object().unwrap(), spec.as_object().unwrap(), &mut e);
        shown(e.list.into())
    }

    #[test]
    fn claims_that_were_made_are_the_specifications() {
        let sound = value!({"resourceClaimStatuses": [{"name": "a", "resourceClaimName": "p-a-x"}]});
        assert_eq!(told(sound), [""; 0]);
        let wrong =
            value!({"resourceClaimStatuses": [{"name": "a"}, {"name": "b"}, {"name": "a", "resourceClaimName": "A"}]});
        let wrong = told(wrong);
        assert_eq!(
            wrong[..2],
            [
                "resourceClaimStatuses[1].name: Invalid value: \"b\": must match the name of an entry in `spec.resourceClaims`",
                "resourceClaimStatuses[2].name: Duplicate value: \"a\"",
            ]
        );
        assert!(wrong[2].starts_with("resourceClaimStatuses[2].resourceClaimName: Invalid value: \"A\": "));
    }

    #[test]
    fn who_gets_what_of_extended_resources_asked_for_it() {
        let of = |name: &str, mappings: Value| {
            told(value!({"extendedResourceClaimStatus": {"resourceClaimName": name, "requestMappings": mappings}}))
        };
        let mapping = |container: &str, resource: &str| value!({"containerName": container, "resourceName": resource, "requestName": "container-0-request-0"});
        assert_eq!(of("p-extended", value!([(mapping("c", "x.io/gpu"))])), [""; 0]);
        assert_eq!(
            of("", value!([])),
            [
                "extendedResourceClaimStatus.requestMappings: Required value: at least one request mapping is required",
                "extendedResourceClaimStatus.resourceClaimName: Required value",
            ]
        );
        let wrong = of("p", value!([(mapping("c", "x.io/fpga")), (mapping("d", "x.io/gpu"))]));
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        let wrong = of("p", value!([(mapping("c", "x.io/gpu")), (mapping("c", "x.io/gpu"))]));
        assert_eq!(wrong.len(), 3, "{wrong:?}");
    }
}
