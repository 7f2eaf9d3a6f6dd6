//! A whole table as plain data, and one that remembers what changed in it.

use super::{Base, Element, Expr, Op, Set, between, replace};
use std::collections::{BTreeMap, BTreeSet};

/// A whole table. Equal facts give equal rule sets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ruleset {
    pub chains: BTreeMap<String, Chain>,
    pub sets: BTreeMap<String, SetState>,
    /// Those that rules name, so that they stand while a rule does.
    pub counters: BTreeSet<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chain {
    pub base: Option<Base>,
    pub rules: Vec<Vec<Expr>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SetState {
    pub set: Set,
    pub elements: BTreeSet<Element>,
}

impl Chain {
    fn counters(&self) -> impl Iterator<Item = &String> {
        self.rules.iter().flatten().filter_map(|e| match e {
            Expr::Counter(name) => Some(name),
            _ => None,
        })
    }
}

impl SetState {
    pub fn empty(set: Set) -> SetState {
        SetState {
            set,
            elements: BTreeSet::new(),
        }
    }
}

/// A table as it is wanted, with what was touched in it since [`Table::take`]: a change costs what it touches, not what the
/// table holds.
#[derive(Debug, Default)]
pub struct Table {
    wanted: Ruleset,
    /// As they were before they were touched.
    chains: BTreeMap<String, Option<Chain>>,
    sets: BTreeMap<String, Before>,
    /// How many statements name each counter.
    named: BTreeMap<String, usize>,
    /// Whether counters that came or went were there.
    counters: BTreeMap<String, bool>,
}

/// What a touched set was.
#[derive(Debug)]
enum Before {
    Absent,
    /// It went, and perhaps came again.
    Whole(SetState),
    /// It stayed: whether it had the elements that were touched.
    Elements(BTreeMap<Element, bool>),
}

impl Table {
    pub fn wanted(&self) -> &Ruleset {
        &self.wanted
    }

    /// The chain as it is to be; `None`: gone.
    pub fn set_chain(&mut self, name: &str, chain: Option<Chain>) {
        let old = self.wanted.chains.get(name);
        if old == chain.as_ref() {
            return;
        }
        self.chains.entry(name.into()).or_insert_with(|| old.cloned());
        let coming: Vec<String> = chain.iter().flat_map(|c| c.counters().cloned()).collect();
        let old = match chain {
            Some(chain) => self.wanted.chains.insert(name.into(), chain),
            None => self.wanted.chains.remove(name),
        };
        coming.into_iter().for_each(|counter| self.name_counter(counter));
        old.iter()
            .flat_map(Chain::counters)
            .for_each(|counter| self.forget_counter(counter));
    }

    fn name_counter(&mut self, name: String) {
        if self.wanted.counters.insert(name.clone()) {
            self.counters.entry(name.clone()).or_insert(false);
        }
        *self.named.entry(name).or_default() += 1;
    }

    fn forget_counter(&mut self, name: &str) {
        let uses = self.named.get_mut(name).map(|n| {
            *n -= 1;
            *n
        });
        if uses == Some(0) {
            self.named.remove(name);
            self.wanted.counters.remove(name);
            self.counters.entry(name.into()).or_insert(true);
        }
    }

    /// A new set with these elements, unless there is one of that name.
    pub fn add_set(&mut self, set: Set, elements: BTreeSet<Element>) {
        if !self.wanted.sets.contains_key(&set.name) {
            self.sets.entry(set.name.clone()).or_insert(Before::Absent);
            self.wanted.sets.insert(set.name.clone(), SetState { set, elements });
        }
    }

    pub fn remove_set(&mut self, name: &str) {
        let Some(mut old) = self.wanted.sets.remove(name) else {
            return;
        };
        match self.sets.remove(name) {
            Some(before @ (Before::Absent | Before::Whole(_))) => {
                self.sets.insert(name.into(), before);
            }
            touched => {
                if let Some(Before::Elements(touched)) = touched {
                    for (element, was_there) in touched {
                        match was_there {
                            true => old.elements.insert(element),
                            false => old.elements.remove(&element),
                        };
                    }
                }
                self.sets.insert(name.into(), Before::Whole(old));
            }
        }
    }

    /// Into a set that is there.
    pub fn add_element(&mut self, set: &str, element: Element) {
        if let Some(state) = self.wanted.sets.get_mut(set)
            && state.elements.insert(element.clone())
        {
            self.touch(set, element, false);
        }
    }

    pub fn remove_element(&mut self, set: &str, element: &Element) {
        if let Some(state) = self.wanted.sets.get_mut(set)
            && state.elements.remove(element)
        {
            self.touch(set, element.clone(), true);
        }
    }

    fn touch(&mut self, set: &str, element: Element, was_there: bool) {
        let before = self.sets.entry(set.into());
        if let Before::Elements(touched) = before.or_insert_with(|| Before::Elements(BTreeMap::new())) {
            touched.entry(element).or_insert(was_there);
        }
    }

    /// The operations that lead here from where the last call left off.
    pub fn take(&mut self) -> Vec<Op> {
        let (mut before, mut after) = (Ruleset::default(), Ruleset::default());
        for (name, old) in std::mem::take(&mut self.chains) {
            if let Some(now) = self.wanted.chains.get(&name) {
                after.chains.insert(name.clone(), now.clone());
            }
            before.chains.extend(old.map(|old| (name, old)));
        }
        for (name, old) in std::mem::take(&mut self.sets) {
            let now = self.wanted.sets.get(&name);
            match (old, now) {
                (Before::Elements(touched), Some(now)) => {
                    let of = |elements| SetState {
                        set: now.set.clone(),
                        elements,
                    };
                    let there = touched.iter().filter(|(_, was)| **was).map(|(e, _)| e.clone());
                    before.sets.insert(name.clone(), of(there.collect()));
                    let here = touched.into_keys().filter(|e| now.elements.contains(e));
                    after.sets.insert(name, of(here.collect()));
                }
                (old, now) => {
                    if let Before::Whole(old) = old {
                        before.sets.insert(name.clone(), old);
                    }
                    after.sets.extend(now.map(|now| (name, now.clone())));
                }
            }
        }
        for (name, was_there) in std::mem::take(&mut self.counters) {
            if was_there {
                before.counters.insert(name.clone());
            }
            if self.wanted.counters.contains(&name) {
                after.counters.insert(name);
            }
        }
        between(&before, &after)
    }

    /// The whole table anew; nothing is pending after it.
    pub fn take_whole(&mut self) -> Vec<Op> {
        self.chains.clear();
        self.sets.clear();
        self.counters.clear();
        replace(&self.wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::{Datum, KeyType};

    fn ports() -> Set {
        Set {
            name: "ports".into(),
            key: vec![KeyType::Port],
            data: None,
            intervals: false,
            dynamic_timeout_ms: None,
        }
    }

    fn port(n: u16) -> Element {
        Element::of(vec![Datum::Port(n)])
    }

    fn taken(table: &mut Table) -> Vec<String> {
        table.take().iter().map(Op::to_string).collect()
    }

    #[test]
    fn only_what_is_different_in_the_end_is_taken() {
        let mut table = Table::default();
        table.add_set(ports(), [port(1), port(2)].into());
        assert_eq!(taken(&mut table).len(), 3);
        table.add_element("ports", port(3));
        table.remove_element("ports", &port(1));
        table.remove_element("ports", &port(3));
        assert_eq!(taken(&mut table), ["delete element ports { 1 }"]);
        table.add_element("ports", port(4));
        table.remove_set("ports");
        table.add_set(ports(), [port(2), port(5)].into());
        assert_eq!(taken(&mut table), ["add element ports { 5 }"], "gone and come again");
        table.remove_element("ports", &port(5));
        table.remove_set("ports");
        assert_eq!(taken(&mut table).len(), 3, "what was there before is deleted, 5 too");
        table.set_chain("a", Some(Chain::default()));
        table.set_chain("a", None);
        assert!(taken(&mut table).is_empty());
    }

    #[test]
    fn a_counter_stands_while_a_rule_has_it() {
        let mut table = Table::default();
        let counting = |names: &[&str]| {
            let rules = names.iter().map(|n| vec![Expr::Counter(n.to_string())]).collect();
            Some(Chain { base: None, rules })
        };
        table.set_chain("a", counting(&["x", "x"]));
        table.set_chain("b", counting(&["x", "y"]));
        let made = taken(&mut table);
        assert_eq!(made[..2], ["add counter x", "add counter y"]);
        table.set_chain("a", None);
        table.set_chain("b", counting(&["x"]));
        let changed = taken(&mut table);
        assert_eq!(changed.last().map(String::as_str), Some("delete counter y"));
        assert!(!changed.contains(&"delete counter x".to_string()));
        table.set_chain("b", counting(&["z"]));
        table.set_chain("b", counting(&["x"]));
        assert!(taken(&mut table).is_empty(), "gone and come again");
        table.set_chain("b", None);
        assert!(taken(&mut table).contains(&"delete counter x".to_string()));
        assert!(table.wanted().counters.is_empty());
    }
}
