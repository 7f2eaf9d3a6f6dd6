//! What a Gateway wants written on what is made for it (`spec.infrastructure`): its service and that one's endpoints. There are no pods.

use super::listeners::Problem;
use crate::kinds::{GROUP, Gateway};
use keelson_client::ApiObject;
use std::collections::BTreeMap;

/// Labels and annotations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

/// The longest value of a label.
const LONGEST: usize = 63;

/// By which what is made for a Gateway is found.
fn of_name() -> String {
    format!("{GROUP}/gateway-name")
}

/// Whose keys say what an object is, and may not be somebody else's word.
fn is_ours(key: &str) -> bool {
    let prefix = key.split_once('/').map_or("", |(prefix, _)| prefix);
    let of = |domain: &str| prefix == domain || prefix.strip_suffix(domain).is_some_and(|p| p.ends_with('.'));
    of("keelson.dev")
        || of("keelson.io")
        || of(GROUP)
        || matches!(
            key,
            "app.kubernetes.io/managed-by"
                | "kubernetes.io/service-name"
                | "endpointslice.kubernetes.io/managed-by"
                | "service.kubernetes.io/service-proxy-name"
                | "kubectl.kubernetes.io/last-applied-configuration"
        )
}

pub fn refused(gateway: &Gateway) -> Option<Problem> {
    let wanted = gateway.spec.infrastructure.as_ref()?;
    let refused = |why: String| Some(("InvalidParameters", why));
    if wanted.parameters_ref.is_some() {
        return refused("spec.infrastructure.parametersRef is not supported".into());
    }
    let mut keys = wanted.labels.keys().chain(wanted.annotations.keys());
    match keys.find(|key| is_ours(key)) {
        Some(key) => refused(format!("spec.infrastructure: {key} is the gateway's own word")),
        None => None,
    }
}

pub fn read(gateway: &Gateway) -> Written {
    let wanted = gateway.spec.infrastructure.clone().unwrap_or_default();
    let mut labels = wanted.labels;
    if gateway.name().len() <= LONGEST {
        labels.insert(of_name(), gateway.name().into());
    }
    Written {
        labels,
        annotations: wanted.annotations,
    }
}

#[cfg(test)]
mod tests {
    use super::is_ours;

    #[test]
    fn what_objects_are_nobody_else_says() {
        for key in [
            "keelson.dev/front",
            "x.keelson.io/y",
            "gateway.networking.k8s.io/gateway-name",
            "app.kubernetes.io/managed-by",
        ] {
            assert!(is_ours(key), "{key}");
        }
        for key in [
            "team",
            "notkeelson.dev/x",
            "keelson.dev.org/x",
            "app.kubernetes.io/name",
            "external-dns.alpha.kubernetes.io/hostname",
        ] {
            assert!(!is_ours(key), "{key}");
        }
    }
}
