//! The static policy: containers of guaranteed pods get their memory and huge pages from nodes of memory on which so much is kept
//! for them. A node gives either to containers that have it alone, or to those of one group of nodes. Upstream's rules and words.
//! Pure: what has been given is passed in and out.

use crate::host::machine::page_size;
use crate::managers::machine;
use crate::managers::topology::{Hint, Mask};
use crate::resources::hugepages;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const MEMORY: &str = "memory";
pub const HUGE: &str = "hugepages-";

/// Bytes by resource: `memory`, `hugepages-2Mi` …
pub type Amounts = BTreeMap<String, u64>;

/// Of one kind of memory on one node, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    pub total: u64,
    pub system_reserved: u64,
    pub allocatable: u64,
    pub reserved: u64,
    pub free: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// How many blocks are from it.
    pub number_of_assignments: i64,
    pub memory_map: BTreeMap<String, Account>,
    /// The group of nodes that it gives with; itself alone if it does.
    pub cells: Vec<u32>,
}

/// Memory of one kind that a container has, from any of these nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    pub numa_affinity: Vec<u32>,
    #[serde(rename = "type")]
    pub kind: String,
    pub size: u64,
}

pub type Nodes = BTreeMap<u32, Node>;
/// By pod and container.
pub type Blocks = BTreeMap<String, BTreeMap<String, Vec<Block>>>;

/// Who has what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    pub nodes: Nodes,
    pub blocks: Blocks,
}

impl Given {
    pub fn of(&self, pod: &str, container: &str) -> Option<&[Block]> {
        self.blocks.get(pod)?.get(container).map(Vec::as_slice)
    }
}

/// What init containers of a pod had and others may have after them, by the nodes and the resource.
pub type Reuse = BTreeMap<(Mask, String), u64>;

/// One container, as the policy sees it.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    pub pod: &'a str,
    pub container: &'a str,
    /// It ends before the pod's others start: what it had is theirs then.
    pub passes_on: bool,
    /// The containers that do so before this one.
    pub earlier: Vec<&'a str>,
    pub amounts: Amounts,
}

#[derive(Clone, Debug)]
pub struct Static {
    /// The machine of which nothing is given.
    fresh: Nodes,
}

impl Static {
    /// `reserved`: by node, what is kept from containers.
    pub fn new(machine: &machine::Nodes, reserved: &BTreeMap<u32, Amounts>) -> Result<Static, String> {
        if reserved
            .values()
            .filter_map(|of| of.get(MEMORY))
            .all(|bytes| *bytes == 0)
        {
            return Err("[memorymanager] you should specify the system reserved memory".into());
        }
        let account = |node: u32, kind: &str, total: u64, elsewhere: u64| {
            let kept = reserved.get(&node).and_then(|of| of.get(kind)).copied().unwrap_or(0);
            let allocatable = total.checked_sub(kept).and_then(|left| left.checked_sub(elsewhere));
            let allocatable = allocatable.ok_or_else(|| {
                format!(
                    "[memorymanager] {kept} bytes of {kind} are reserved on NUMA node {node}, which has {}",
                    total - elsewhere.min(total)
                )
            })?;
            Ok::<_, String>(Account {
                total,
                system_reserved: kept,
                allocatable,
                reserved: 0,
                free: allocatable,
            })
        };
        let mut fresh = Nodes::new();
        for node in &machine.0 {
            let mut memory_map = BTreeMap::new();
            let mut huge = 0_u64;
            for (kib, pages) in &node.hugepages {
                let total = pages.saturating_mul(*kib).saturating_mul(1024);
                let kind = hugepages(&page_size(*kib));
                memory_map.insert(kind.clone(), account(node.id, &kind, total, 0)?);
                huge = huge.saturating_add(total);
            }
            memory_map.insert(MEMORY.into(), account(node.id, MEMORY, node.memory, huge)?);
            let node_state = Node {
                number_of_assignments: 0,
                memory_map,
                cells: vec![node.id],
            };
            fresh.insert(node.id, node_state);
        }
        Ok(Static { fresh })
    }

    /// What was given before has to be of this machine and these settings; nothing given is begun with.
    pub fn check(&self, given: &mut Given) -> Result<(), String> {
        if given.nodes.is_empty() {
            if !given.blocks.is_empty() {
                return Err("[memorymanager] machine state can not be empty when it has memory assignments".into());
            }
            given.nodes = self.fresh.clone();
            return Ok(());
        }
        let mut expected = self.fresh.clone();
        for (pod, containers) in &given.blocks {
            for (container, block) in containers.iter().flat_map(|(c, of)| of.iter().map(move |b| (c, b))) {
                let wrong = |what: &str| {
                    format!("[memorymanager] (pod: {pod}, container: {container}) the memory assignment uses {what}")
                };
                for node in &block.numa_affinity {
                    let node = expected
                        .get(node)
                        .ok_or_else(|| wrong("the NUMA that does not exist"))?;
                    if !node.memory_map.contains_key(&block.kind) {
                        return Err(wrong("memory resource that does not exist"));
                    }
                }
                take(&mut expected, &block.numa_affinity, &block.kind, block.size);
            }
        }
        match are_alike(&given.nodes, &expected) {
            true => Ok(()),
            false => Err("[memorymanager] the expected machine state is different from the real one".into()),
        }
    }

    /// From which nodes so much could be had; `None`: from none.
    pub fn hints(&self, given: &Given, reuse: &Reuse, amounts: &Amounts) -> Option<Vec<Hint>> {
        let nodes = &given.nodes;
        let ids: Vec<u32> = nodes.keys().copied().collect();
        let mut fewest = ids.len();
        let mut found = Vec::new();
        Mask::each(&ids, &mut |mask| {
            let sum = |kind: &str, of: fn(&Account) -> u64| {
                let all = mask.nodes().filter_map(|id| nodes.get(&id)?.memory_map.get(kind));
                all.map(of).fold(0, u64::saturating_add)
            };
            if amounts.iter().any(|(kind, size)| sum(kind, |a| a.allocatable) < *size) {
                return;
            }
            fewest = fewest.min(mask.count());
            let has = |kind: &str| reuse.get(&(mask, kind.to_owned())).copied().unwrap_or(0);
            let short = |(kind, size): (&String, &u64)| sum(kind, |a| a.free).saturating_add(has(kind)) < *size;
            if !mixes(nodes, mask) && !is_in_a_group(nodes, mask) && !amounts.iter().any(short) {
                found.push(mask);
            }
        });
        let hint = |mask: Mask| Hint {
            mask: Some(mask),
            preferred: mask.count() == fewest,
        };
        Some(found.into_iter().map(hint).collect::<Vec<_>>()).filter(|all| !all.is_empty())
    }

    /// What a container's hints are that has its memory already; `None`: it asks for something else by now, and all is the same.
    pub fn hints_again(blocks: &[Block], amounts: &Amounts) -> Option<BTreeMap<String, Vec<Hint>>> {
        let same = |b: &Block| amounts.get(&b.kind) == Some(&b.size);
        if blocks.len() != amounts.len() || !blocks.iter().all(same) {
            return None;
        }
        let hint = |b: &Block| Hint {
            mask: Some(Mask::of(b.numa_affinity.iter().copied())),
            preferred: true,
        };
        Some(blocks.iter().map(|b| (b.kind.clone(), vec![hint(b)])).collect())
    }

    /// Gives a container what it asks for; true when that is news. `near`: what all managers have agreed upon.
    pub fn give(&self, given: &mut Given, reuse: &mut Reuse, asked: &Asked, near: Hint) -> Result<bool, String> {
        if let Some(had) = given.of(asked.pod, asked.container) {
            pass_on(reuse, asked.passes_on, had);
            return Ok(false);
        }
        let mask = self.choose(given, reuse, &asked.amounts, near)?;
        let nodes: Vec<u32> = mask.nodes().collect();
        let mut blocks = Vec::new();
        for (kind, size) in &asked.amounts {
            let had = reuse.get(&(mask, kind.clone())).copied().unwrap_or(0);
            take(&mut given.nodes, &nodes, kind, size.saturating_sub(had));
            blocks.push(Block {
                numa_affinity: nodes.clone(),
                kind: kind.clone(),
                size: *size,
            });
        }
        pass_on(reuse, asked.passes_on, &blocks);
        let of_pod = given.blocks.entry(asked.pod.to_owned()).or_default();
        for block in &blocks {
            shrink(of_pod, &asked.earlier, block);
        }
        of_pod.insert(asked.container.to_owned(), blocks);
        Ok(true)
    }

    fn choose(&self, given: &Given, reuse: &Reuse, amounts: &Amounts, near: Hint) -> Result<Mask, String> {
        let mut best = near;
        let all = self.hints(given, reuse, amounts);
        let mut mask = match best.mask {
            Some(mask) => mask,
            None => {
                const NONE: &str = "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available";
                let (mask, found) = best_of(all.iter().flatten()).ok_or(NONE)?;
                if best.preferred && !found.preferred {
                    return Err("[memorymanager] failed to find the default preferred hint".into());
                }
                best = found;
                mask
            }
        };
        let free = |kind: &String| {
            let nodes = mask.nodes().filter_map(|id| given.nodes.get(&id)?.memory_map.get(kind));
            nodes.map(|a| a.free).fold(0, u64::saturating_add)
        };
        if amounts.iter().any(|(kind, size)| free(kind) < *size) {
            // The agreement may be on a part of what was proposed.
            const NONE: &str = "[memorymanager] failed to find NUMA nodes to extend the current topology hint";
            let wider = all
                .iter()
                .flatten()
                .filter(|h| h.mask.is_some_and(|m| m.and(mask) == mask));
            let (found, hint) = best_of(wider).ok_or(NONE)?;
            if best.preferred && !hint.preferred {
                return Err("[memorymanager] failed to find the extended preferred hint".into());
            }
            mask = found;
        }
        match mixes(&given.nodes, mask) || is_in_a_group(&given.nodes, mask) {
            true => Err("[memorymanager] preferred hint violates NUMA node allocation".into()),
            false => Ok(mask),
        }
    }

    /// Takes back what a container had; false: it had nothing.
    pub fn release(&self, given: &mut Given, pod: &str, container: &str) -> bool {
        let Some(of_pod) = given.blocks.get_mut(pod) else {
            return false;
        };
        let Some(blocks) = of_pod.remove(container) else {
            return false;
        };
        if of_pod.is_empty() {
            given.blocks.remove(pod);
        }
        blocks.iter().for_each(|block| give_back(&mut given.nodes, block));
        true
    }

    /// What may be given at all, a block for each node and kind.
    pub fn allocatable(&self) -> Vec<Block> {
        let all = self
            .fresh
            .iter()
            .flat_map(|(id, node)| node.memory_map.iter().map(move |(kind, a)| (*id, kind, a)));
        all.filter(|(.., a)| a.allocatable > 0)
            .map(|(id, kind, a)| Block {
                numa_affinity: vec![id],
                kind: kind.clone(),
                size: a.allocatable,
            })
            .collect()
    }
}

/// Whether several nodes are asked for of which one gives alone, or with others.
fn mixes(nodes: &Nodes, mask: Mask) -> bool {
    let used = |id: u32| nodes.get(&id).filter(|n| n.number_of_assignments > 0);
    let other = |n: &Node| n.cells.len() == 1 || Mask::of(n.cells.iter().copied()) != mask;
    mask.count() > 1 && mask.nodes().filter_map(used).any(other)
}

/// Whether one node is asked for alone that gives with others.
fn is_in_a_group(nodes: &Nodes, mask: Mask) -> bool {
    mask.count() == 1 && mask.nodes().filter_map(|id| nodes.get(&id)).any(|n| n.cells.len() > 1)
}

/// The narrowest, preferred ones first.
fn best_of<'a>(hints: impl Iterator<Item = &'a Hint>) -> Option<(Mask, Hint)> {
    let masks = hints.filter_map(|h| Some((h.mask?, *h)));
    masks.reduce(|best, next| {
        let better = match (next.1.preferred, best.1.preferred) {
            (true, false) => true,
            (false, true) => false,
            _ => next.0.is_narrower(best.0),
        };
        if better { next } else { best }
    })
}

/// Takes so much from these nodes, one after the other.
fn take(nodes: &mut Nodes, ids: &[u32], kind: &str, size: u64) {
    let mut wanted = size;
    for id in ids {
        let Some(node) = nodes.get_mut(id) else { continue };
        node.number_of_assignments += 1;
        node.cells = ids.to_vec();
        if let Some(account) = node.memory_map.get_mut(kind) {
            let part = wanted.min(account.free);
            account.free -= part;
            account.reserved += part;
            wanted -= part;
        }
    }
}

fn give_back(nodes: &mut Nodes, block: &Block) {
    let mut left = block.size;
    for id in &block.numa_affinity {
        let Some(node) = nodes.get_mut(id) else { continue };
        node.number_of_assignments -= 1;
        if node.number_of_assignments == 0 {
            node.cells = vec![*id];
        }
        if let Some(account) = node.memory_map.get_mut(&block.kind) {
            let part = left.min(account.reserved);
            account.reserved -= part;
            account.free += part;
            left -= part;
        }
    }
}

/// What a container that ends before others has is theirs then; what one of the others has is no longer.
fn pass_on(reuse: &mut Reuse, passes_on: bool, blocks: &[Block]) {
    for block in blocks {
        let key = (Mask::of(block.numa_affinity.iter().copied()), block.kind.clone());
        match passes_on {
            true => {
                let has = reuse.entry(key).or_default();
                *has = block.size.max(*has);
            }
            false => {
                if let Some(has) = reuse.get_mut(&key) {
                    *has = has.saturating_sub(block.size);
                }
            }
        }
    }
}

/// What a container has from those that ended before it is not counted with them, too.
fn shrink(of_pod: &mut BTreeMap<String, Vec<Block>>, earlier: &[&str], block: &Block) {
    let mut size = block.size;
    let mask = |b: &Block| Mask::of(b.numa_affinity.iter().copied());
    for container in earlier {
        let blocks = of_pod.get_mut(*container).into_iter().flatten();
        for had in blocks.filter(|b| b.kind == block.kind && mask(b) == mask(block)) {
            let part = size.min(had.size);
            had.size -= part;
            size -= part;
        }
    }
}

/// Whether two accounts of a machine say the same: which node of a group has given is all the same.
fn are_alike(one: &Nodes, other: &Nodes) -> bool {
    let sorted = |node: &Node| Mask::of(node.cells.iter().copied());
    let sums = |all: &Nodes, cells: &[u32], kind: &str| {
        let of = cells.iter().filter_map(|id| all.get(id)?.memory_map.get(kind));
        of.fold((0_u64, 0_u64), |(free, kept), a| {
            (free.saturating_add(a.free), kept.saturating_add(a.reserved))
        })
    };
    one.len() == other.len()
        && one.iter().all(|(id, a)| {
            let Some(b) = other.get(id) else { return false };
            let kinds = a.memory_map.iter().all(|(kind, a_of)| {
                let Some(b_of) = b.memory_map.get(kind) else {
                    return false;
                };
                let fixed = |a: &Account| (a.total, a.system_reserved, a.allocatable);
                fixed(a_of) == fixed(b_of) && sums(one, &a.cells, kind) == sums(other, &a.cells, kind)
            });
            a.number_of_assignments == b.number_of_assignments
                && sorted(a) == sorted(b)
                && a.memory_map.len() == b.memory_map.len()
                && kinds
        })
}
