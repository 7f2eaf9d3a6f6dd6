//! What a node shows of itself on its Node: the key of its messages, and the links on which it could answer. Only the node itself and
//! administrators write it. It is there while addresses are announced.

use crate::beat::Key;
use crate::plan::{Facts, Link, Shown};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1 as core;
use keelson_client::{Objects, Patch, Rest};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::watch;

pub const ANNOTATION: &str = "keelson.dev/announces";
/// After this what could not be shown is shown again.
const RETRY: Duration = Duration::from_secs(5);
/// More links than this nobody shows, and nobody is believed to have.
const MOST: usize = 64;

#[derive(Deserialize, Serialize)]
struct Written {
    key: String,
    links: BTreeSet<String>,
}

/// What an annotation says; nothing, if it isn't such.
pub fn read(text: &str) -> Option<Shown> {
    let written: Written = serde_json::from_str(text).ok()?;
    let key = STANDARD.decode(written.key).ok()?.try_into().ok()?;
    let links = written.links;
    (links.len() <= MOST).then_some(Shown { key, links })
}

fn write(shown: &Shown) -> serde_json::Result<String> {
    serde_json::to_string(&Written {
        key: STANDARD.encode(shown.key),
        links: shown.links.clone(),
    })
}

/// Keeps this node's annotation.
pub struct Shower {
    nodes: Objects<core::Node>,
    name: String,
    key: Key,
    /// Whether something is to be shown, and what is. `None`: the Node isn't known.
    known: watch::Sender<Option<(bool, Option<Shown>)>>,
}

impl Shower {
    pub fn new(rest: &Rest, name: &str, key: Key) -> Shower {
        Shower {
            nodes: Objects::new(rest),
            name: name.to_string(),
            key,
            known: watch::Sender::new(None),
        }
    }

    pub fn know(&self, facts: &Facts) {
        let now = facts
            .nodes
            .get(&self.name)
            .map(|own| (facts.announced, own.shown.clone()));
        crate::set(&self.known, now);
    }

    /// Never ends.
    pub async fn keep(&self, mut links: watch::Receiver<Vec<Link>>) {
        let mut known = self.known.subscribe();
        loop {
            let names = links.borrow_and_update().iter().map(|link| link.name.clone()).collect();
            let now = known.borrow_and_update().clone();
            let wanted = |announced: bool| {
                announced.then_some(Shown {
                    key: self.key,
                    links: names,
                })
            };
            let failed = match now.map(|(announced, shown)| (wanted(announced), shown)) {
                Some((wanted, shown)) if wanted != shown => self.show(wanted.as_ref()).await.inspect_err(|error| {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "others can't be told that this node could answer for addresses"
                    );
                }),
                _ => Ok(()),
            };
            tokio::select! {
                Ok(()) = links.changed() => {}
                Ok(()) = known.changed() => {}
                () = tokio::time::sleep(RETRY), if failed.is_err() => {}
                else => std::future::pending::<()>().await,
            }
        }
    }

    async fn show(&self, shown: Option<&Shown>) -> anyhow::Result<()> {
        let text = shown.map(write).transpose()?;
        let patch = json!({"metadata": {"annotations": {ANNOTATION: text}}});
        self.nodes.patch("", &self.name, Patch::Merge(&patch)).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_and_nothing_else() {
        let shown = Shown {
            key: [7; 32],
            links: ["eth0".to_string()].into(),
        };
        let text = write(&shown).unwrap();
        assert_eq!(read(&text), Some(shown));
        let many: Vec<String> = (0..65).map(|n| format!("eth{n}")).collect();
        for wrong in [
            "",
            "{}",
            r#"{"key": "AAAA", "links": []}"#,
            &text.replace("\"eth0\"", "1"),
            &text.replace("[\"eth0\"]", &json!(many).to_string()),
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
