//! What comes before what.

use keelson_addons::order::{circle, rank};
use std::collections::BTreeMap;

#[test]
fn what_others_need_comes_first() {
    let order = [
        ("", "Namespace"),
        ("apiextensions.k8s.io", "CustomResourceDefinition"),
        ("scheduling.k8s.io", "PriorityClass"),
        ("", "ServiceAccount"),
        ("rbac.authorization.k8s.io", "ClusterRole"),
        ("rbac.authorization.k8s.io", "RoleBinding"),
        ("", "Service"),
        ("apps", "Deployment"),
        ("networking.k8s.io", "Ingress"),
        ("example.com", "Deployment"),
        ("apiregistration.k8s.io", "APIService"),
        ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"),
    ];
    assert!(order.windows(2).all(|w| rank(w[0].0, w[0].1) < rank(w[1].0, w[1].1)));
    assert_eq!(
        rank("gateway.networking.k8s.io", "Gateway"),
        rank("helm.cattle.io", "HelmChart")
    );
}

#[test]
fn who_waits_in_a_circle_is_named() {
    let all: BTreeMap<String, Vec<String>> = [("a", "b"), ("b", "c"), ("c", "b"), ("d", "a")]
        .map(|(from, to)| (from.to_string(), vec![to.to_string()]))
        .into();
    assert_eq!(circle("b", &all).unwrap(), ["b", "c", "b"]);
    assert_eq!(circle("a", &all), None);
    assert_eq!(circle("d", &all), None);
    let own = BTreeMap::from([("x".to_string(), vec!["x".to_string()])]);
    assert_eq!(circle("x", &own).unwrap(), ["x", "x"]);
}
