//! What a Gateway wants written on what is made for it.

use crate::plans::world;
use keelson_client::ObjectKey;
use keelson_gateway::plan::{Owner, plan};

/// The conditions' reasons, and labels and annotations of its front; `None`: it has none.
fn of(name: &str, infrastructure: &str) -> (String, Option<String>) {
    let plan = plan(&world(&format!(
        "
kind: Gateway
metadata: {{name: {name}, namespace: shop}}
spec: {{gatewayClassName: keelson, listeners: [{{name: web, port: 80, protocol: HTTP}}], infrastructure: {infrastructure}}}
"
    )));
    let key = ObjectKey::new("shop", name);
    let conditions = &plan.statuses.gateways[&key].conditions;
    let told: Vec<&str> = conditions.iter().map(|c| c.reason).collect();
    let written = plan.written.get(&Owner::Gateway(key)).map(|w| {
        let all = w.labels.iter().chain(&w.annotations);
        all.map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
    });
    (told.join(" "), written)
}

#[test]
fn labels_and_annotations_are_carried_over_but_for_our_own() {
    let fine = "Accepted Programmed ResolvedRefs";
    let name = "gateway.networking.k8s.io/gateway-name=g";
    assert_eq!(of("g", "{}"), (fine.into(), Some(name.into())));
    assert_eq!(
        of(
            "g",
            "{labels: {team: blue}, annotations: {external-dns/hostname: x.org}}"
        ),
        (
            fine.into(),
            Some(format!("{name} team=blue external-dns/hostname=x.org"))
        )
    );
    // A name that is no label's value is in none.
    assert_eq!(
        of(&"g".repeat(64), "{labels: {team: blue}}").1,
        Some("team=blue".into())
    );
    let refused = ("InvalidParameters Invalid ResolvedRefs".to_string(), None);
    for wrong in [
        "{labels: {keelson.dev/front: ingress}}",
        "{labels: {gateway.networking.k8s.io/gateway-name: other}}",
        "{annotations: {keelson.dev/load-balancer-ips: 192.0.2.1}}",
        "{parametersRef: {group: x.org, kind: Own, name: p}}",
    ] {
        assert_eq!(of("g", wrong), refused, "{wrong}");
    }
}
