//! Random pods, policies and packets: what the rules do with a packet, read by a small interpreter of them, is what a
//! reference evaluator says from the API objects; what many changes led to is what the last state gives from nothing; and
//! the kernel accepts every change. `SEED` repeats a run.

#![allow(clippy::unwrap_used)]

mod interpret;
mod random;
mod reference;

use interpret::{Packet, passes};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use keelson_client::cluster_policies::ClusterNetworkPolicy;
use keelson_policy::judge::{self, Connection, Direction, End, Rules};
use keelson_policy::plan::Planner;
use keelson_policy::{cluster, facts};
use keelson_sys::nft::{self, Family, Op};
use random::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// This node's name; pods of it are judged.
const NODE: &str = "here";

#[derive(Default)]
pub struct World {
    pub namespaces: BTreeMap<String, Namespace>,
    pub pods: BTreeMap<(String, String), Pod>,
    pub policies: BTreeMap<(String, String), NetworkPolicy>,
    pub cluster: BTreeMap<String, ClusterNetworkPolicy>,
    pub nodes: BTreeMap<String, Node>,
    pub logged: BTreeSet<String>,
}

fn seed() -> u64 {
    let given = std::env::var("SEED").ok().and_then(|s| s.parse().ok());
    let seed = given.unwrap_or_else(|| u64::from(std::process::id()));
    println!("SEED={seed}");
    seed
}

fn tell_pod(planner: &mut Planner, key: &(String, String), pod: Option<&Pod>) {
    let facts = pod.and_then(|p| facts::pod(p, &[], NODE, |_| false));
    planner.set_pod((key.0.clone(), key.1.clone(), String::new()), facts);
}

fn tell_policy(planner: &mut Planner, key: &(String, String), policy: Option<&NetworkPolicy>) {
    planner.set_policy(key.clone(), policy.and_then(facts::policy));
}

fn tell_namespace(planner: &mut Planner, name: &str, namespace: Option<&Namespace>) {
    planner.set_namespace(name, namespace.map(|n| n.metadata.labels.clone().unwrap_or_default()));
}

fn tell_cluster(planner: &mut Planner, name: &str, policy: Option<&ClusterNetworkPolicy>) {
    planner.set_cluster_policy(name, policy.and_then(cluster::policy));
}

fn anew(world: &World) -> Planner {
    let mut planner = Planner::new(Family::Ip);
    for (name, policy) in world.cluster.iter().rev() {
        tell_cluster(&mut planner, name, Some(policy));
    }
    // Another order than things came in: it must not matter.
    for (key, policy) in world.policies.iter().rev() {
        tell_policy(&mut planner, key, Some(policy));
    }
    for (key, pod) in &world.pods {
        tell_pod(&mut planner, key, Some(pod));
    }
    for (name, namespace) in &world.namespaces {
        tell_namespace(&mut planner, name, Some(namespace));
    }
    for name in &world.logged {
        planner.set_logged(name, true);
    }
    for (name, node) in &world.nodes {
        planner.set_node(name, Some(cluster::node(node)));
    }
    planner
}

/// Changes one thing of the world, and tells the planner.
fn step(world: &mut World, random: &mut Random, planner: &mut Planner) {
    match random.below(14) {
        10 => {
            let name = format!("node-{}", random.below(3));
            match random.below(3) {
                0 => drop(world.nodes.remove(&name)),
                _ => drop(world.nodes.insert(name.clone(), random.node_object(&name))),
            }
            planner.set_node(&name, world.nodes.get(&name).map(cluster::node));
        }
        11..=13 => {
            let name = format!("cluster-{}", random.below(4));
            match random.below(3) {
                0 => drop(world.cluster.remove(&name)),
                _ => drop(world.cluster.insert(name.clone(), random.cluster_policy(&name))),
            }
            tell_cluster(planner, &name, world.cluster.get(&name));
        }
        0 => {
            let name = random.namespace();
            match random.below(4) {
                0 => drop(world.namespaces.remove(&name)),
                _ => drop(world.namespaces.insert(name.clone(), random.namespace_object(&name))),
            }
            tell_namespace(planner, &name, world.namespaces.get(&name));
            match random.below(2) {
                0 => world.logged.remove(&name),
                _ => world.logged.insert(name.clone()),
            };
            planner.set_logged(&name, world.logged.contains(&name));
        }
        1..=5 => {
            let key = (random.namespace(), format!("pod-{}", random.below(6)));
            match random.below(4) {
                0 => drop(world.pods.remove(&key)),
                _ => drop(world.pods.insert(key.clone(), random.pod(&key))),
            }
            tell_pod(planner, &key, world.pods.get(&key));
        }
        _ => {
            let key = (random.namespace(), format!("policy-{}", random.below(3)));
            match random.below(3) {
                0 => drop(world.policies.remove(&key)),
                _ => drop(world.policies.insert(key.clone(), random.policy(&key))),
            }
            tell_policy(planner, &key, world.policies.get(&key));
        }
    }
}

/// What [`judge`] says of a packet, as the reference has it: pods of other nodes never come to this one's links.
fn judged(world: &World, packet: &Packet) -> bool {
    let facts_of = |ip| {
        let found = world.pods.values().find(|p| reference::address(p) == Some(ip));
        found.and_then(|p| facts::pod(p, &[], NODE, |_| false))
    };
    let (from, to) = (facts_of(packet.source), facts_of(packet.destination));
    let connection = Connection {
        from: End {
            address: packet.source,
            pod: from.as_ref(),
        },
        to: End {
            address: packet.destination,
            pod: to.as_ref(),
        },
        protocol: packet.protocol,
        port: packet.port,
    };
    let labels = |n: &Namespace| n.metadata.labels.clone().unwrap_or_default();
    let namespaces = world.namespaces.iter();
    let rules = Rules {
        policies: world.policies.values().filter_map(facts::policy).collect(),
        cluster: world.cluster.values().filter_map(cluster::policy).collect(),
        namespaces: namespaces.map(|(name, n)| (name.clone(), labels(n))).collect(),
        nodes: world.nodes.values().map(cluster::node).collect(),
    }
    .sort();
    let says = |direction| judge::judge(&connection, direction, &rules).is_allowed();
    let here = |pod: &Option<facts::Pod>| pod.as_ref().is_some_and(|p| p.local);
    let out = !packet.from_link || (here(&from) && says(Direction::Egress));
    let into = !packet.to_link || (here(&to) && says(Direction::Ingress));
    packet.reply || (out && into)
}

#[test]
fn rules_judge_as_the_reference_does() {
    let seed = seed();
    let mut random = Random::new(seed);
    let (mut packets, mut passed) = (0, 0);
    for _ in 0..12 {
        let mut world = World::default();
        let mut planner = Planner::new(Family::Ip);
        for _ in 0..60 {
            step(&mut world, &mut random, &mut planner);
            for _ in 0..40 {
                let packet: Packet = random.packet(&world);
                let wanted = reference::allowed(&world, &packet);
                let got = passes(planner.wanted(), &packet);
                assert_eq!(
                    got,
                    wanted,
                    "SEED={seed} {packet:?}\n{}\n{}",
                    reference::describe(&world),
                    nft::replace(planner.wanted())
                        .iter()
                        .map(|op| format!("{op}\n"))
                        .collect::<String>()
                );
                assert_eq!(
                    judged(&world, &packet),
                    wanted,
                    "SEED={seed} {packet:?}\n{}",
                    reference::describe(&world)
                );
                packets += 1;
                passed += usize::from(got);
            }
        }
    }
    assert!(
        passed * 10 > packets && passed * 10 < packets * 9,
        "{passed} of {packets} passed: too one-sided to say anything, SEED={seed}"
    );
}

#[test]
fn many_changes_lead_where_the_last_state_does() {
    let seed = seed();
    let mut random = Random::new(seed);
    let mut world = World::default();
    let mut planner = Planner::new(Family::Ip);
    for i in 0..600 {
        step(&mut world, &mut random, &mut planner);
        if i % 20 == 0 {
            assert!(
                planner.wanted() == anew(&world).wanted(),
                "SEED={seed} after {i} changes"
            );
        }
    }
    for key in world.policies.keys() {
        tell_policy(&mut planner, key, None);
    }
    for name in world.cluster.keys() {
        tell_cluster(&mut planner, name, None);
    }
    for key in world.pods.keys() {
        tell_pod(&mut planner, key, None);
    }
    assert!(
        *planner.wanted() == keelson_policy::plan::closed(Family::Ip),
        "SEED={seed}: something stays behind"
    );
}

#[test]
fn the_kernel_accepts_every_change() {
    let seed = seed();
    let walk = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
        let mut random = Random::new(seed);
        let mut world = World::default();
        let mut planner = Planner::new(Family::Ip);
        nft::apply(Family::Ip, "keelson-policy", &planner.take_whole()).unwrap();
        for _ in 0..300 {
            for _ in 0..=random.below(3) {
                step(&mut world, &mut random, &mut planner);
            }
            let ops = planner.take();
            if let Err(error) = nft::apply(Family::Ip, "keelson-policy", &ops) {
                panic!(
                    "{error}\nSEED={seed}\n{}",
                    ops.iter().map(|op| format!("{op}\n")).collect::<String>()
                );
            }
        }
        nft::apply(Family::Ip, "keelson-policy", &planner.take_whole()).unwrap();
        nft::apply(Family::Ip, "keelson-policy", &[Op::DeleteTable]).unwrap();
    };
    std::thread::spawn(walk).join().unwrap();
}

/// KiB of this process.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// 10,000 pods of 100 namespaces under 200 policies and 20 of the cluster: a pod that joins costs its own elements. The bound on time
/// is for a debug build on a busy machine; what it is really is printed.
#[test]
fn a_pod_that_joins_a_large_cluster_is_a_small_change() {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
        join_a_large_cluster();
    })
    .join()
    .unwrap();
}

fn join_a_large_cluster() {
    let mut random = Random::new(7);
    let mut planner = Planner::new(Family::Ip);
    for n in 0..100 {
        let name = format!("ns-{n}");
        tell_namespace(&mut planner, &name, Some(&random.namespace_object(&name)));
    }
    for n in 0..200 {
        let key = (format!("ns-{}", n % 100), format!("policy-{n}"));
        let policy = random.policy(&key);
        tell_policy(&mut planner, &key, Some(&policy));
    }
    for n in 0..20 {
        let name = format!("cluster-{n}");
        tell_cluster(&mut planner, &name, Some(&random.cluster_policy(&name)));
    }
    let before = resident();
    for n in 0..10_000u32 {
        let key = (format!("ns-{}", n % 100), format!("pod-{n}"));
        let pod = random.pod_at(&key, [10, 244, (n >> 8) as u8, n as u8].into(), n % 100 == 0);
        tell_pod(&mut planner, &key, Some(&pod));
    }
    let began = Instant::now();
    nft::apply(Family::Ip, "keelson-policy", &planner.take_whole()).unwrap();
    println!(
        "10,000 pods: {} KiB; the whole table: {:?}",
        resident().saturating_sub(before),
        began.elapsed()
    );
    let (mut most, mut times, mut kernel) = (0, Vec::new(), Vec::new());
    for n in 0..200u8 {
        let key = (format!("ns-{}", n % 100), format!("late-{n}"));
        let pod = random.pod_at(&key, [10, 245, 0, n].into(), true);
        let began = Instant::now();
        tell_pod(&mut planner, &key, Some(&pod));
        let ops = planner.take();
        times.push(began.elapsed());
        let began = Instant::now();
        nft::apply(Family::Ip, "keelson-policy", &ops).unwrap();
        kernel.push(began.elapsed());
        most = most.max(ops.len());
    }
    times.sort();
    kernel.sort();
    let (median, in_kernel) = (times[times.len() / 2], kernel[kernel.len() / 2]);
    println!("a joining pod: at most {most} operations; {median:?} here, {in_kernel:?} in the kernel (medians)");
    assert!(most < 300, "{most} operations");
    assert!(median < Duration::from_secs(1), "{median:?}");
}
