//! CPUs from several nodes of memory, evenly, so that no node's are short for whoever comes next. Upstream's search; pure.

use super::layout::Layout;
use super::take::{Order, Taking, not_enough, packed};
use crate::managers::set::Set;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// What is wanted of a distribution.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub count: usize,
    /// How many CPUs stay together: those of a core, or one.
    pub group: usize,
    pub order: Order,
    /// Nodes of one socket are as good as one node.
    pub by_socket: bool,
}

/// The best set of nodes so far.
struct Best {
    nodes: Vec<u32>,
    /// Nodes that give what doesn't divide evenly.
    rest: Vec<u32>,
    balance: f64,
    one_socket: bool,
}

/// Takes so many of the free CPUs, from as few nodes as hold them, with equal shares of each.
pub fn across_numa(layout: &Layout, free: &Set, wish: Wish) -> Result<Set, String> {
    let Wish {
        count, group, order, ..
    } = wish;
    let group = group.max(1);
    let close = || packed(layout, free, count, order, false);
    if !count.is_multiple_of(group) {
        return close();
    }
    let taking = Taking::new(layout, free, count, order);
    if count == 0 {
        return Ok(taking.taken);
    }
    if count > taking.free.0.len() {
        return Err(not_enough(count, free.len()));
    }
    let nodes = taking.numa();
    let (least, most) = how_many(layout, &taking, count, group);
    for size in least..=most {
        if let Some(best) = best_of(layout, &taking, &nodes, size, Wish { group, ..wish }) {
            return take(layout, taking, &best, Wish { group, ..wish });
        }
    }
    close()
}

/// From how many nodes it can be had: the fewest, if they were empty, and the most that could give something.
fn how_many(layout: &Layout, taking: &Taking, count: usize, group: usize) -> (usize, usize) {
    let groups = layout.places.0.len().div_ceil(group);
    let per_node = groups.div_ceil(layout.places.numa().len().max(1)).max(1);
    let wanted = count.div_ceil(group);
    (wanted.div_ceil(per_node), wanted.min(taking.free.numa().len()))
}

fn best_of(layout: &Layout, taking: &Taking, nodes: &[u32], size: usize, wish: Wish) -> Option<Best> {
    let mut best: Option<Best> = None;
    let _all = combinations(nodes, size, &mut |combo| {
        if let Some(b) = &best
            && b.balance == 0.0
            && (!wish.by_socket || b.one_socket)
        {
            return ControlFlow::Break(());
        }
        if let Some(found) = judge(layout, taking, nodes, combo, wish) {
            let is_better = match &best {
                None => true,
                Some(b) if wish.by_socket && found.one_socket != b.one_socket => found.one_socket,
                Some(b) => found.balance < b.balance,
            };
            if is_better {
                best = Some(found);
            }
        }
        ControlFlow::Continue(())
    });
    best
}

fn free_of(taking: &Taking, node: u32) -> usize {
    taking.free.in_numa(node).len()
}

/// How well these nodes would do; `None`: not at all.
fn judge(layout: &Layout, taking: &Taking, nodes: &[u32], combo: &[u32], wish: Wish) -> Option<Best> {
    let Wish { count, group, .. } = wish;
    let free: Vec<usize> = combo.iter().map(|n| free_of(taking, *n)).collect();
    let in_groups = |n: &usize| n / group * group;
    if free.iter().map(in_groups).sum::<usize>() < count {
        return None;
    }
    let mut share = count / combo.len() / group * group;
    if wish.by_socket {
        share = free.iter().map(in_groups).fold(share, usize::min);
    }
    if free.iter().any(|n| *n < share) {
        return None;
    }
    let mut left: BTreeMap<u32, usize> = nodes.iter().map(|n| (*n, free_of(taking, *n))).collect();
    for node in combo {
        *left.entry(*node).or_default() -= share;
    }
    let rest = count - share * combo.len();
    let (balance, rest) = match rest {
        0 => (deviation(left.values()), Vec::new()),
        rest => spread_rest(&left, combo, rest, group),
    };
    let one_socket = wish.by_socket && layout.places.sockets_of(combo).len() <= 1;
    // One that leaves no balance that could be told is no better than none.
    (balance < f64::MAX || one_socket).then(|| Best {
        nodes: combo.to_vec(),
        rest,
        balance,
        one_socket,
    })
}

/// Which nodes give the rest, so that what is left is balanced best.
fn spread_rest(left: &BTreeMap<u32, usize>, combo: &[u32], rest: usize, group: usize) -> (f64, Vec<u32>) {
    let able: Vec<u32> = combo.iter().copied().filter(|n| left[n] >= group).collect();
    let (mut best, mut givers) = (f64::MAX, Vec::new());
    for size in (1..=able.len()).rev() {
        let _all = combinations(&able, size, &mut |subset| {
            let (mut left, mut rest) = (left.clone(), rest);
            if subset.iter().map(|n| left[n] / group * group).sum::<usize>() < rest {
                return ControlFlow::Continue(());
            }
            while rest > 0 {
                for node in subset {
                    let of = left.entry(*node).or_default();
                    if rest > 0 && *of >= group {
                        *of -= group;
                        rest -= group;
                    }
                }
            }
            let balance = deviation(left.values());
            if balance < best {
                (best, givers) = (balance, subset.to_vec());
            }
            ControlFlow::Continue(())
        });
    }
    (best, givers)
}

fn take(layout: &Layout, mut taking: Taking, best: &Best, wish: Wish) -> Result<Set, String> {
    let Wish {
        count, group, order, ..
    } = wish;
    let whole = count / best.nodes.len() / group * group;
    let in_groups = |n: &u32| free_of(&taking, *n) / group * group;
    let share = best.nodes.iter().map(in_groups).fold(whole, usize::min);
    for node in &best.nodes {
        let cpus = packed(layout, &taking.free.in_numa(*node), share, order, false)?;
        taking.take(&cpus);
    }
    let mut rest = count - share * best.nodes.len();
    while rest > 0 {
        let before = rest;
        for node in &best.rest {
            if rest > 0 && free_of(&taking, *node) >= group {
                let cpus = packed(layout, &taking.free.in_numa(*node), group, order, false)?;
                taking.take(&cpus);
                rest -= group;
            }
        }
        if rest == before {
            return Err(format!(
                "accounting error, not enough CPUs allocated, remaining: {rest}"
            ));
        }
    }
    Ok(taking.taken)
}

/// Calls with each choice of so many, in order.
fn combinations(of: &[u32], size: usize, call: &mut dyn FnMut(&[u32]) -> ControlFlow<()>) -> ControlFlow<()> {
    fn go(
        of: &[u32],
        size: usize,
        chosen: &mut Vec<u32>,
        call: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if size == 0 {
            return call(chosen);
        }
        for (at, id) in of.iter().enumerate().take((of.len() + 1).saturating_sub(size)) {
            chosen.push(*id);
            let flow = go(&of[at + 1..], size - 1, chosen, call);
            chosen.pop();
            flow?;
        }
        ControlFlow::Continue(())
    }
    match size {
        0 => ControlFlow::Continue(()),
        _ => go(of, size, &mut Vec::new(), call),
    }
}

/// The standard deviation, to three places.
fn deviation<'a>(values: impl Iterator<Item = &'a usize>) -> f64 {
    let values: Vec<f64> = values.map(|v| *v as f64).collect();
    let round = |v: f64| (v * 1000.0).round() / 1000.0;
    let count = values.len() as f64;
    let mean = round(values.iter().sum::<f64>() / count);
    round((values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count).sqrt())
}
