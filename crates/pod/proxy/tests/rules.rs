//! Facts in, rules out, as text (`tests/golden`); and the same rules through the kernel, in a namespace of the test.
//! `UPDATE_GOLDEN=1` rewrites the files.

#![allow(clippy::unwrap_used)]

use keelson_proxy::model::ServicePort;
use keelson_proxy::rules;
use keelson_sys::nft::{self, Family, Op, Ruleset};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

fn set(list: &[&str]) -> BTreeSet<(Ipv4Addr, u16)> {
    list.iter().map(|s| (s.parse().unwrap(), 8080)).collect()
}

fn web() -> ServicePort {
    ServicePort {
        identity: "shop/web/http/tcp".into(),
        protocol: 6,
        port: 80,
        cluster_ip: "10.96.1.1".parse().unwrap(),
        external_ips: vec![],
        balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        node_port: Some(30080),
        affinity: None,
        internal_local: false,
        external_local: false,
        health_port: None,
        endpoints: set(&["10.244.0.5", "10.244.0.6"]),
        local_endpoints: set(&["10.244.0.5"]),
        serving: set(&[]),
    }
}

fn build(facts: &[ServicePort]) -> Ruleset {
    rules::build(facts, "10.244.0.0/16".parse().unwrap())
}

fn text(ops: &[Op]) -> String {
    ops.iter().map(|op| format!("{op}\n")).collect()
}

fn golden(name: &str, got: &str) {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, got).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(want == got, "{path} differs; got:\n{got}");
}

#[test]
fn the_whole_table() {
    golden("whole.txt", &text(&nft::replace(&build(&[web()]))));
}

#[test]
fn one_endpoint_more_is_a_small_change() {
    let mut more = web();
    more.endpoints = set(&["10.244.0.5", "10.244.0.6", "10.244.0.7"]);
    golden(
        "one-endpoint-more.txt",
        &text(&nft::between(&build(&[web()]), &build(&[more]))),
    );
}

#[test]
fn a_service_without_endpoints_is_refused() {
    let mut none = web();
    none.endpoints = set(&[]);
    none.local_endpoints = set(&[]);
    golden(
        "no-endpoints.txt",
        &text(&nft::between(&build(&[web()]), &build(&[none]))),
    );
}

#[test]
fn local_policies_and_affinity() {
    let mut local = web();
    local.external_local = true;
    local.internal_local = true;
    local.affinity = Some(10_800);
    golden(
        "local-affinity.txt",
        &text(&nft::between(&build(&[]), &build(&[local]))),
    );
}

#[test]
fn external_traffic_that_finds_no_local_endpoint_is_dropped_at_every_address() {
    let mut local = web();
    local.external_local = true;
    local.external_ips = vec!["192.0.2.1".parse().unwrap()];
    local.local_endpoints = set(&[]);
    let all = text(&nft::replace(&build(&[local])));
    assert!(
        all.contains("add element no-endpoint-services { 192.0.2.1 . tcp . 80 : goto drop }"),
        "{all}"
    );
    assert!(
        all.contains("add element no-endpoint-nodeports { tcp . 30080 : goto drop }"),
        "{all}"
    );
}

#[test]
fn a_load_balancers_address_is_for_its_source_ranges_only() {
    let mut guarded = web();
    guarded.external_ips = vec!["192.0.2.1".parse().unwrap(), "198.51.100.1".parse().unwrap()];
    guarded.balancer_ips = vec!["192.0.2.1".parse().unwrap()];
    guarded.source_ranges = vec!["203.0.113.0/24".parse().unwrap()];
    let mut free = guarded.clone();
    free.source_ranges.clear();
    golden(
        "source-ranges.txt",
        &text(&nft::between(&build(&[free]), &build(&[guarded]))),
    );
}

#[test]
fn a_local_endpoint_that_terminates_has_a_chain_though_others_are_ready_elsewhere() {
    let mut local = web();
    local.internal_local = true;
    local.endpoints = set(&["10.244.0.6"]);
    local.local_endpoints = set(&["10.244.0.5"]);
    let all = text(&nft::replace(&build(&[local])));
    for ip in ["10.244.0.5", "10.244.0.6"] {
        let made = |l: &str| l.starts_with("add chain endpoint-") && l.ends_with(&format!("{ip}/8080"));
        assert!(all.lines().any(made), "{ip}: {all}");
    }
}

/// Walks through states at random; the kernel must accept each delta, and end with an empty table's worth of names.
#[test]
fn the_kernel_accepts_every_delta() {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| u64::from(std::process::id()));
    println!("SEED={seed}");
    let walk = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
        let mut state = seed.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(3_037_000_493);
        let mut random = move |n: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        let mut old = build(&[]);
        nft::apply(Family::Ip, "keelson-proxy", &nft::replace(&old)).unwrap();
        for _ in 0..60 {
            let facts: Vec<ServicePort> = (0..random(4))
                .map(|i| {
                    let ips: Vec<String> = (0..random(5)).map(|k| format!("10.244.0.{}", 5 + k)).collect();
                    let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
                    // Some are local only: they terminate, while others are ready.
                    let local = random(ips.len() as u64 + 1) as usize;
                    let ready = (random(local as u64 + 1) as usize).min(ips.len().saturating_sub(1));
                    ServicePort {
                        identity: format!("shop/web-{i}/http/tcp"),
                        cluster_ip: Ipv4Addr::from(0x0a60_0101 + i as u32),
                        node_port: (random(2) == 0).then_some(30_080 + i as u16),
                        external_ips: if random(3) == 0 {
                            vec!["192.0.2.1".parse().unwrap()]
                        } else {
                            vec![]
                        },
                        balancer_ips: vec!["192.0.2.1".parse().unwrap()],
                        source_ranges: if random(2) == 0 {
                            vec!["203.0.113.0/24".parse().unwrap()]
                        } else {
                            vec![]
                        },
                        affinity: (random(3) == 0).then_some(60 + random(2) as u32),
                        internal_local: random(3) == 0,
                        external_local: random(2) == 0,
                        endpoints: set(&ips[ready..]),
                        local_endpoints: set(&ips[..local]),
                        ..web()
                    }
                })
                .collect();
            let new = build(&facts);
            let ops = nft::between(&old, &new);
            if let Err(e) = nft::apply(Family::Ip, "keelson-proxy", &ops) {
                panic!("{e}\nSEED={seed}\n{}", text(&ops));
            }
            old = new;
        }
    };
    std::thread::spawn(walk).join().unwrap();
}
