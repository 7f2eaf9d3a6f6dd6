//! What kube-apiserver makes of families, policies and addresses of services, on clusters of one family and of both: 2027 cases, each
//! a service and up to two changes of it, recorded by `tools/service-families/record.py`. Ours makes the same of them, holds
//! the addresses that the service has and no others, and gives them all back.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::{Answer, Api};
use keelson_api::{Value, value};
use keelson_store::Memory;
use std::collections::BTreeMap;
use std::io::Read;
use std::net::IpAddr;

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
/// Asked for by number.
const ASKED: [&str; 3] = ["10.96.0.44", "10.96.0.45", "fd00:96::44"];

fn cases() -> BTreeMap<String, Vec<Value>> {
    let packed = include_bytes!("service_families.jsonl.gz");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&packed[..])
        .read_to_string(&mut text)
        .unwrap();
    let mut by_cluster: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for line in text.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let cluster = case.get("on").and_then(Value::as_str).unwrap().to_string();
        by_cluster.entry(cluster).or_default().push(case);
    }
    by_cluster
}

/// Addresses that the server chose, by family only.
fn hidden(text: &str) -> String {
    let part_of_address = |c: char| c.is_ascii_hexdigit() || matches!(c, '.' | ':' | '/');
    let mut shown = String::new();
    let mut word = String::new();
    for c in text.chars().chain(['\n']) {
        if part_of_address(c) {
            word.push(c);
            continue;
        }
        let address = word.trim_end_matches(':');
        let name = match address.parse::<IpAddr>() {
            Ok(_) if ASKED.contains(&address) => address,
            Ok(IpAddr::V4(_)) if address.starts_with("10.96.") => "four",
            Ok(IpAddr::V6(_)) if address.starts_with("fd00:96:") => "six",
            _ => address,
        };
        shown.push_str(name);
        shown.push_str(&word[address.len()..]);
        word.clear();
        shown.push(c);
    }
    shown.pop();
    shown
}

fn texts(value: Option<&Value>) -> Vec<String> {
    let all = value.and_then(Value::as_array).into_iter().flatten();
    all.filter_map(Value::as_str).map(String::from).collect()
}

fn outcome(answer: &Answer) -> String {
    let said = match answer.code {
        300.. => answer.str(&["message"]),
        _ => {
            let made = answer.json();
            let or_none = |text: String| if text.is_empty() { "-".into() } else { text };
            let text = |key: &str| or_none(answer.str(&["spec", key]));
            let list = |key: &str| or_none(texts(made.at(&["spec", key])).join(","));
            [
                text("ipFamilyPolicy"),
                list("ipFamilies"),
                text("clusterIP"),
                list("clusterIPs"),
            ]
            .join(" ")
        }
    };
    format!("{} {}", answer.code, hidden(&said))
}

async fn held(api: &Api) -> Vec<String> {
    let all = api.get(ADDRESSES).await.expect(200).json();
    let items = all.get("items").and_then(Value::as_array).unwrap();
    let ours = items.iter().filter(|i| {
        let parent = i.at(&["spec", "parentRef", "name"]);
        parent.and_then(Value::as_str) == Some("s")
    });
    let name = |i: &Value| i.at(&["metadata", "name"]).and_then(Value::as_str).map(String::from);
    let mut names: Vec<String> = ours.filter_map(name).collect();
    names.sort();
    names
}

/// What ours makes of a case.
async fn made(api: &Api, case: &Value) -> Vec<String> {
    let (mut seen, mut addresses) = (Vec::new(), Vec::new());
    for (n, step) in case.get("do").and_then(Value::as_array).unwrap().iter().enumerate() {
        let answer = if n == 0 {
            let service =
                value!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": step.clone()});
            api.post(SERVICES, service).await
        } else {
            let mut text = serde_json::to_string(step).unwrap();
            for (place, name) in ["$first", "$second"].into_iter().enumerate() {
                text = text.replace(name, addresses.get(place).map_or("", String::as_str));
            }
            let spec: Value = serde_json::from_str(&text).unwrap();
            let path = format!("{SERVICES}/s");
            api.patch(&path, "merge-patch+json", value!({"spec": spec})).await
        };
        seen.push(outcome(&answer));
        if answer.code < 300 {
            addresses = texts(answer.json().at(&["spec", "clusterIPs"]));
        }
        let mut own = addresses.clone();
        own.retain(|ip| ip != "None");
        own.sort();
        assert_eq!(held(api).await, own, "{case:?}");
        if seen[0].starts_with("422") {
            return seen;
        }
    }
    api.delete(&format!("{SERVICES}/s")).await.expect(200);
    assert_eq!(held(api).await, Vec::<String>::new(), "all are given back: {case:?}");
    seen
}

#[tokio::test]
async fn services_have_the_families_that_upstream_gives_them() {
    let mut differing = Vec::new();
    let mut count = 0;
    for (cluster, cases) in cases() {
        let ranges: Vec<ipnet::IpNet> = cluster
            .chars()
            .map(|family| match family {
                '4' => "10.96.0.0/16".parse().unwrap(),
                _ => "fd00:96::/112".parse().unwrap(),
            })
            .collect();
        let api = Api::starting_with(Memory::new(), |config| config.service_cidrs = ranges);
        api.server.ready().await;
        for case in cases {
            count += 1;
            let wanted = texts(case.get("seen"));
            let got = made(&api, &case).await;
            if got != wanted {
                let steps = serde_json::to_string(case.get("do").unwrap()).unwrap();
                differing.push(format!(
                    "on {cluster}: {steps}\n  upstream {wanted:?}\n  here     {got:?}"
                ));
            }
        }
    }
    assert_eq!(count, 2027);
    let shown = differing.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(differing.is_empty(), "{} of {count} differ:\n{shown}", differing.len());
}
