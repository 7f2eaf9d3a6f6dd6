//! What suits all: of every combination of what managers could do, the best. Combinations that come to the same are followed
//! once, so that it costs no more than there are sets of nodes.

use super::{Hint, Hints, Mask, Nodes, Options, Policy};
use std::collections::BTreeSet;

/// The best way for all, by what each manager says.
pub fn merge(policy: Policy, nodes: &Nodes, options: Options, managers: &[Hints]) -> Hint {
    if policy == Policy::None {
        return Hint {
            mask: None,
            preferred: false,
        };
    }
    let mut lists = lists(managers);
    if policy == Policy::SingleNode {
        for list in &mut lists {
            list.retain(|h| h.preferred && h.mask.is_none_or(|m| m.count() == 1));
        }
    }
    let merger = Merger {
        nodes,
        closest: options.closest && policy != Policy::SingleNode,
        enough: enough(&lists),
    };
    let best = merger.best(&lists);
    match policy == Policy::SingleNode && best.mask == Some(nodes.all()) {
        true => Hint { mask: None, ..best },
        false => best,
    }
}

/// One list for each resource, and for each manager that has none.
fn lists(managers: &[Hints]) -> Vec<Vec<Hint>> {
    let mut all = Vec::new();
    for hints in managers {
        if hints.is_empty() {
            all.push(vec![Hint::ANY]);
        }
        for list in hints.values() {
            all.push(match list {
                None => vec![Hint::ANY],
                Some(none) if none.is_empty() => vec![Hint {
                    mask: None,
                    preferred: false,
                }],
                Some(some) => some.clone(),
            });
        }
    }
    all
}

/// How many nodes whoever needs most of them needs at least.
fn enough(lists: &[Vec<Hint>]) -> usize {
    let narrowest = |list: &Vec<Hint>| list.iter().filter_map(|h| h.mask).map(Mask::count).min();
    lists.iter().filter_map(narrowest).max().unwrap_or(0)
}

/// What a combination has come to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Sofar {
    mask: Mask,
    /// As long as it is preferred all have asked for this, if for anything.
    asked: Option<Mask>,
    preferred: bool,
}

impl Sofar {
    fn and(self, hint: &Hint) -> Sofar {
        let Some(mask) = hint.mask else {
            return Sofar {
                preferred: self.preferred && hint.preferred,
                ..self
            }
            .settled();
        };
        Sofar {
            mask: self.mask.and(mask),
            asked: Some(mask),
            preferred: self.preferred && hint.preferred && self.asked.is_none_or(|asked| asked == mask),
        }
        .settled()
    }

    /// What doesn't matter any more is the same in all.
    fn settled(self) -> Sofar {
        Sofar {
            asked: self.asked.filter(|_| self.preferred),
            ..self
        }
    }
}

struct Merger<'a> {
    nodes: &'a Nodes,
    closest: bool,
    enough: usize,
}

impl Merger<'_> {
    fn best(&self, lists: &[Vec<Hint>]) -> Hint {
        let all = self.nodes.all();
        let mut combinations = BTreeSet::from([Sofar {
            mask: all,
            asked: None,
            preferred: true,
        }]);
        for list in lists {
            combinations = combinations
                .iter()
                .flat_map(|s| list.iter().map(|h| s.and(h)))
                .collect();
        }
        let found = combinations.into_iter().filter(|s| s.mask.count() > 0);
        let best = found.reduce(|best, next| if self.is_better(next, best) { next } else { best });
        Hint {
            mask: Some(best.map_or(all, |b| b.mask)),
            preferred: best.is_some_and(|b| b.preferred),
        }
    }

    fn is_better(&self, next: Sofar, than: Sofar) -> bool {
        if next.preferred != than.preferred {
            return next.preferred;
        }
        let (a, b) = (next.mask.count(), than.mask.count());
        // What nobody prefers should have as many nodes as whoever needs most; rather fewer than more.
        if !next.preferred && a != b && (a <= self.enough || b <= self.enough) {
            return a <= self.enough && (b > self.enough || a > b);
        }
        match self.closest {
            true => self.nodes.is_closer(next.mask, than.mask),
            false => next.mask.is_narrower(than.mask),
        }
    }
}
