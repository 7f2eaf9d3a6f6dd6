//! What machines are asked, and what they answer.
//!
//! The [`Order`] is kept by the servers, and only administrators give it (`keelson_apiserver::upgrades`). What a machine says of itself
//! stands in annotations of its Node, which it writes itself: a machine can lie about itself, and about no other. Another annotation has
//! it look at the order; whoever writes that one makes it look, and nothing else.

use crate::install::Role;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a machine runs, and whether its program can be exchanged.
pub const PROGRAM: &str = "keelson.dev/program";
/// What became of what it was asked last.
pub const ANSWER: &str = "keelson.dev/upgrade";
/// Another text: there is something to look at.
pub const LOOK: &str = "keelson.dev/upgrade-asked";

/// What a machine's new program may take at most, in seconds.
pub const LONGEST_TIMEOUT: u64 = 3600;
/// Longer texts of strangers are cut off.
const LONGEST: usize = 400;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// Say whether it could be done.
    Judge,
    Take,
    #[serde(other)]
    Unknown,
}

/// What one machine is asked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ask {
    /// Drawn: a machine does nothing twice for one of them.
    pub id: String,
    pub verb: Verb,
    /// Nobody begins later: what is old isn't done because it is found again, in a snapshot of the store for instance.
    pub until: Timestamp,
}

/// Fields are added and never change their meaning: machines of two versions read it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    pub sha256: String,
    pub size: u64,
    /// How long a machine's new program may take until all is well there.
    pub timeout_seconds: u64,
    #[serde(default)]
    pub asks: BTreeMap<String, Ask>,
}

/// The order as the servers have it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Kept {
    /// 0: none was given yet.
    pub revision: u64,
    pub order: Option<Order>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub role: Role,
    pub version: String,
    pub kubernetes: String,
    /// Of the program that runs.
    #[serde(default)]
    pub sha256: String,
    /// Why it can't be exchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    UnderWay,
    Well,
    Ill,
    #[serde(other)]
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Answer {
    pub id: String,
    pub state: State,
    #[serde(default)]
    pub why: String,
}

fn said<T: DeserializeOwned>(node: &Node, name: &str) -> Option<T> {
    serde_json::from_str(node.metadata.annotations.as_ref()?.get(name)?).ok()
}

impl Report {
    pub fn of(node: &Node) -> Option<Report> {
        said(node, PROGRAM)
    }
}

impl Answer {
    pub fn of(node: &Node) -> Option<Answer> {
        said(node, ANSWER)
    }
}

impl Order {
    /// Within its bounds, whoever gave it.
    pub fn timeout_seconds(&self) -> u64 {
        self.timeout_seconds.clamp(1, LONGEST_TIMEOUT)
    }
}

/// What a machine says, as it may be shown on somebody's terminal.
pub fn shown(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn other_versions_are_read() {
        let order = r#"{"sha256": "ab", "size": 1, "timeoutSeconds": 300, "new": 1,
            "asks": {"n1": {"id": "x", "verb": "later", "until": "2030-01-01T00:00:00Z", "new": {}}}}"#;
        let order: Order = serde_json::from_str(order).unwrap();
        assert_eq!(order.asks["n1"].verb, Verb::Unknown);
        let again: Order = serde_json::from_str(&serde_json::to_string(&order).unwrap()).unwrap();
        assert_eq!(again.asks["n1"].until, order.asks["n1"].until);
        let node =
            |annotations| serde_json::from_value::<Node>(json!({"metadata": {"annotations": annotations}})).unwrap();
        let found = node(json!({ANSWER: r#"{"id":"x","state":"resting"}"#, PROGRAM: "no JSON"}));
        assert_eq!(Answer::of(&found).unwrap().state, State::Unknown);
        assert_eq!(Report::of(&found), None);
        let refused = r#"{"role":"agent","version":"0.1.0","kubernetes":"1.37.2","refused":"no service"}"#;
        assert_eq!(
            Report::of(&node(json!({PROGRAM: refused}))).unwrap().refused.as_deref(),
            Some("no service")
        );
    }

    #[test]
    fn what_strangers_say_is_shown_plainly_and_cut_off() {
        assert_eq!(shown("a\u{1b}[2Jb\nc"), "a [2Jb c");
        assert_eq!(shown(&"x".repeat(10_000)).len(), LONGEST);
    }
}
