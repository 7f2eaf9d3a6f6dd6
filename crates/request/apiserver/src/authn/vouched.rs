//! Who is connected by a certificate, while authorities follow one another: a connection ends when nobody vouches for its
//! certificate any more, and who comes by one of an authority that is about to go is known by name until he comes by another.
//!
//! Names are bounded ([`MOST`]): beyond that it is known only that there are more ([`OTHERS`]).

use super::x509::{CertificateAuthenticator, PeerCertificate};
use anyhow::Result;
use keelson_clock::now;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Names that are kept; a cluster's nodes and users are fewer.
const MOST: usize = 1024;

/// By this name come all for whom there is no place.
pub const OTHERS: &str = "(others)";

/// What is noted of a name again only after so long, in seconds, unless he has come by the other authority meanwhile: others are told.
const AGAIN: i64 = 600;

/// When somebody came by which authority, while a former one is trusted beside the present.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Came {
    pub name: String,
    /// Unix seconds, about the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_former: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_present: Option<i64>,
    /// Is connected by the former one now.
    #[serde(default)]
    pub stays: bool,
}

impl Came {
    /// Whether he depends on the former one: came by it last, or is still there.
    pub fn depends(&self) -> bool {
        self.stays || self.by_former > self.by_present
    }
}

struct Connection {
    chain: Arc<[CertificateDer<'static>]>,
    name: String,
    by_former: bool,
    ended: CancellationToken,
}

#[derive(Default)]
struct Known {
    next: u64,
    /// How often all connections have been looked at since authorities were exchanged.
    exchanges: u64,
    connections: HashMap<u64, Connection>,
    /// By name, when last by the former authority and by the present.
    names: BTreeMap<String, (Option<i64>, Option<i64>)>,
    /// The same of all for whom there was no place among them.
    others: (Option<i64>, Option<i64>),
}

impl Known {
    /// Whether that is news.
    fn note(&mut self, name: &str, by_former: bool) -> bool {
        let now = now().as_second();
        if !self.names.contains_key(name) && self.names.len() >= MOST {
            // Who depends on the former one counts more than who has come by the present one since, or always.
            let present = self.names.iter().find(|(_, (former, present))| former <= present);
            match present.map(|(name, _)| name.clone()).filter(|_| by_former) {
                Some(least) => _ = self.names.remove(&least),
                None => {
                    let (former, present) = &mut self.others;
                    let own = if by_former { former } else { present };
                    if own.is_some_and(|at| (at..at + AGAIN).contains(&now)) {
                        return false;
                    }
                    *own = Some(now);
                    return true;
                }
            }
        }
        let (former, present) = self.names.entry(name.into()).or_default();
        let (own, other) = if by_former {
            (former, *present)
        } else {
            (present, *former)
        };
        if own.is_some() && *own > other && own.is_some_and(|at| (at..at + AGAIN).contains(&now)) {
            return false;
        }
        *own = Some(now);
        true
    }
}

/// All connections by certificates that somebody known signed.
pub struct Vouched {
    authorities: CertificateAuthenticator,
    known: Mutex<Known>,
    changed: watch::Sender<()>,
}

/// A connection for as long as it lasts.
pub struct Connected {
    id: u64,
    all: Arc<Vouched>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let gone = self.all.known.lock().connections.remove(&self.id);
        if gone.is_some_and(|gone| gone.by_former) {
            // He isn't there any more.
            self.all.changed.send_replace(());
        }
    }
}

impl Vouched {
    pub fn new(authorities: CertificateAuthenticator) -> Arc<Vouched> {
        Arc::new(Vouched {
            authorities,
            known: Mutex::default(),
            changed: watch::Sender::new(()),
        })
    }

    pub fn authorities(&self) -> &CertificateAuthenticator {
        &self.authorities
    }

    /// Notes a connection whose certificate is good; `ended` is cancelled when it is no longer.
    pub fn connected(
        self: &Arc<Self>,
        peer: &PeerCertificate,
        chain: &[CertificateDer<'_>],
        ended: &CancellationToken,
    ) -> Option<Connected> {
        if !peer.is_vouched_for() {
            return None;
        }
        let chain: Arc<[CertificateDer<'static>]> = chain.iter().map(|der| der.clone().into_owned()).collect();
        let by_former = self.authorities.is_of_former(&chain);
        let name = peer.name().to_string();
        let (id, news, exchanges) = {
            let mut known = self.known.lock();
            known.next += 1;
            let id = known.next;
            let news = self.authorities.has_formers() && known.note(&name, by_former);
            let connection = Connection {
                chain: chain.clone(),
                name,
                by_former,
                ended: ended.clone(),
            };
            known.connections.insert(id, connection);
            (id, news, known.exchanges)
        };
        let connected = Connected { id, all: self.clone() };
        // After it is noted: a change meanwhile is seen here or there.
        let (good, by_former) = self.judge(&chain);
        if !good {
            ended.cancel();
        }
        {
            let mut known = self.known.lock();
            // Whoever looks at all of them since has judged this one too, and later.
            if known.exchanges == exchanges
                && let Some(connection) = known.connections.get_mut(&id)
            {
                connection.by_former = by_former;
            }
        }
        if news || by_former {
            self.changed.send_replace(());
        }
        Some(connected)
    }

    /// Whether somebody vouches for a chain, and whether only a former authority does.
    fn judge(&self, chain: &[CertificateDer<'_>]) -> (bool, bool) {
        let good = self.authorities.read(chain).is_vouched_for();
        (good, self.authorities.is_of_former(chain))
    }

    /// These are the authorities from now on: the first of each bundle signs, others are trusted beside it.
    pub fn replace(&self, clients: &str, front_proxies: Option<&str>) -> Result<()> {
        let before = self.authorities.signs();
        if !self.authorities.replace(clients, front_proxies)? {
            return Ok(());
        }
        let another = self.authorities.signs() != before;
        let mut ended = Vec::new();
        let several = self.authorities.has_formers();
        let connected: Vec<(u64, Arc<[CertificateDer<'static>]>)> = {
            let mut known = self.known.lock();
            let known = &mut *known;
            known.exchanges += 1;
            if !several {
                known.names.clear();
                known.others = (None, None);
            }
            if another {
                // What was of the present authority is of a former one from now on.
                for (former, present) in known.names.values_mut().chain([&mut known.others]) {
                    *former = present.take().max(*former);
                }
            }
            let each = known.connections.iter();
            each.map(|(id, c)| (*id, c.chain.clone())).collect()
        };
        // Not under the lock, which whoever connects waits for. Who does meanwhile is judged by what is in force already.
        let judged: Vec<(u64, (bool, bool))> = connected
            .into_iter()
            .map(|(id, chain)| (id, self.judge(&chain)))
            .collect();
        {
            let mut known = self.known.lock();
            for (id, (good, by_former)) in judged {
                let Some(connection) = known.connections.get_mut(&id) else {
                    continue;
                };
                connection.by_former = by_former;
                let name = connection.name.clone();
                if !good {
                    ended.push(connection.ended.clone());
                } else if several {
                    known.note(&name, by_former);
                }
            }
        }
        // Not under the lock: whoever wakes may look in here.
        ended.iter().for_each(CancellationToken::cancel);
        if !ended.is_empty() {
            let ended = ended.len();
            tracing::info!(
                ended,
                "connections end: the authority of their certificates is trusted no longer"
            );
        }
        self.changed.send_replace(());
        Ok(())
    }

    /// Who has come by which authority since a former one is trusted beside the present, and since this server started.
    pub fn formers(&self) -> Vec<Came> {
        let known = self.known.lock();
        let noted = known.names.iter().map(|(name, (former, present))| {
            let came = Came {
                name: name.clone(),
                by_former: *former,
                by_present: *present,
                stays: false,
            };
            (name.as_str(), came)
        });
        let mut all: BTreeMap<&str, Came> = noted.collect();
        let mut others = Came {
            name: OTHERS.into(),
            // They aren't one: who came by the present one may be another than who came by the former.
            by_former: known.others.0,
            ..Came::default()
        };
        for connection in known.connections.values().filter(|c| c.by_former) {
            if all.len() >= 2 * MOST && !all.contains_key(connection.name.as_str()) {
                others.stays = true;
                continue;
            }
            let came = all.entry(&connection.name).or_insert_with(|| Came {
                name: connection.name.clone(),
                ..Came::default()
            });
            came.stays = true;
        }
        if others.depends() {
            all.insert(OTHERS, others);
        }
        all.into_values().collect()
    }

    /// Told when [`formers`](Self::formers) may have changed.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::tls;
    use keelson_pki::{Authority, CertSpec};

    fn chain(ca: &Authority, name: &str) -> Vec<CertificateDer<'static>> {
        tls::certificates(&ca.issue(&CertSpec::client(name, None)).unwrap().cert_pem).unwrap()
    }

    #[test]
    fn beyond_what_is_kept_it_is_known_that_there_are_more() {
        let ca = Authority::generate("kubernetes").unwrap();
        let all = Vouched::new(CertificateAuthenticator::new(ca.cert_pem(), None).unwrap());
        let depending = || {
            let each = all.formers().into_iter().filter(Came::depends);
            each.map(|came| came.name).collect::<Vec<_>>()
        };
        let note = |name: &str, by_former| all.known.lock().note(name, by_former);
        for n in 0..MOST {
            note(&format!("n{n}"), false);
        }
        // Only who depends takes the place of who doesn't.
        note("bob", false);
        assert!(note("ana", true));
        assert_eq!(depending(), ["ana"]);
        // Who has come by the present one since gives way.
        for (former, present) in all.known.lock().names.values_mut() {
            (*former, *present) = (Some(1), Some(2));
        }
        assert!(note("max", true));
        assert_eq!(depending(), ["max"]);
        for (former, present) in all.known.lock().names.values_mut() {
            (*former, *present) = (Some(2), None);
        }
        assert!(note("eve", true) && !note("kim", true));
        let names = depending();
        assert_eq!(names.len(), MOST + 1);
        assert!(names.iter().any(|name| name == OTHERS));
    }

    #[test]
    fn who_comes_by_a_former_authority_is_known_and_let_go_with_it() {
        let old = Authority::generate("kubernetes").unwrap();
        let new = old.successor().unwrap();
        let all = Vouched::new(CertificateAuthenticator::new(old.cert_pem(), None).unwrap());
        let come = |ca: &Authority, name: &str| {
            let (chain, ended) = (chain(ca, name), CancellationToken::new());
            let peer = all.authorities().read(&chain);
            (all.connected(&peer, &chain, &ended), ended)
        };
        let names = || {
            let depending = all.formers().into_iter().filter(Came::depends);
            depending.map(|c| (c.name, c.stays)).collect::<Vec<_>>()
        };
        let (ana, ana_ended) = come(&old, "ana");
        let (bob, _) = come(&old, "bob");
        assert!(ana.is_some() && names().is_empty());
        assert!(come(&new, "eve").0.is_none(), "nobody vouches for that one yet");
        // Announced: what the old one signed is of the one that signs.
        all.replace(&format!("{}{}", old.cert_pem(), new.cert_pem()), None)
            .unwrap();
        drop(come(&old, "max"));
        assert!(names().is_empty());
        all.replace(&format!("{}{}", new.cert_pem(), old.cert_pem()), None)
            .unwrap();
        let all_three = [("ana".into(), true), ("bob".into(), true), ("max".into(), false)];
        assert_eq!(names(), all_three);
        drop(come(&new, "max"));
        drop(bob);
        assert_eq!(names(), [("ana".into(), true), ("bob".into(), false)]);
        let (_bob, bob_ended) = come(&new, "bob");
        assert_eq!(names(), [("ana".into(), true)], "he has another one");
        assert!(!ana_ended.is_cancelled());
        all.replace(new.cert_pem(), None).unwrap();
        assert!(ana_ended.is_cancelled() && !bob_ended.is_cancelled());
        drop(ana);
        assert!(names().is_empty());
        assert!(come(&old, "ana").0.is_none());
    }
}
