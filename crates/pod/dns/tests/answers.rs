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
        service("empty", json!({"clusterIP": "None"})),
        service("out", json!({"type": "ExternalName", "externalName": "example.org"})),
        service(
            "alias",
            json!({"type": "ExternalName", "externalName": "web.shop.svc.cluster.local"}),
        ),
    ];
    Zone::build("cluster.local", &services, &[Arc::new(slice)])
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
