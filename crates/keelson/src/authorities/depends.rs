//! What a step would shut out, and what it waits for: a pure judgement of what is known of servers, nodes and users.

use jiff::Timestamp;
use keelson_apiserver::authn::vouched::Came;
use keelson_pki::sharing::ETCD_CA;
use keelson_pki::succession::{Stage, Standing, Step};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The authority of servers, nodes and users; others are known to servers alone.
pub const CLUSTER: &str = "ca";

/// What a server tells of itself.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Report {
    /// By which the service `kubernetes` leads to it.
    pub address: String,
    pub standing: BTreeMap<String, Standing>,
    /// Who came to it by a certificate of a former authority.
    #[serde(default)]
    pub came: Vec<Came>,
}

/// A user for whom a certificate was made (`keelson user add`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    /// Unix seconds.
    pub issued: i64,
    pub ends: i64,
}

/// What a server answers of an authority.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    pub standing: Standing,
    /// Who is shut out when the one before goes.
    pub depending: Vec<String>,
    /// What the next step waits for.
    pub waits_for: Vec<String>,
}

/// All that is known of who goes by the authorities.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// By name, those that serve.
    pub servers: BTreeMap<String, Report>,
    /// By name, those whose authority etcd's is: all members of it, also those that are off.
    pub members: BTreeMap<String, Report>,
    /// By name, of nodes that say so: hashes of the authorities that each trusts.
    pub nodes: BTreeMap<String, Vec<String>>,
    pub users: Vec<User>,
}

fn date(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |at| format!("{at:.0}"))
}

impl Facts {
    /// What a step waits for, a line each; nothing: it can be made, and nobody notices.
    pub fn waits_for(&self, name: &str, standing: &Standing, step: Step, now: i64) -> Vec<String> {
        match step {
            Step::Announce => Vec::new(),
            Step::Sign => {
                let mut lines = self.servers_behind(name, standing);
                if name == CLUSTER
                    && let Some(next) = &standing.beside
                {
                    lines.extend(self.nodes_without(&next.hash, "the next authority"));
                }
                lines
            }
            Step::Withdraw => self.depending(name, standing, now),
        }
    }

    /// Who goes by the authority of before, and is shut out when it is withdrawn.
    pub fn depending(&self, name: &str, standing: &Standing, now: i64) -> Vec<String> {
        if standing.stage != Stage::Replaced {
            return Vec::new();
        }
        let mut lines = self.servers_behind(name, standing);
        if name == ETCD_CA.name {
            return lines;
        }
        if name == CLUSTER {
            lines.extend(self.nodes_without(&standing.signs.hash, "the present authority"));
        }
        // Whoever came to one server by the old one may have come to another by the new one since.
        let mut all: BTreeMap<&str, Came> = BTreeMap::new();
        for one in self.servers.values().flat_map(|server| &server.came) {
            let came = all.entry(&one.name).or_default();
            came.by_former = came.by_former.max(one.by_former);
            came.by_present = came.by_present.max(one.by_present);
            came.stays |= one.stays;
        }
        for (who, came) in all.into_iter().filter(|(_, came)| came.depends()) {
            let when = match came.by_former.filter(|_| !came.stays) {
                None => "is connected".to_string(),
                Some(at) => format!("came at {}", date(at)),
            };
            lines.push(format!("{who} {when} by a certificate of the authority of before"));
        }
        let concerned = |user: &&User| name == CLUSTER && user.issued <= standing.since && user.ends > now;
        for user in self.users.iter().filter(concerned) {
            lines.push(format!(
                "the user {} has a certificate of the authority of before until {}: keelson user add {0} makes another",
                user.name,
                date(user.ends)
            ));
        }
        lines
    }

    fn servers_behind(&self, name: &str, standing: &Standing) -> Vec<String> {
        let behind = |report: &&Report| report.standing.get(name).is_none_or(|s| s.number < standing.number);
        let all = match name == ETCD_CA.name {
            true => &self.members,
            false => &self.servers,
        };
        let each = all.iter().filter(|(_, report)| behind(report));
        each.map(|(server, _)| format!("the server {server} hasn't taken the last step yet"))
            .collect()
    }

    fn nodes_without(&self, hash: &str, what: &str) -> Vec<String> {
        let each = self.nodes.iter();
        let without = each.filter(|(_, trusted)| !trusted.iter().any(|one| one == hash));
        without
            .map(|(node, _)| format!("the node {node} doesn't know {what} yet"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_pki::succession::Which;

    fn standing(stage: Stage, number: u64) -> Standing {
        let which = |hash: &str| Which {
            hash: hash.into(),
            ends: 1000,
        };
        let (signs, beside) = match stage {
            Stage::AtRest => (which("old"), None),
            Stage::Announced => (which("old"), Some(which("new"))),
            Stage::Replaced => (which("new"), Some(which("old"))),
        };
        Standing {
            stage,
            number,
            since: 100,
            signs,
            beside,
            foreign: false,
        }
    }

    fn facts(report: Standing, trusted: &[&str]) -> Facts {
        let report = Report {
            address: "10.0.0.1".into(),
            standing: BTreeMap::from([
                ("ca".to_string(), report.clone()),
                ("front-proxy-ca".to_string(), report),
            ]),
            came: Vec::new(),
        };
        Facts {
            members: BTreeMap::from([("s".to_string(), report.clone())]),
            servers: BTreeMap::from([("s".to_string(), report)]),
            nodes: BTreeMap::from([("n".to_string(), trusted.iter().map(|h| (*h).to_string()).collect())]),
            users: Vec::new(),
        }
    }

    #[test]
    fn the_next_one_signs_when_everybody_knows_it() {
        let announced = standing(Stage::Announced, 1);
        let waits = |facts: Facts, name| facts.waits_for(name, &announced, Step::Sign, 150);
        assert_eq!(
            waits(facts(announced.clone(), &["old", "new"]), "ca"),
            Vec::<String>::new()
        );
        let behind = waits(facts(standing(Stage::AtRest, 0), &["old"]), "ca");
        assert_eq!(
            behind,
            [
                "the server s hasn't taken the last step yet",
                "the node n doesn't know the next authority yet"
            ]
        );
        // Nodes know nothing of front proxies.
        assert!(waits(facts(announced.clone(), &["old"]), "front-proxy-ca").is_empty());
    }

    #[test]
    fn who_would_be_shut_out_is_named_before_the_old_one_goes() {
        let replaced = standing(Stage::Replaced, 2);
        let mut facts = facts(replaced.clone(), &["new", "old"]);
        assert!(facts.depending("ca", &replaced, 150).is_empty());
        let user = |name: &str, issued, ends| User {
            name: name.into(),
            issued,
            ends,
        };
        facts.users = vec![user("ana", 50, 300), user("bob", 120, 300), user("eve", 50, 140)];
        let came = |name: &str, by_former, by_present, stays| Came {
            name: name.into(),
            by_former,
            by_present,
            stays,
        };
        let other = Report {
            came: vec![came("max", None, Some(130), false), came("ana", None, Some(90), false)],
            ..facts.servers["s"].clone()
        };
        facts.servers.insert("t".into(), other);
        facts.servers.get_mut("s").unwrap().came = vec![
            came("ana", Some(120), None, false),
            came("max", Some(120), None, false),
            came("system:node:k", Some(110), Some(115), true),
        ];
        let lines = facts.waits_for("ca", &replaced, Step::Withdraw, 150);
        assert_eq!(
            lines,
            [
                "ana came at 1970-01-01T00:02:00Z by a certificate of the authority of before",
                "system:node:k is connected by a certificate of the authority of before",
                "the user ana has a certificate of the authority of before until 1970-01-01T00:05:00Z: keelson user add ana makes another",
            ]
        );
        assert_eq!(facts.depending("front-proxy-ca", &replaced, 150), lines[..2]);
        // Also of a member of etcd that doesn't serve.
        facts.members.insert("off".into(), Report::default());
        assert_eq!(
            facts.depending("etcd-ca", &replaced, 150),
            [
                "the server off hasn't taken the last step yet",
                "the server s hasn't taken the last step yet"
            ]
        );
        // Before, and after, nothing is about to go.
        for other in [standing(Stage::AtRest, 2), standing(Stage::Announced, 2)] {
            assert!(facts.depending("ca", &other, 150).is_empty());
        }
    }
}
