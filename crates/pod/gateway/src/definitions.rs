//! The custom resources of the Gateway API: v1.6.1, standard channel, without the descriptions of their fields.

use serde_json::Value;

/// One a line. Of versions there are those that are stored, and `v1`.
const ALL: &str = include_str!("definitions.jsonl");

pub fn all() -> serde_json::Result<Vec<Value>> {
    ALL.lines().map(serde_json::from_str).collect()
}

/// Those without which nothing is served: definitions that others installed may be without the rest.
pub const NAMES: [&str; 5] = [
    "gatewayclasses.gateway.networking.k8s.io",
    "gateways.gateway.networking.k8s.io",
    "grpcroutes.gateway.networking.k8s.io",
    "httproutes.gateway.networking.k8s.io",
    "referencegrants.gateway.networking.k8s.io",
];

#[cfg(test)]
mod tests {
    #[test]
    fn all_kinds_that_are_read_are_defined() {
        let all = super::all().unwrap();
        let names: Vec<&str> = all.iter().filter_map(|d| d["metadata"]["name"].as_str()).collect();
        for name in super::NAMES {
            assert!(names.contains(&name), "{name}");
        }
        for kind in [
            "backendtlspolicies",
            "listenersets",
            "tcproutes",
            "tlsroutes",
            "udproutes",
        ] {
            assert!(
                names.contains(&format!("{kind}.gateway.networking.k8s.io").as_str()),
                "{kind}"
            );
        }
        for definition in &all {
            let versions = definition["spec"]["versions"].as_array().unwrap();
            assert!(versions.iter().any(|v| v["name"] == "v1" && v["served"] == true));
        }
    }
}
