//! From which nodes of memory a container, or a pod, gets all that it asks for: managers say what each could do, and a policy
//! finds what suits all. Pure.

mod merge;
mod options;
#[cfg(test)]
mod tables;

use std::collections::BTreeMap;

pub use merge::merge;
pub use options::{Options, truth};

/// Nodes of memory, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mask(u64);

impl Mask {
    /// Nodes beyond the 64th have no bit.
    pub fn of(nodes: impl IntoIterator<Item = u32>) -> Mask {
        Mask(nodes.into_iter().filter(|n| *n < 64).fold(0, |all, n| all | 1 << n))
    }

    pub fn has(self, node: u32) -> bool {
        node < 64 && self.0 & (1 << node) != 0
    }

    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    pub fn and(self, other: Mask) -> Mask {
        Mask(self.0 & other.0)
    }

    pub fn nodes(self) -> impl Iterator<Item = u32> {
        (0..64).filter(move |n| self.has(*n))
    }

    /// Fewer nodes, or as many with lower numbers.
    pub fn is_narrower(self, other: Mask) -> bool {
        (self.count(), self) < (other.count(), other)
    }

    /// Calls with every choice of these nodes, small ones first.
    pub fn each(nodes: &[u32], call: &mut dyn FnMut(Mask)) {
        fn go(nodes: &[u32], size: usize, chosen: u64, call: &mut dyn FnMut(Mask)) {
            if size == 0 {
                return call(Mask(chosen));
            }
            for (at, node) in nodes.iter().enumerate() {
                go(&nodes[at + 1..], size - 1, chosen | Mask::of([*node]).0, call);
            }
        }
        for size in 1..=nodes.len() {
            go(nodes, size, 0, call);
        }
    }
}

/// One way to get something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hint {
    /// From these nodes; `None`: from any.
    pub mask: Option<Mask>,
    /// It couldn't be from fewer.
    pub preferred: bool,
}

impl Hint {
    pub const ANY: Hint = Hint {
        mask: None,
        preferred: true,
    };
    /// Nobody was asked.
    pub const UNSAID: Hint = Hint {
        mask: None,
        preferred: false,
    };
}

/// By resource, the ways to get it. `None`: it is all the same; an empty list: there is none.
pub type Hints = BTreeMap<String, Option<Vec<Hint>>>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    #[default]
    None,
    BestEffort,
    Restricted,
    SingleNode,
}

impl Policy {
    pub const ALL: [Policy; 4] = [Policy::None, Policy::BestEffort, Policy::Restricted, Policy::SingleNode];

    pub fn name(self) -> &'static str {
        match self {
            Policy::None => "none",
            Policy::BestEffort => "best-effort",
            Policy::Restricted => "restricted",
            Policy::SingleNode => "single-numa-node",
        }
    }

    /// Whether a pod for which this was found is taken.
    pub fn admits(self, hint: Hint) -> bool {
        match self {
            Policy::None | Policy::BestEffort => true,
            Policy::Restricted | Policy::SingleNode => hint.preferred,
        }
    }
}

/// For whom nodes are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    #[default]
    Container,
    Pod,
}

impl Scope {
    pub fn name(self) -> &'static str {
        match self {
            Scope::Container => "container",
            Scope::Pod => "pod",
        }
    }
}

/// The machine's nodes of memory, and how far from each other they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    pub ids: Vec<u32>,
    pub distances: BTreeMap<u32, Vec<u64>>,
}

impl Nodes {
    pub fn all(&self) -> Mask {
        Mask::of(self.ids.iter().copied())
    }

    fn distance(&self, of: Mask) -> f64 {
        let (mut sum, mut count) = (0.0, 0.0);
        for one in of.nodes() {
            for other in of.nodes() {
                let distance = self.distances.get(&one).and_then(|d| d.get(other as usize));
                sum += distance.copied().unwrap_or(0) as f64;
                count += 1.0;
            }
        }
        if count == 0.0 { 0.0 } else { sum / count }
    }

    /// Fewer nodes, or as many that are closer to each other.
    fn is_closer(&self, one: Mask, other: Mask) -> bool {
        let (a, b) = (self.distance(one), self.distance(other));
        match one.count() == other.count() && a != b {
            true => a < b,
            false => one.is_narrower(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As on machines whose devices have memory of their own.
    #[test]
    fn a_node_of_a_high_number_has_no_bit() {
        let mut all = Vec::new();
        Mask::each(&[0, 255], &mut |mask| all.push(mask));
        assert_eq!(all, [Mask::of([0]), Mask::default(), Mask::of([0])]);
    }
}
