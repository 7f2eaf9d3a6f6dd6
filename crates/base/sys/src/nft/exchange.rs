//! A whole table in the place of one that packets pass.
//!
//! Where a table is deleted and made anew, if in one batch, its chains are put into the ways of packets before the batch is in
//! force and those of the former one taken out after it. A packet that meets the new one before and the former one after passes
//! both as if they were empty: it isn't translated, or not filtered. So chains stay where they are, and what is in them changes at
//! once.

use super::query::{Standing, standing};
use super::{Family, NftError, Op, apply};

/// Writes the table that these operations make from nothing ([`super::replace`]) over what stands under its name. What can't be written over
/// (a chain is in another place now, a set of another kind) is deleted first.
pub fn exchange(family: Family, table: &str, whole: &[Op]) -> Result<(), NftError> {
    let there = standing(family, table)?;
    if there == Standing::default() {
        return apply(family, table, whole);
    }
    match apply(family, table, &over(there, whole)) {
        Err(error @ NftError::Refused { .. }) => {
            tracing::debug!(table, %error, "a table can't be written over the one that is there");
            apply(family, table, whole)
        }
        other => other,
    }
}

/// The operations that make the same table of what is there.
fn over(there: Standing, whole: &[Op]) -> Vec<Op> {
    let mut ops = vec![Op::AddTable, Op::FlushRules];
    ops.extend(there.sets.iter().map(|name| Op::FlushSet { name: name.clone() }));
    let mut gone = there;
    for op in whole {
        match op {
            Op::AddTable | Op::DeleteTable => continue,
            Op::AddChain { name, .. } => drop(gone.chains.remove(name)),
            Op::AddSet(set) => drop(gone.sets.remove(&set.name)),
            Op::AddCounter { name } => drop(gone.counters.remove(name)),
            _ => {}
        }
        ops.push(op.clone());
    }
    ops.extend(gone.sets.into_iter().map(|name| Op::DeleteSet { name }));
    ops.extend(gone.chains.into_iter().map(|name| Op::DeleteChain { name }));
    ops.extend(gone.counters.into_iter().map(|name| Op::DeleteCounter { name }));
    ops
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::{
        Base, Chain, ChainKind, DataType, Datum, Element, Expr, Hook, KeyType, Load, Ruleset, Set, SetState, Verdict,
        replace, rules,
    };

    const TABLE: &str = "keelson-exchange";

    /// A base chain at this priority that looks ports up in a map, whose element leads to another chain.
    fn table(priority: i32, port: u16, leads_to: &str) -> Ruleset {
        let base = Base {
            kind: ChainKind::Filter,
            hook: Hook::Input,
            priority,
        };
        let ports = Set {
            name: "ports".into(),
            key: vec![KeyType::Port],
            data: Some(DataType::Verdict),
            intervals: false,
            dynamic_timeout_ms: None,
        };
        let look_up = Expr::LookupVerdict {
            load: vec![Load::DestinationPort],
            map: "ports".into(),
        };
        let element = Element::to(vec![Datum::Port(port)], Verdict::Goto(leads_to.into()));
        let chain = |base, rules| Chain { base, rules };
        let mut ruleset = Ruleset::default();
        ruleset
            .chains
            .insert("input".into(), chain(Some(base), vec![vec![look_up]]));
        ruleset
            .chains
            .insert(leads_to.into(), chain(None, vec![vec![Expr::Verdict(Verdict::Drop)]]));
        let elements = [element].into();
        ruleset.sets.insert("ports".into(), SetState { set: ports, elements });
        ruleset
    }

    /// Through the kernel, in a namespace of the test.
    #[test]
    fn a_table_is_written_over_another_whatever_that_was() {
        let walk = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
            let (first, other, moved) = (table(0, 80, "web"), table(0, 81, "far"), table(5, 80, "web"));
            for wanted in [&first, &first, &other, &first, &moved] {
                exchange(Family::Ip, TABLE, &replace(wanted)).expect("written");
                let there = standing(Family::Ip, TABLE).expect("read");
                assert!(there.chains.iter().eq(wanted.chains.keys()), "{there:?}");
                assert!(there.sets.iter().eq(wanted.sets.keys()), "{there:?}");
                assert_eq!(rules(Family::Ip, TABLE, "input").expect("rules").len(), 1);
            }
            // Its element is there once: it can be deleted once.
            let gone = Op::DeleteElement {
                set: "ports".into(),
                element: Element::to(vec![Datum::Port(80)], Verdict::Goto("web".into())),
            };
            apply(Family::Ip, TABLE, std::slice::from_ref(&gone)).expect("there");
            assert!(apply(Family::Ip, TABLE, &[gone]).is_err());
        };
        std::thread::spawn(walk).join().expect("the walk");
    }

    #[test]
    fn chains_stay_in_their_places() {
        let whole = replace(&table(0, 81, "far"));
        let there = Standing {
            chains: ["input".into(), "web".into()].into(),
            sets: ["ports".into(), "old".into()].into(),
            counters: ["denied".into()].into(),
        };
        let ops = over(there, &whole);
        let text: Vec<String> = ops.iter().map(Op::to_string).collect();
        assert!(!ops.contains(&Op::DeleteTable), "{text:?}");
        assert_eq!(
            text[..4],
            ["add table", "flush table", "flush set old", "flush set ports"]
        );
        assert_eq!(
            text[text.len() - 3..],
            ["delete set old", "delete chain web", "delete counter denied"]
        );
    }
}
