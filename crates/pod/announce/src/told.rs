//! What a node shows of its sessions on its Node, for whoever collects it: their states at once, how much was announced when something else is told
//! or after a while.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_balancing::peer::{MOST_SESSIONS, SESSIONS, Session, Sessions, read_sessions};
use keelson_bgp::{State, Told};
use keelson_client::{Objects, Patch, Rest};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// What changes within this time is told together.
const PACE: Duration = Duration::from_secs(1);
/// After this what could not be told is told again.
const RETRY: Duration = Duration::from_secs(5);
/// Numbers alone are told so often: each would be a write of every node for every service.
const NUMBERS: Duration = Duration::from_secs(10);
/// The longest error that is told.
const LONGEST: usize = 200;

/// What the node's annotation is; `None`: nothing is to be told, for the Node or its peers aren't known.
pub type Shown = Option<Option<String>>;

pub struct Teller {
    nodes: Objects<core::Node>,
    name: String,
}

impl Teller {
    pub fn new(rest: &Rest, name: &str) -> Teller {
        Teller {
            nodes: Objects::new(rest),
            name: name.to_string(),
        }
    }

    /// Never ends.
    pub async fn keep(
        &self,
        mut told: watch::Receiver<BTreeMap<String, Told>>,
        mut refused: watch::Receiver<BTreeMap<String, String>>,
        mut shown: watch::Receiver<Shown>,
    ) {
        let mut last = Instant::now();
        loop {
            let sessions = told.borrow_and_update().clone();
            let reasons = refused.borrow_and_update().clone();
            let there = shown.borrow_and_update().clone();
            let before = there.clone().flatten().and_then(|text| read_sessions(&text));
            let now = merge(before.as_ref(), &sessions, &reasons, Time(jiff::Timestamp::now()));
            let due = match (&there, before) {
                (None, _) => None,
                (Some(None), _) if now.is_empty() => None,
                // What isn't readable isn't from here.
                (Some(_), Some(before)) if before == now => None,
                (Some(_), Some(before)) if is_alike(&before, &now) => Some(last + NUMBERS),
                _ => Some(last),
            };
            if due.is_some_and(|due| due <= Instant::now()) {
                last = Instant::now();
                match self.tell(&now).await {
                    Ok(()) => sleep(PACE).await,
                    Err(error) => {
                        let error = format!("{error:#}");
                        tracing::warn!(error, "the states of BGP sessions can't be told");
                        sleep(RETRY).await;
                    }
                }
                continue;
            }
            tokio::select! {
                Ok(()) = told.changed() => {}
                Ok(()) = refused.changed() => {}
                Ok(()) = shown.changed() => {}
                () = sleep_until(due.unwrap_or(last)), if due.is_some() => {}
                else => std::future::pending::<()>().await,
            }
        }
    }

    async fn tell(&self, sessions: &Sessions) -> anyhow::Result<()> {
        let text = match sessions.is_empty() {
            true => None,
            false => Some(serde_json::to_string(sessions)?),
        };
        let patch = json!({"metadata": {"annotations": {SESSIONS: text}}});
        self.nodes.patch("", &self.name, Patch::Merge(&patch)).await?;
        Ok(())
    }
}

/// Whether nothing differs but numbers.
fn is_alike(a: &Sessions, b: &Sessions) -> bool {
    let said = |sessions: &Sessions| -> Vec<(String, String, Option<String>)> {
        let all = sessions.iter();
        all.map(|(name, s)| (name.clone(), s.state.clone(), s.error.clone()))
            .collect()
    };
    said(a) == said(b)
}

fn merge(
    before: Option<&Sessions>,
    told: &BTreeMap<String, Told>,
    refused: &BTreeMap<String, String>,
    at: Time,
) -> Sessions {
    let established = told.iter().map(|(name, told)| {
        let state = match told.state {
            State::Established => Session::ESTABLISHED,
            // Between two attempts it is still tried: who looks wants to know why it fails, and not how far it has come.
            _ => Session::CONNECT,
        };
        (name, state, told.error.clone(), told.announced, told.heard)
    });
    let refused = refused
        .iter()
        .map(|(name, why)| (name, Session::IDLE, Some(why.clone()), 0, 0));
    let all = established
        .chain(refused)
        .map(|(name, state, error, announced, heard)| {
            let earlier = before.and_then(|before| before.get(name)).filter(|s| s.state == state);
            let session = Session {
                state: state.into(),
                since: earlier.map_or_else(|| at.clone(), |earlier| earlier.since.clone()),
                error: error.map(|error| error.chars().take(LONGEST).collect()),
                announced: i64::try_from(announced).unwrap_or(i64::MAX),
                received_updates: i64::try_from(heard).unwrap_or(i64::MAX),
            };
            (name.clone(), session)
        });
    all.take(MOST_SESSIONS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(state: State, error: Option<&str>, announced: usize) -> BTreeMap<String, Told> {
        let told = Told {
            state,
            error: error.map(str::to_string),
            announced,
            heard: 1,
        };
        [("r".to_string(), told)].into()
    }

    #[test]
    fn a_state_keeps_its_date_and_numbers_alone_are_no_news() {
        let at = |second| Time(jiff::Timestamp::from_second(second).unwrap());
        let none = BTreeMap::new();
        let first = merge(None, &told(State::Connect, None, 0), &none, at(1));
        let tried = merge(Some(&first), &told(State::OpenSent, Some("no"), 0), &none, at(2));
        assert!(!is_alike(&first, &tried));
        assert_eq!(
            (tried["r"].state.as_str(), tried["r"].since.clone()),
            ("Connect", at(1))
        );
        let there = merge(Some(&tried), &told(State::Established, None, 3), &none, at(3));
        assert_eq!(there["r"].since, at(3));
        let more = merge(Some(&there), &told(State::Established, None, 4), &none, at(4));
        assert!(is_alike(&there, &more) && there != more);
        let text = serde_json::to_string(&more).unwrap();
        assert_eq!(read_sessions(&text), Some(more));
        let refused = [("x".to_string(), "y".repeat(300))].into();
        let refused = merge(None, &BTreeMap::new(), &refused, at(1));
        assert_eq!(refused["x"].state, "Idle");
        assert_eq!(refused["x"].error.as_ref().map(String::len), Some(200));
    }

    #[test]
    fn however_many_sessions_there_are_what_is_told_can_be_read() {
        let name = |n: usize| format!("{n:03}{}", "x".repeat(250));
        let refused: BTreeMap<String, String> = (0..999).map(|n| (name(n), "y".repeat(300))).collect();
        let all = merge(None, &BTreeMap::new(), &refused, Time(jiff::Timestamp::UNIX_EPOCH));
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(read_sessions(&text), Some(all));
    }
}
