//! Upstream's cases, as data: machines, what is free, and what is taken.

use super::distribute::{Wish, across_numa};
use super::layout::{Layout, Place, Places};
use super::options::Options;
use super::policy::{Asked, Given, Refusal, Static};
use super::take::{Order, packed};
use crate::managers::set::Set;
use crate::managers::topology::{Hint, Mask};

/// A machine of upstream's tests.
pub fn machine(name: &str) -> Layout {
    let mut lines = include_str!("testdata/layouts.txt").lines();
    let head = lines.find(|l| l.split(' ').next() == Some(name)).unwrap();
    let numbers: Vec<usize> = head.split(' ').skip(1).map(|n| n.parse().unwrap()).collect();
    let mut places = Places::default();
    for word in lines.take_while(|l| l.starts_with(' ')).flat_map(str::split_whitespace) {
        let (cpu, place) = word.split_once(':').unwrap();
        let parts: Vec<u32> = place.split('/').map(|n| n.parse().unwrap()).collect();
        let place = Place {
            core: parts[0],
            socket: parts[1],
            numa: parts[2],
            uncore: parts[3],
        };
        places.0.insert(cpu.parse().unwrap(), place);
    }
    Layout {
        places,
        cpus: numbers[0],
        cores: numbers[1],
        sockets: numbers[2],
        numa: numbers[3],
        uncores: numbers[4],
    }
}

pub fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = text.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
    lines.map(|l| l.split('|').map(str::trim).collect())
}

pub fn set(text: &str) -> Set {
    Set::parse(text).unwrap()
}

fn shown(taken: Result<Set, String>) -> String {
    taken.map_or_else(|e| e, |set| set.to_string())
}

#[test]
fn cpus_are_taken_as_close_together_as_can_be() {
    let mut count = 0;
    for row in rows(include_str!("testdata/packed.txt")) {
        let [layout, how, free, wanted, taken] = row[..] else {
            panic!("{row:?}")
        };
        let order = if how.contains("spread") {
            Order::Spread
        } else {
            Order::Packed
        };
        let got = packed(
            &machine(layout),
            &set(free),
            wanted.parse().unwrap(),
            order,
            how.contains("cache"),
        );
        assert_eq!(shown(got), taken, "{row:?}");
        count += 1;
    }
    assert!(count > 25, "{count}");
}

#[test]
fn cpus_are_taken_evenly_from_nodes() {
    let mut count = 0;
    for row in rows(include_str!("testdata/distributed.txt")) {
        let [layout, free, wanted, group, taken] = row[..] else {
            panic!("{row:?}")
        };
        let wish = Wish {
            count: wanted.parse().unwrap(),
            group: group.parse().unwrap(),
            order: Order::Packed,
            by_socket: false,
        };
        let got = across_numa(&machine(layout), &set(free), wish);
        assert_eq!(shown(got), taken, "{row:?}");
        count += 1;
    }
    assert!(count > 25, "{count}");
}

/// What containers have, as `pod/container=set …`.
fn given(text: &str, shared: &str) -> Given {
    let mut given = Given {
        shared: set(shared),
        ..Given::default()
    };
    for word in text.split_whitespace().filter(|w| *w != "-") {
        let (who, cpus) = word.split_once('=').unwrap();
        let (pod, container) = who.split_once('/').unwrap();
        let of_pod = given.exclusive.entry(pod.to_owned()).or_default();
        of_pod.insert(container.to_owned(), set(cpus));
    }
    given
}

#[test]
fn containers_get_what_upstreams_policy_gives() {
    let mut count = 0;
    for row in rows(include_str!("testdata/static.txt")) {
        let [layout, options, reserved, these, had, shared, asks, wanted] = row[..] else {
            panic!("{row:?}")
        };
        let has = |name| options.split('+').any(|o| o == name);
        let options = Options {
            full_cores: has("full"),
            across_numa: has("numa"),
            by_socket: has("socket"),
            across_cores: has("cores"),
            strict: has("strict"),
            by_cache: has("cache"),
        };
        let these = Some(set(these)).filter(|s| !s.is_empty());
        let policy = Static::new(machine(layout), options, reserved.parse().unwrap(), these).unwrap();
        let mut given = given(had, shared);
        let (who, number) = asks.split_once(' ').unwrap();
        let (pod, container) = who.split_once('/').unwrap();
        let asked = Asked {
            pod,
            container,
            passes_on: false,
            count: number.parse().unwrap(),
        };
        let got = match policy.give(&mut given, &mut Set::new(), asked, None) {
            Err(Refusal::Alignment(e) | Refusal::Other(e)) => format!("! {e}"),
            Ok(_) => given.of(pod, container).map_or("-".into(), Set::to_string),
        };
        assert_eq!(got, wanted, "{row:?}");
        assert!(given.shared.both(&given.taken()).is_empty(), "{row:?}");
        count += 1;
    }
    assert!(count >= 20, "{count}");
}

/// What was given before → what is wrong with it. Upstream's cases, and one in which it doesn't take its own file.
#[test]
fn what_was_given_has_to_be_of_this_machine() {
    let two = "DualSocketHT";
    for (strict, count, had, shared, wanted) in [
        (false, 1, "-", "", "0-11"),
        (true, 2, "-", "", "1-5,7-11"),
        (false, 1, "-", "0-11", "0-11"),
        (false, 1, "p/c=0", "", "! default cpuset cannot be empty"),
        (true, 2, "p/c=1-5 q/c=7-11", "", ""),
        (
            false,
            1,
            "p/c=0",
            "1-11",
            "! not all reserved cpus: \"0\" are present in defaultCpuSet: \"1-11\"",
        ),
        (
            true,
            2,
            "-",
            "0-11",
            "! some of strictly reserved cpus: \"0,6\" are present in defaultCpuSet: \"0-11\"",
        ),
        (
            false,
            1,
            "p/c=0-2",
            "0,2-11",
            "! pod: p, container: c cpuset: \"0-2\" overlaps with default cpuset \"0,2-11\"",
        ),
        (
            false,
            1,
            "p/c=1-2",
            "0,3-4",
            "! current set of available CPUs \"0-11\" doesn't match with CPUs in state \"0-4\"",
        ),
        (
            false,
            1,
            "p/c=1-2",
            "0,3-12",
            "! current set of available CPUs \"0-11\" doesn't match with CPUs in state \"0-12\"",
        ),
    ] {
        let options = Options {
            strict,
            ..Options::default()
        };
        let policy = Static::new(machine(two), options, count, None).unwrap();
        let mut given = given(had, shared);
        let got = match policy.check(&mut given) {
            Ok(()) => given.shared.to_string(),
            Err(e) => format!("! {e}"),
        };
        assert_eq!(got, wanted, "{had} {shared}");
    }
}

#[test]
fn what_is_near_is_given_first() {
    let policy = Static::new(machine("DualSocketHT"), Options::default(), 0, None).unwrap();
    let given = given("-", "0-11");
    for (count, near, wanted) in [
        (2, None, "0,6"),
        (2, Some(0), "0,6"),
        (2, Some(1), "1,7"),
        (8, Some(0), "0-2,4,6-8,10"),
        (8, Some(1), "0-1,3,5-7,9,11"),
    ] {
        let near = near.map(|n| Mask::of([n]));
        assert_eq!(
            shown(policy.choose(&given, &Set::new(), count, near)),
            wanted,
            "{count} {near:?}"
        );
    }
}

/// What init containers had is used again, but for sidecars'; what others of the pod have stays theirs when one goes.
#[test]
fn cpus_are_used_again_within_a_pod() {
    let policy = Static::new(machine("SingleSocketHT"), Options::default(), 1, None).unwrap();
    let (mut given, mut reuse) = (given("-", "0-7"), Set::new());
    for (container, passes_on, count, wanted) in [
        ("init", true, 4, "1-2,5-6"),
        ("sidecar", false, 1, "4"),
        ("main", false, 2, "1,5"),
        ("last", false, 1, "2"),
    ] {
        let asked = Asked {
            pod: "p",
            container,
            passes_on,
            count,
        };
        assert_eq!(
            policy.give(&mut given, &mut reuse, asked, None),
            Ok(true),
            "{container}"
        );
        assert_eq!(given.of("p", container).unwrap().to_string(), wanted, "{container}");
        // A second time it is what it has.
        let mut again = reuse.clone();
        assert_eq!(
            policy.give(&mut given, &mut again, asked, None),
            Ok(false),
            "{container}"
        );
    }
    assert!(policy.release(&mut given, "p", "init"));
    assert_eq!(given.shared.to_string(), "0,3,6-7");
    for container in ["sidecar", "main", "last"] {
        assert!(policy.release(&mut given, "p", container));
    }
    assert_eq!((given.shared.to_string().as_str(), given.exclusive.len()), ("0-7", 0));
    assert!(!policy.release(&mut given, "p", "last"));
}

/// Two nodes of three cores: how many CPUs, what is free, what must be among them → nodes. Upstream's cases.
#[test]
fn hints_are_upstreams() {
    let layout = Layout::of(Places(
        (0..12)
            .map(|cpu| {
                let (core, numa) = (cpu % 6, cpu % 6 / 3);
                let socket = numa;
                (
                    cpu,
                    Place {
                        core,
                        socket,
                        numa,
                        uncore: 1,
                    },
                )
            })
            .collect(),
    ));
    let policy = |by_socket| {
        let options = Options {
            by_socket,
            ..Options::default()
        };
        Static::new(layout.clone(), options, 0, None).unwrap()
    };
    for (count, free, must, by_socket, wanted) in [
        (2, "0-11", "", false, "0! 1! 0.1"),
        (5, "0-11", "", false, "0! 1! 0.1"),
        (7, "0-11", "", false, "0.1!"),
        (11, "0-11", "", false, "0.1!"),
        (2, "3-5,9-11", "", false, "1! 0.1"),
        (6, "0-10", "", false, "0! 0.1"),
        (4, "0-3", "", false, "0.1"),
        (2, "0,6", "", false, "0! 0.1"),
        (4, "1,2,4,5,7,8,10,11", "3,9", false, "1! 0.1"),
        (6, "1,2,4,5,7,8,10,11", "3,9", false, "1! 0.1"),
        (2, "0-11", "", true, "0! 1! 0.1"),
        (13, "0-11", "", false, ""),
    ] {
        let hints = policy(by_socket).hints(&set(free), &set(must), count);
        let one = |h: &Hint| {
            let nodes: Vec<String> = h.mask.unwrap().nodes().map(|n| n.to_string()).collect();
            format!("{}{}", nodes.join("."), if h.preferred { "!" } else { "" })
        };
        let got: Vec<String> = hints.iter().map(one).collect();
        assert_eq!(got.join(" "), wanted, "{count} of {free}");
    }
}

#[test]
fn pods_get_as_few_caches_as_upstream_gives() {
    let mut count = 0;
    for row in rows(include_str!("testdata/caches.txt")) {
        let [layout, options, reserved, these, shared, asks, wanted] = row[..] else {
            panic!("{row:?}")
        };
        let options = Options {
            full_cores: options.contains("full"),
            strict: options.contains("strict"),
            by_cache: options.contains("cache"),
            ..Options::default()
        };
        let layout = machine(layout);
        let policy = Static::new(layout.clone(), options, reserved.parse().unwrap(), Some(set(these))).unwrap();
        let (mut given, mut reuse) = (given("-", shared), Set::new());
        for (at, count) in asks.split(' ').enumerate() {
            let container = format!("c{at}");
            let asked = Asked {
                pod: "p",
                container: &container,
                passes_on: false,
                count: count.parse().unwrap(),
            };
            policy.give(&mut given, &mut reuse, asked, None).unwrap();
        }
        let caches = || {
            given
                .taken()
                .iter()
                .map(|cpu| layout.places.0[&cpu].uncore)
                .collect::<Set>()
        };
        let got = match wanted.starts_with("caches") {
            true => format!("caches {}", caches()),
            false => given.of("p", "c0").unwrap().to_string(),
        };
        assert_eq!(got, wanted, "{row:?}");
        count += 1;
    }
    assert!(count > 20, "{count}");
}
