//! Cases of two and four nodes of memory: who gets what from where, and that all is as before when it is given back.

use super::policy::{Amounts, Asked, Given, MEMORY, Reuse, Static};
use crate::managers::machine::{Node, Nodes};
use crate::managers::topology::{Hint, Mask};
use std::collections::BTreeMap;

const GIB: u64 = 1 << 30;

/// Nodes of 10 GiB each, of which one GiB is kept, and one is of huge pages.
fn policy(nodes: u32) -> Static {
    let node = |id| Node {
        id,
        memory: 10 * GIB,
        hugepages: BTreeMap::from([(2048, 512)]),
        ..Node::default()
    };
    let kept = |id| (id, BTreeMap::from([(MEMORY.to_owned(), GIB)]));
    Static::new(&Nodes((0..nodes).map(node).collect()), &(0..nodes).map(kept).collect()).unwrap()
}

fn begun(policy: &Static) -> Given {
    let mut given = Given::default();
    policy.check(&mut given).unwrap();
    given
}

fn amounts(memory: u64, huge: u64) -> Amounts {
    let all = [(MEMORY, memory), ("hugepages-2Mi", huge)];
    all.into_iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(kind, bytes)| (kind.to_owned(), bytes))
        .collect()
}

fn asked<'a>(pod: &'a str, container: &'a str, memory: u64) -> Asked<'a> {
    Asked {
        pod,
        container,
        passes_on: false,
        earlier: Vec::new(),
        amounts: amounts(memory, 0),
    }
}

fn from(given: &Given, pod: &str) -> Vec<Vec<u32>> {
    let blocks = given.blocks[pod].values().flatten();
    blocks.map(|b| b.numa_affinity.clone()).collect()
}

fn near(nodes: &[u32], preferred: bool) -> Hint {
    Hint {
        mask: Some(Mask::of(nodes.iter().copied())),
        preferred,
    }
}

#[test]
fn one_node_gives_what_it_has_and_then_the_next_does() {
    let policy = policy(2);
    let mut given = begun(&policy);
    let mut reuse = Reuse::new();
    let mut give = |pod, bytes| policy.give(&mut given, &mut reuse, &asked(pod, "c", bytes), Hint::UNSAID);
    assert_eq!(give("a", 5 * GIB), Ok(true));
    assert_eq!(give("a", 5 * GIB), Ok(false), "a second time changes nothing");
    assert_eq!(give("b", 5 * GIB), Ok(true));
    let none = "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available";
    // There is enough on both together, but each gives alone.
    assert_eq!(give("c", 5 * GIB), Err(none.into()));
    assert_eq!(give("d", 3 * GIB), Ok(true));
    assert_eq!(
        (from(&given, "a"), from(&given, "b"), from(&given, "d")),
        (vec![vec![0]], vec![vec![1]], vec![vec![0]])
    );
    assert!(policy.release(&mut given, "a", "c") && !policy.release(&mut given, "a", "c"));
    policy.release(&mut given, "b", "c");
    policy.release(&mut given, "d", "c");
    assert_eq!(given, begun(&policy));
}

#[test]
fn nodes_of_a_group_give_together_only() {
    let policy = policy(4);
    let mut given = begun(&policy);
    let mut reuse = Reuse::new();
    let mut give = |pod, bytes, near| policy.give(&mut given, &mut reuse, &asked(pod, "c", bytes), near);
    assert_eq!(give("wide", 12 * GIB, Hint::UNSAID), Ok(true));
    assert_eq!(give("narrow", 8 * GIB, Hint::UNSAID), Ok(true));
    assert_eq!(give("wide too", 4 * GIB, near(&[0, 1], false)), Ok(true));
    let mixed = "[memorymanager] preferred hint violates NUMA node allocation";
    assert_eq!(give("mixed", GIB, near(&[1, 3], false)), Err(mixed.into()));
    // What was agreed upon is too little; what is wider and free is none of them.
    let none = "[memorymanager] failed to find NUMA nodes to extend the current topology hint";
    assert_eq!(give("more", 9 * GIB, near(&[2], true)), Err(none.into()));
    assert_eq!(
        (from(&given, "wide"), from(&given, "narrow")),
        (vec![vec![0, 1]], vec![vec![2]])
    );
    let hints = policy.hints(&given, &Reuse::new(), &amounts(GIB, 0)).unwrap();
    assert_eq!(hints, [near(&[3], true)]);
}

#[test]
fn what_is_agreed_upon_is_widened_where_it_is_too_little() {
    let policy = policy(2);
    let mut given = begun(&policy);
    let mut reuse = Reuse::new();
    let wide = policy.give(&mut given, &mut reuse, &asked("a", "c", 10 * GIB), near(&[1], true));
    assert_eq!(wide, Ok(true));
    assert_eq!(from(&given, "a"), [[0, 1]]);
    // A node alone would have been enough for it, but gives with the other.
    let told = policy.give(&mut given, &mut reuse, &asked("b", "c", GIB), near(&[], true));
    assert_eq!(
        told,
        Err("[memorymanager] failed to find the extended preferred hint".into())
    );
}

#[test]
fn huge_pages_are_of_the_same_nodes_and_are_no_memory() {
    let policy = policy(2);
    let mut given = begun(&policy);
    let both = Asked {
        amounts: amounts(8 * GIB, GIB),
        ..asked("a", "c", 0)
    };
    assert_eq!(
        policy.hints(&given, &Reuse::new(), &amounts(8 * GIB + 1, 0)),
        Some(vec![near(&[0, 1], true)])
    );
    assert_eq!(
        policy.give(&mut given, &mut Reuse::new(), &both, Hint::UNSAID),
        Ok(true)
    );
    let node = &given.nodes[&0];
    assert_eq!((node.number_of_assignments, node.memory_map[MEMORY].free), (2, 0));
    assert_eq!(node.memory_map["hugepages-2Mi"].free, 0);
    let again = Static::hints_again(given.of("a", "c").unwrap(), &both.amounts).unwrap();
    assert_eq!(again[MEMORY], [near(&[0], true)]);
    assert_eq!(
        Static::hints_again(given.of("a", "c").unwrap(), &amounts(8 * GIB, 0)),
        None
    );
    assert_eq!(policy.allocatable().len(), 4);
}

#[test]
fn what_init_containers_had_is_the_next_ones() {
    let policy = policy(1);
    let mut given = begun(&policy);
    let mut reuse = Reuse::new();
    let init = Asked {
        passes_on: true,
        ..asked("a", "init", 6 * GIB)
    };
    let main = |container, bytes| Asked {
        earlier: vec!["init"],
        ..asked("a", container, bytes)
    };
    for asked in [init, main("one", 4 * GIB), main("two", 3 * GIB)] {
        assert_eq!(policy.give(&mut given, &mut reuse, &asked, Hint::UNSAID), Ok(true));
    }
    assert_eq!(given.nodes[&0].memory_map[MEMORY].reserved, 7 * GIB);
    assert_eq!(given.of("a", "init").unwrap()[0].size, 0);
    assert_eq!(policy.check(&mut given.clone()), Ok(()));
    for container in ["init", "one", "two"] {
        assert!(policy.release(&mut given, "a", container));
    }
    assert_eq!(given, begun(&policy));
}

#[test]
fn another_machine_is_refused() {
    let policy = policy(2);
    let mut given = begun(&policy);
    policy
        .give(&mut given, &mut Reuse::new(), &asked("a", "c", GIB), Hint::UNSAID)
        .unwrap();
    assert_eq!(policy.check(&mut given.clone()), Ok(()));
    let differs = "[memorymanager] the expected machine state is different from the real one";
    let mut wrong = given.clone();
    wrong
        .nodes
        .get_mut(&1)
        .unwrap()
        .memory_map
        .get_mut(MEMORY)
        .unwrap()
        .system_reserved += 1;
    assert_eq!(policy.check(&mut wrong), Err(differs.into()));
    let mut lost = given.clone();
    lost.blocks.clear();
    assert_eq!(policy.check(&mut lost), Err(differs.into()));
    let mut gone = given.clone();
    gone.blocks.get_mut("a").unwrap().get_mut("c").unwrap()[0].numa_affinity = vec![7];
    assert_eq!(
        policy.check(&mut gone),
        Err("[memorymanager] (pod: a, container: c) the memory assignment uses the NUMA that does not exist".into())
    );
    let nothing = Nodes::plain(1, GIB);
    assert!(Static::new(&nothing, &BTreeMap::new()).is_err());
    let more = BTreeMap::from([(0, BTreeMap::from([(MEMORY.to_owned(), 2 * GIB)]))]);
    assert!(Static::new(&nothing, &more).is_err());
}

/// Whatever is given and taken back in whatever order: what is kept and what is free is all there is, a kubelet that starts finds the
/// same, and in the end everything is free.
#[test]
fn accounts_are_balanced() {
    let seed = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64
        | 1;
    let mut state = seed;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let policy = policy(4);
    let mut given = begun(&policy);
    for turn in 0..2000 {
        let pod = random(12).to_string();
        if given.blocks.contains_key(&pod) {
            policy.release(&mut given, &pod, "c");
        } else {
            let asked = Asked {
                amounts: amounts((1 + random(20)) * GIB / 2, random(3) * GIB / 2),
                ..asked(&pod, "c", 0)
            };
            let near = match random(3) {
                0 => Hint::UNSAID,
                _ => near(&[random(4) as u32, random(4) as u32], random(2) == 0),
            };
            let before = given.clone();
            if policy.give(&mut given, &mut Reuse::new(), &asked, near).is_err() {
                assert_eq!(given, before, "seed {seed}, turn {turn}");
            }
        }
        for account in given.nodes.values().flat_map(|n| n.memory_map.values()) {
            assert_eq!(
                account.free + account.reserved,
                account.allocatable,
                "seed {seed}, turn {turn}"
            );
        }
        assert_eq!(policy.check(&mut given.clone()), Ok(()), "seed {seed}, turn {turn}");
    }
    for pod in given.blocks.clone().into_keys() {
        policy.release(&mut given, &pod, "c");
    }
    assert_eq!(given, begun(&policy), "seed {seed}");
}
