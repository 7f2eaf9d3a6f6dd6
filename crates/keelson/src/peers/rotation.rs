//! This node's key for WireGuard: what the Node says of it, and its exchange.
//!
//! Annotations of the Node, which only the node itself and administrators write:
//! * [`KEY`], [`NEXT`]: by what others know it, and will know it.
//! * [`ROTATE`]: somebody writes another text to have the key exchanged; [`ROTATED`] has the text that was answered last.
//!
//! A key is shown as the node's only when the kernel has it: others begin to speak to it by that key then.

use super::keys::Keys;
use super::turn::{Facts, Turn, turn};
use anyhow::Context;
use k8s_openapi::api::core::v1::Node;
use keelson_client::ApiObject;
use keelson_client::objects::{Objects, Patch};
use keelson_client::rest::Rest;
use keelson_network::underlay::{Identity, PublicKey};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

pub const KEY: &str = "keelson.dev/wireguard-key";
pub const NEXT: &str = "keelson.dev/wireguard-next-key";
pub const ROTATE: &str = "keelson.dev/wireguard-rotate";
const ROTATED: &str = "keelson.dev/wireguard-rotated";
/// All that a node's copy needs to have.
pub const ALL: [&str; 4] = [KEY, NEXT, ROTATE, ROTATED];

pub struct Rotation {
    keys: Keys,
    /// Since when the Node shows the next key.
    shown: Option<Instant>,
    nodes: Objects<Node>,
}

impl Rotation {
    /// `own` writes this node's Node.
    pub fn new(keys: Keys, own: kube::Client) -> Rotation {
        Rotation {
            keys,
            shown: None,
            nodes: Objects::new(&Rest::new(own, "keelson-network")),
        }
    }

    pub fn identity(&self) -> Arc<Identity> {
        self.keys.current.clone()
    }

    /// Does what is due, and says when to look again, if nothing happens. `in_force`: the key that the kernel has.
    pub async fn step(&mut self, own: &Node, in_force: Option<PublicKey>) -> anyhow::Result<Option<Duration>> {
        let empty = BTreeMap::new();
        let said = own.metadata.annotations.as_ref().unwrap_or(&empty);
        let asked = said.get(ROTATE).map_or("", String::as_str);
        let next = self.keys.next.as_ref().map(|next| next.public.to_string());
        self.shown = match next.is_some() && said.get(NEXT) == next.as_ref() {
            true => self.shown.or_else(|| Some(Instant::now())),
            false => None,
        };
        let facts = Facts {
            age: self.keys.age(),
            asked: asked != self.keys.asked,
            next: next.map(|_| self.shown.map(|since| since.elapsed())),
        };
        let due = match turn(facts) {
            Turn::Begin => {
                self.keys.begin(asked)?;
                None
            }
            Turn::Switch => {
                self.keys.switch()?;
                tracing::info!(key = %self.keys.current.public, "this node has another key for WireGuard");
                None
            }
            Turn::Wait(due) => due,
        };
        if in_force != Some(self.keys.current.public) {
            // Its being in force is told.
            return Ok(due);
        }
        let patch = difference(said, &self.wanted());
        if !patch.is_empty() {
            let patch = json!({"metadata": {"annotations": patch}});
            let done = self.nodes.patch("", own.name(), Patch::Merge(&patch)).await;
            done.context("showing this node's key for WireGuard")?;
        }
        Ok(due)
    }

    /// What was answered last stays until the next answer.
    fn wanted(&self) -> Vec<(&'static str, Option<String>)> {
        let mut wanted = vec![
            (KEY, Some(self.keys.current.public.to_string())),
            (NEXT, self.keys.next.as_ref().map(|next| next.public.to_string())),
        ];
        if self.keys.next.is_none() && !self.keys.asked.is_empty() {
            wanted.push((ROTATED, Some(self.keys.asked.clone())));
        }
        wanted
    }
}

/// A merge patch from what is said to what is wanted.
fn difference(said: &BTreeMap<String, String>, wanted: &[(&str, Option<String>)]) -> Map<String, Value> {
    let differing = wanted.iter().filter(|(name, value)| said.get(*name) != value.as_ref());
    let entry = |(name, value): &(&str, Option<String>)| ((*name).to_string(), json!(value));
    differing.map(entry).collect()
}

/// The keys that a node shows: the one it has first.
pub fn shown(node: &Node) -> Vec<PublicKey> {
    let said = node.metadata.annotations.iter().flatten();
    let said: BTreeMap<&str, &str> = said.map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let key = |name| said.get(name).and_then(|text| text.parse::<PublicKey>().ok());
    let Some(current) = key(KEY) else { return Vec::new() };
    [current]
        .into_iter()
        .chain(key(NEXT).filter(|next| *next != current))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_shows_the_key_it_has_and_the_one_it_will_have() {
        let (one, two) = (PublicKey([1; 32]), PublicKey([2; 32]));
        let of = |annotations: Value| {
            let node = json!({"metadata": {"name": "n", "annotations": annotations}});
            shown(&serde_json::from_value(node).unwrap())
        };
        assert_eq!(of(json!({KEY: one.to_string(), NEXT: two.to_string()})), [one, two]);
        assert_eq!(of(json!({KEY: one.to_string(), NEXT: one.to_string()})), [one]);
        assert_eq!(of(json!({KEY: one.to_string(), NEXT: "?"})), [one]);
        assert!(of(json!({KEY: "no key", NEXT: two.to_string()})).is_empty());
        assert!(of(json!(null)).is_empty());
    }

    #[test]
    fn only_what_differs_is_written() {
        let said = BTreeMap::from([(KEY.to_string(), "a".to_string()), (NEXT.to_string(), "b".to_string())]);
        assert!(
            difference(
                &said,
                &[(KEY, Some("a".into())), (NEXT, Some("b".into())), (ROTATED, None)]
            )
            .is_empty()
        );
        let patch = difference(
            &said,
            &[(KEY, Some("b".into())), (NEXT, None), (ROTATED, Some("x".into()))],
        );
        assert_eq!(Value::Object(patch), json!({KEY: "b", NEXT: null, ROTATED: "x"}));
    }
}
