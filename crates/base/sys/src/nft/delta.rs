//! From one rule set to the next: only what changed, in an order that the kernel accepts within one batch.
//!
//! First what is new (sets, chains), then rules of changed chains, then elements, last what nothing refers to any more.

use super::{Element, Op, Ruleset, SetState};

/// The whole table anew, whatever stands there.
pub fn replace(new: &Ruleset) -> Vec<Op> {
    let mut ops = vec![Op::AddTable, Op::DeleteTable, Op::AddTable];
    ops.extend(between(&Ruleset::default(), new));
    ops
}

/// A set's name stands for its definition: whoever needs another definition takes another name.
pub fn between(old: &Ruleset, new: &Ruleset) -> Vec<Op> {
    let mut ops = Vec::new();
    let redefined = |(name, state): (&String, &SetState)| old.sets.get(name).is_some_and(|o| o.set != state.set);
    debug_assert!(
        !new.sets.iter().any(redefined),
        "a set's name stands for its definition"
    );
    let counter = |name: &String| name.clone();
    ops.extend(
        new.counters
            .difference(&old.counters)
            .map(|n| Op::AddCounter { name: counter(n) }),
    );
    for (name, state) in &new.sets {
        if !old.sets.contains_key(name) {
            ops.push(Op::AddSet(state.set.clone()));
        }
    }
    for (name, chain) in &new.chains {
        if !old.chains.contains_key(name) {
            ops.push(Op::AddChain {
                name: name.clone(),
                base: chain.base.clone(),
            });
        }
    }
    for (name, chain) in &new.chains {
        let before = old.chains.get(name);
        if before.is_some_and(|b| b.rules == chain.rules) {
            continue;
        }
        if before.is_some() {
            ops.push(Op::FlushChain { name: name.clone() });
        }
        ops.extend(chain.rules.iter().map(|exprs| Op::AddRule {
            chain: name.clone(),
            exprs: exprs.clone(),
        }));
    }
    for (name, state) in &new.sets {
        elements(name, old.sets.get(name), state, &mut ops);
    }
    // Gone chains may refer to each other and to gone sets: all are emptied before any is deleted.
    let gone_chains = || old.chains.keys().filter(|n| !new.chains.contains_key(*n));
    let gone_sets = || old.sets.iter().filter(|(n, _)| !new.sets.contains_key(*n));
    ops.extend(gone_chains().map(|name| Op::FlushChain { name: name.clone() }));
    for (name, state) in gone_sets() {
        ops.extend(state.elements.iter().map(|e| delete(name, e)));
        ops.push(Op::DeleteSet { name: name.clone() });
    }
    ops.extend(gone_chains().map(|name| Op::DeleteChain { name: name.clone() }));
    ops.extend(
        old.counters
            .difference(&new.counters)
            .map(|n| Op::DeleteCounter { name: counter(n) }),
    );
    ops
}

fn delete(set: &str, element: &Element) -> Op {
    Op::DeleteElement {
        set: set.into(),
        element: element.clone(),
    }
}

fn elements(name: &str, old: Option<&SetState>, new: &SetState, ops: &mut Vec<Op>) {
    if let Some(old) = old {
        ops.extend(old.elements.difference(&new.elements).map(|e| delete(name, e)));
    }
    let added = new
        .elements
        .iter()
        .filter(|e| !old.is_some_and(|o| o.elements.contains(e)));
    ops.extend(added.map(|e| Op::AddElement {
        set: name.into(),
        element: e.clone(),
    }));
}
