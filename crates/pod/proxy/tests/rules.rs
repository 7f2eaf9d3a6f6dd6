//! Facts in, rules out, as text (`tests/golden`); and the same rules through the kernel, in a namespace of the test.
//! `UPDATE_GOLDEN=1` rewrites the files.

#![allow(clippy::unwrap_used)]

use keelson_client::ObjectKey;
use keelson_proxy::model::ServicePort;
use keelson_proxy::plan::Planner;
use keelson_sys::nft::{self, Chain, Family, Op, Ruleset, SetState};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

fn set(list: &[&str]) -> BTreeSet<(IpAddr, u16)> {
    list.iter().map(|s| (s.parse().unwrap(), 8080)).collect()
}

fn web() -> ServicePort {
    ServicePort {
        node_port: Some(30080),
        endpoints: set(&["10.244.0.5", "10.244.0.6"]),
        local_endpoints: set(&["10.244.0.5"]),
        ..ServicePort::at("shop/web/http/tcp", "10.96.1.1".parse().unwrap())
    }
}

fn key(facts: &ServicePort) -> ObjectKey {
    let mut parts = facts.identity.split('/');
    ObjectKey::new(parts.next().unwrap(), parts.next().unwrap())
}

fn planner(facts: &[ServicePort]) -> Planner {
    let mut planner = Planner::new("10.244.0.0/16".parse().unwrap());
    turn(&mut planner, &[], facts);
    planner
}

/// Brings the planner from these facts to those.
fn turn(planner: &mut Planner, old: &[ServicePort], new: &[ServicePort]) {
    let mut all: BTreeMap<ObjectKey, Vec<ServicePort>> = old.iter().map(|s| (key(s), Vec::new())).collect();
    new.iter().for_each(|s| all.entry(key(s)).or_default().push(s.clone()));
    for (key, facts) in all {
        planner.set(&key, facts);
    }
}

fn whole(facts: &[ServicePort]) -> Vec<Op> {
    planner(facts).take_whole()
}

fn change(old: &[ServicePort], new: &[ServicePort]) -> Vec<Op> {
    let mut planner = planner(old);
    planner.take_whole();
    turn(&mut planner, old, new);
    planner.take()
}

fn text(ops: &[Op]) -> String {
    ops.iter().map(|op| format!("{op}\n")).collect()
}

fn golden(name: &str, got: &str) {
    let path = format!("tests/golden/{name}");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, got).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(want == got, "{path} differs; got:\n{got}");
}

#[test]
fn the_whole_table() {
    golden("whole.txt", &text(&whole(&[web()])));
}

#[test]
fn one_endpoint_more_is_a_small_change() {
    let mut more = web();
    more.endpoints = set(&["10.244.0.5", "10.244.0.6", "10.244.0.7"]);
    golden("one-endpoint-more.txt", &text(&change(&[web()], &[more])));
}

#[test]
fn a_service_without_endpoints_is_refused() {
    let mut none = web();
    none.endpoints = set(&[]);
    none.local_endpoints = set(&[]);
    golden("no-endpoints.txt", &text(&change(&[web()], &[none])));
}

#[test]
fn local_policies_and_affinity() {
    let mut local = web();
    local.external_local = true;
    local.internal_local = true;
    local.affinity = Some(10_800);
    golden("local-affinity.txt", &text(&change(&[], &[local])));
}

#[test]
fn external_traffic_that_finds_no_local_endpoint_is_dropped_at_every_address() {
    let mut local = web();
    local.external_local = true;
    local.external_ips = vec!["192.0.2.1".parse().unwrap()];
    local.local_endpoints = set(&[]);
    let all = text(&whole(&[local]));
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
    golden("source-ranges.txt", &text(&change(&[free], &[guarded])));
}

#[test]
fn a_local_endpoint_that_terminates_is_used_though_others_are_ready_elsewhere() {
    let mut local = web();
    local.internal_local = true;
    local.endpoints = set(&["10.244.0.6"]);
    local.local_endpoints = set(&["10.244.0.5"]);
    let all = text(&whole(&[local]));
    for ip in ["10.244.0.5", "10.244.0.6"] {
        let made = |l: &str| l.starts_with("add element endpoints-") && l.ends_with(&format!(": {ip} . 8080 }}"));
        assert!(all.lines().any(made), "{ip}: {all}");
    }
}

#[test]
fn another_time_of_affinity_touches_its_service_only() {
    let mut sticky = web();
    sticky.affinity = Some(60);
    let mut other = sticky.clone();
    other.identity = "shop/other/http/tcp".into();
    other.cluster_ip = "10.96.1.2".parse().unwrap();
    other.node_port = None;
    let mut longer = sticky.clone();
    longer.affinity = Some(90);
    let ops = change(&[sticky, other.clone()], &[longer, other]);
    assert!(
        !ops.is_empty() && ops.iter().all(|op| op.to_string().contains("shop/web")),
        "{}",
        text(&ops)
    );
}

#[test]
fn an_endpoint_more_changes_elements_and_no_rule() {
    let mut more = web();
    more.endpoints = set(&["10.244.0.5", "10.244.0.6", "10.244.0.7"]);
    let ops = change(&[web()], &[more]);
    let element = |op: &Op| matches!(op, Op::AddElement { .. } | Op::DeleteElement { .. });
    assert!(ops.iter().all(element), "{}", text(&ops));
}

#[test]
fn an_address_passes_to_the_next_service_that_claims_it() {
    let mut second = web();
    second.identity = "shop/zzz/http/tcp".into();
    second.cluster_ip = "10.96.1.2".parse().unwrap();
    let both = [web(), second.clone()];
    let all = text(&whole(&both));
    let of_port = |all: &str| -> Vec<String> {
        let lines = all.lines().filter(|l| l.contains("element service-nodeports"));
        lines.map(str::to_string).collect()
    };
    assert_eq!(of_port(&all).len(), 1);
    assert!(of_port(&all)[0].ends_with("shop/web/http/tcp }"), "{all}");
    let passed = of_port(&text(&change(&both, &[second])));
    assert_eq!(passed.len(), 2, "{passed:?}");
    assert!(
        passed[0].starts_with("delete") && passed[1].ends_with("shop/zzz/http/tcp }"),
        "{passed:?}"
    );
}

#[test]
fn service_ranges_are_dropped_as_far_as_nothing_is_there() {
    let mut planner = planner(&[]);
    planner.take_whole();
    let ranges = ["10.96.0.0/16", "10.96.1.0/24", "10.97.0.0/24"].map(|r| r.parse().unwrap());
    planner.set_ranges(ranges.into());
    let wanted = [
        "add element service-ranges { 10.96.0.0-10.96.255.255 }",
        "add element service-ranges { 10.97.0.0-10.97.0.255 }",
    ];
    assert_eq!(planner.take().iter().map(Op::to_string).collect::<Vec<_>>(), wanted);
}

/// What a kernel holds after these operations.
fn follow(table: &mut Ruleset, ops: &[Op]) {
    for op in ops {
        match op.clone() {
            Op::AddTable => {}
            Op::DeleteTable => *table = Ruleset::default(),
            Op::AddChain { name, base } => {
                assert!(
                    table
                        .chains
                        .insert(
                            name,
                            Chain {
                                base,
                                rules: Vec::new()
                            }
                        )
                        .is_none(),
                    "{op}"
                );
            }
            Op::FlushChain { name } => table.chains.get_mut(&name).unwrap().rules.clear(),
            Op::DeleteChain { name } => assert!(table.chains.remove(&name).is_some_and(|c| c.rules.is_empty()), "{op}"),
            Op::AddRule { chain, exprs } => table.chains.get_mut(&chain).unwrap().rules.push(exprs),
            Op::AddSet(set) => {
                let name = set.name.clone();
                assert!(table.sets.insert(name, SetState::empty(set)).is_none(), "{op}");
            }
            Op::DeleteSet { name } => assert!(table.sets.remove(&name).is_some_and(|s| s.elements.is_empty()), "{op}"),
            Op::AddElement { set, element } => {
                let elements = &mut table.sets.get_mut(&set).unwrap().elements;
                assert!(elements.iter().all(|e| e.key != element.key), "{op}");
                elements.insert(element);
            }
            Op::DeleteElement { set, element } => {
                assert!(table.sets.get_mut(&set).unwrap().elements.remove(&element), "{op}");
            }
            Op::FlushRules
            | Op::FlushSet { .. }
            | Op::InsertRule { .. }
            | Op::DeleteRule { .. }
            | Op::AddCounter { .. }
            | Op::DeleteCounter { .. } => {
                panic!("{op}")
            }
        }
    }
}

/// Walks through states at random. Each delta leads to what the new facts would give from nothing, and the kernel accepts it.
#[test]
fn every_delta_leads_to_the_whole_and_the_kernel_accepts_it() {
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
        let mut old: Vec<ServicePort> = Vec::new();
        let mut planner = planner(&old);
        let mut table = Ruleset::default();
        let first = planner.take_whole();
        follow(&mut table, &first);
        nft::apply(Family::Ip, "keelson-proxy", &first).unwrap();
        for _ in 0..60 {
            let facts: Vec<ServicePort> = (0..random(4)).map(|i| random_service(i, &mut random)).collect();
            turn(&mut planner, &old, &facts);
            let ops = planner.take();
            if let Err(e) = nft::apply(Family::Ip, "keelson-proxy", &ops) {
                panic!("{e}\nSEED={seed}\n{}", text(&ops));
            }
            follow(&mut table, &ops);
            let mut wanted = Ruleset::default();
            follow(&mut wanted, &whole(&facts));
            assert!(table == wanted, "SEED={seed}\n{}", text(&nft::between(&table, &wanted)));
            old = facts;
        }
    };
    std::thread::spawn(walk).join().unwrap();
}

fn random_service(i: u64, random: &mut impl FnMut(u64) -> u64) -> ServicePort {
    let ips: Vec<String> = (0..random(5)).map(|k| format!("10.244.0.{}", 5 + k)).collect();
    let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
    // Some are local only: they terminate, while others are ready.
    let local = random(ips.len() as u64 + 1) as usize;
    let ready = (random(local as u64 + 1) as usize).min(ips.len().saturating_sub(1));
    let ip: IpAddr = "192.0.2.1".parse().unwrap();
    ServicePort {
        node_port: (random(2) == 0).then_some(30_080 + i as u16),
        external_ips: if random(3) == 0 { vec![ip] } else { vec![] },
        balancer_ips: vec![ip],
        source_ranges: match random(2) {
            0 => vec!["203.0.113.0/24".parse().unwrap()],
            _ => Vec::new(),
        },
        affinity: (random(3) == 0).then_some(60 + random(2) as u32),
        internal_local: random(3) == 0,
        external_local: random(2) == 0,
        endpoints: set(&ips[ready..]),
        local_endpoints: set(&ips[..local]),
        ..ServicePort::at(
            &format!("shop/web-{i}/http/tcp"),
            Ipv4Addr::from(0x0a60_0101 + i as u32).into(),
        )
    }
}
