//! Queries against a small cluster, answers as text.

#![allow(clippy::unwrap_used)]

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_dns::answer::{answer, question};
use keelson_dns::zone::Zone;
use serde_json::json;
use std::sync::Arc;

fn zone() -> Zone {
    let service = |name: &str, spec: serde_json::Value| -> Arc<Service> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})).unwrap(),
        )
    };
    let of_six = |service: &str, name: &str| -> Arc<EndpointSlice> {
        let slice = json!({
            "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv6",
            "ports": [{"name": "pg", "protocol": "TCP", "port": 5432}],
            "endpoints": [{"addresses": ["fd00:244::7"], "hostname": "db-0"}],
        });
        Arc::new(serde_json::from_value(slice).unwrap())
    };
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"name": "db-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4",
        "ports": [{"name": "pg", "protocol": "TCP", "port": 5432}],
        "endpoints": [
            {"addresses": ["10.244.0.7"], "hostname": "db-0"},
            {"addresses": ["10.244.0.8"]},
            {"addresses": ["10.244.0.9"], "conditions": {"ready": false}},
        ],
    }))
    .unwrap();
    let services = [
        service(
            "web",
            json!({"clusterIP": "10.96.0.20", "ports": [{"name": "http", "port": 80}]}),
        ),
        service(
            "db",
            json!({"clusterIP": "None", "ports": [{"name": "pg", "port": 5432}]}),
        ),
        service(
            "web6",
            json!({"clusterIP": "fd00:96::20", "ports": [{"name": "http", "port": 80}]}),
        ),
        service(
            "db6",
            json!({"clusterIP": "None", "ports": [{"name": "pg", "port": 5432}]}),
        ),
        service("empty", json!({"clusterIP": "None"})),
        service("out", json!({"type": "ExternalName", "externalName": "example.org"})),
        service(
            "alias",
            json!({"type": "ExternalName", "externalName": "web.shop.svc.cluster.local"}),
        ),
    ];
    let slices = [Arc::new(slice), of_six("db6", "db6-1")];
    Zone::build("cluster.local", &services, &slices)
}

fn ask(name: &str, kind: RecordType) -> String {
    let request = question(&Name::from_ascii(name).unwrap(), kind);
    let Some(found) = answer(&zone(), &request) else {
        return "forward".into();
    };
    if found.message.metadata.response_code != ResponseCode::NoError {
        assert!(
            !found.message.authorities.is_empty(),
            "a refusal carries the zone's SOA"
        );
        return format!("{}", found.message.metadata.response_code);
    }
    assert!(
        !(found.message.answers.is_empty() && found.message.authorities.is_empty()),
        "nothing carries it, too"
    );
    let mut lines: Vec<String> = found.message.answers.iter().map(|r| r.data.to_string()).collect();
    lines.extend(found.message.additionals.iter().map(|r| format!("+{}", r.data)));
    lines.extend(found.follow.map(|f| format!("follow {f}")));
    lines.join(" | ")
}

#[test]
fn services_have_addresses_ports_and_names() {
    assert_eq!(ask("web.shop.svc.cluster.local.", RecordType::A), "10.96.0.20");
    assert_eq!(ask("WEB.shop.svc.Cluster.Local.", RecordType::A), "10.96.0.20");
    assert_eq!(ask("web.shop.svc.cluster.local.", RecordType::AAAA), "");
    assert_eq!(
        ask("_http._tcp.web.shop.svc.cluster.local.", RecordType::SRV),
        "0 100 80 web.shop.svc.cluster.local. | +10.96.0.20"
    );
    assert_eq!(
        ask("20.0.96.10.in-addr.arpa.", RecordType::PTR),
        "web.shop.svc.cluster.local."
    );
}

#[test]
fn headless_services_name_their_ready_endpoints() {
    assert_eq!(
        ask("db.shop.svc.cluster.local.", RecordType::A),
        "10.244.0.7 | 10.244.0.8"
    );
    assert_eq!(ask("db-0.db.shop.svc.cluster.local.", RecordType::A), "10.244.0.7");
    assert_eq!(
        ask("10-244-0-8.db.shop.svc.cluster.local.", RecordType::A),
        "10.244.0.8"
    );
    assert_eq!(
        ask("_pg._tcp.db.shop.svc.cluster.local.", RecordType::SRV),
        "0 50 5432 db-0.db.shop.svc.cluster.local. | 0 50 5432 10-244-0-8.db.shop.svc.cluster.local. | +10.244.0.7 | +10.244.0.8"
    );
    assert_eq!(
        ask("7.0.244.10.in-addr.arpa.", RecordType::PTR),
        "db-0.db.shop.svc.cluster.local."
    );
}

/// A client that asks for both families at once believes that there is no such name if it hears so for one of them.
#[test]
fn a_name_that_has_no_address_of_a_family_exists() {
    for (name, a, aaaa) in [
        ("web.shop.svc", "10.96.0.20", ""),
        ("web6.shop.svc", "", "fd00:96::20"),
        ("db.shop.svc", "10.244.0.7 | 10.244.0.8", ""),
        ("db-0.db.shop.svc", "10.244.0.7", ""),
        ("10-244-0-8.db.shop.svc", "10.244.0.8", ""),
        ("_pg._tcp.db.shop.svc", "", ""),
        ("db6.shop.svc", "", "fd00:244::7"),
        ("db-0.db6.shop.svc", "", "fd00:244::7"),
        ("10-244-0-9.shop.pod", "10.244.0.9", ""),
        ("fd00-244--9.shop.pod", "", "fd00:244::9"),
        (
            "alias.shop.svc",
            "web.shop.svc.cluster.local. | 10.96.0.20",
            "web.shop.svc.cluster.local.",
        ),
        ("db-1.db6.shop.svc", "Non-Existent Domain", "Non-Existent Domain"),
    ] {
        let name = format!("{name}.cluster.local.");
        let asked = [RecordType::A, RecordType::AAAA].map(|kind| ask(&name, kind));
        assert_eq!(asked, [a, aaaa], "{name}");
    }
}

#[test]
fn aliases_are_followed_inside_and_handed_on_outside() {
    assert_eq!(
        ask("alias.shop.svc.cluster.local.", RecordType::A),
        "web.shop.svc.cluster.local. | 10.96.0.20"
    );
    assert_eq!(
        ask("out.shop.svc.cluster.local.", RecordType::A),
        "example.org. | follow example.org."
    );
    assert_eq!(ask("out.shop.svc.cluster.local.", RecordType::CNAME), "example.org.");
}

#[test]
fn absent_names_and_foreign_names_are_told_apart() {
    assert_eq!(
        ask("nobody.shop.svc.cluster.local.", RecordType::A),
        "Non-Existent Domain"
    );
    assert_eq!(
        ask("empty.shop.svc.cluster.local.", RecordType::A),
        "Non-Existent Domain"
    );
    assert_eq!(ask("shop.svc.cluster.local.", RecordType::A), "");
    assert_eq!(ask("nowhere.svc.cluster.local.", RecordType::A), "Non-Existent Domain");
    assert_eq!(ask("example.org.", RecordType::A), "forward");
    assert_eq!(ask("notcluster.local.", RecordType::A), "forward");
    assert_eq!(ask("9.9.9.9.in-addr.arpa.", RecordType::PTR), "forward");
    assert_eq!(ask("10-244-0-9.shop.pod.cluster.local.", RecordType::A), "10.244.0.9");
}
