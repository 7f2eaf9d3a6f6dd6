//! What is told of objects: conditions by the API's types and reasons.

use crate::kinds::{Address, ListenerStatus, ParentRef, RouteKind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use keelson_client::ObjectKey;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub struct Statuses {
    pub ingresses: Vec<ObjectKey>,
    pub classes: BTreeMap<String, Vec<Told>>,
    pub gateways: BTreeMap<ObjectKey, OfGateway>,
    pub listener_sets: BTreeMap<ObjectKey, OfSet>,
    /// By kind and name.
    pub routes: BTreeMap<(&'static str, ObjectKey), Vec<OfParent>>,
    /// Of policies that matter to a Gateway of ours.
    pub policies: BTreeMap<ObjectKey, OfPolicy>,
}

#[derive(Debug, Default)]
pub struct OfGateway {
    pub addresses: Vec<Address>,
    pub conditions: Vec<Told>,
    pub listeners: Vec<OfListener>,
    /// How many ListenerSets add to it.
    pub sets: i32,
}

#[derive(Debug, Default)]
pub struct OfSet {
    pub conditions: Vec<Told>,
    pub listeners: Vec<OfListener>,
}

#[derive(Debug, Default)]
pub struct OfListener {
    pub name: String,
    pub kinds: Vec<RouteKind>,
    pub attached: i32,
    pub conditions: Vec<Told>,
}

#[derive(Debug)]
pub struct OfParent {
    pub parent: ParentRef,
    pub conditions: Vec<Told>,
}

/// The same is told for each Gateway that it matters to.
#[derive(Debug, Default)]
pub struct OfPolicy {
    pub gateways: BTreeSet<ObjectKey>,
    pub conditions: Vec<Told>,
}

/// A condition without times.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub kind: &'static str,
    pub holds: bool,
    pub reason: &'static str,
    pub message: String,
}

/// The conditions that are told as long as they hold, and not at all after that.
pub const INSECURE: &str = "InsecureFrontendValidationMode";
pub const OVERLAPPING: &str = "OverlappingTLSConfig";

/// The longest message: what users wrote is quoted in it, and the API takes no longer ones than 32768.
const LONGEST: usize = 2048;

impl Told {
    pub fn new(kind: &'static str, holds: bool, reason: &'static str, message: impl Into<String>) -> Told {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(LONGEST));
        Told {
            kind,
            holds,
            reason,
            message,
        }
    }
}

/// The conditions as they were, with what is told now in its place. Others' stay, and so does the time of what hasn't turned.
pub fn merge(old: &[Condition], told: &[Told], generation: Option<i64>, now: Time) -> Vec<Condition> {
    let is_told = |kind: &str| told.iter().any(|t| t.kind == kind);
    let mut all = old.to_vec();
    all.retain(|c| ![INSECURE, OVERLAPPING].contains(&c.type_.as_str()) || is_told(&c.type_));
    for told in told {
        let status = if told.holds { "True" } else { "False" };
        let before = all.iter_mut().find(|c| c.type_ == told.kind);
        let since = before
            .as_ref()
            .filter(|c| c.status == status)
            .map(|c| c.last_transition_time.clone());
        let condition = Condition {
            type_: told.kind.into(),
            status: status.into(),
            reason: told.reason.into(),
            message: told.message.clone(),
            observed_generation: generation,
            last_transition_time: since.unwrap_or_else(|| now.clone()),
        };
        match before {
            Some(before) => *before = condition,
            None => all.push(condition),
        }
    }
    all
}

pub fn listeners(
    old: &[ListenerStatus],
    told: &[OfListener],
    generation: Option<i64>,
    now: &Time,
) -> Vec<ListenerStatus> {
    let one = |told: &OfListener| {
        let before = old.iter().find(|l| l.name == told.name);
        let before = before.map(|l| l.conditions.as_slice()).unwrap_or_default();
        ListenerStatus {
            name: told.name.clone(),
            supported_kinds: told.kinds.clone(),
            attached_routes: told.attached,
            conditions: merge(before, &told.conditions, generation, now.clone()),
        }
    };
    told.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_that_the_api_takes() {
        let quoted = "\u{e9}".repeat(40_000);
        let told = Told::new("Accepted", false, "UnsupportedValue", format!("x{quoted}"));
        assert!(told.message.len() <= LONGEST && told.message.len() > LONGEST - 4);
        assert_eq!(Told::new("Accepted", true, "Accepted", "short").message, "short");
    }

    #[test]
    fn a_warning_is_gone_when_it_holds_no_more() {
        let at = Time(jiff::Timestamp::from_second(1).unwrap());
        let fine = Told::new("Accepted", true, "R", "m");
        for warning in [INSECURE, OVERLAPPING] {
            let told = [fine.clone(), Told::new(warning, true, "R", "m")];
            let first = merge(&[], &told, None, at.clone());
            assert_eq!(merge(&first, &told, None, at.clone()).len(), 2);
            let then = merge(&first, &told[..1], None, at.clone());
            assert_eq!(then.iter().map(|c| c.type_.as_str()).collect::<Vec<_>>(), ["Accepted"]);
        }
    }
}
