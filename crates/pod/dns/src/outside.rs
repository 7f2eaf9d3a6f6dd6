//! Names outside of the cluster: from the cache, else from the machine's servers, within a budget of their own.

use crate::cache::{Cache, Key};
use crate::told::Told;
use crate::upstream::Upstreams;
use hickory_proto::op::{Message, Query, ResponseCode};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Questions that wait for other servers at a time. One more is told at once that it failed, as CoreDNS refuses it: it
/// costs nobody his place, and names of the cluster never take one.
const WAITING: usize = 1000;

pub struct Outside {
    upstreams: Upstreams,
    cache: Mutex<Cache>,
    places: Semaphore,
    pub told: Arc<Told>,
}

impl Default for Outside {
    fn default() -> Self {
        Outside::telling(Arc::default())
    }
}

impl Outside {
    pub fn telling(told: Arc<Told>) -> Self {
        Outside {
            told,
            upstreams: Upstreams::default(),
            cache: Mutex::default(),
            places: Semaphore::new(WAITING),
        }
    }

    /// Tells how much is known. All listeners share it, and each tells it all, as it is all that each has.
    pub fn count(&self, servers: &[String]) {
        let (good, denials) = self.cache.lock().sizes();
        for server in servers {
            self.told.kept(server, good, denials);
        }
    }

    /// Other servers, from now on. What the former ones said is forgotten.
    pub fn follow(&self, servers: &[SocketAddr]) {
        if self.upstreams.addresses() != servers {
            self.upstreams.set(servers);
            self.cache.lock().clear();
        }
    }

    /// What is known already.
    pub fn known(&self, key: &Key) -> Option<Message> {
        self.cache.lock().get(key)
    }

    /// The answer: a failure is one too. Its id, question and EDNS are the caller's to set.
    pub async fn ask(&self, query: &Query, dnssec: bool, checking_disabled: bool) -> Message {
        let key = Key::of(query, dnssec, checking_disabled);
        if let Some(known) = self.known(&key) {
            return known;
        }
        let Ok(_place) = self.places.try_acquire() else {
            self.told.refused.inc();
            tracing::debug!("more than {WAITING} questions wait for other DNS servers");
            return failed();
        };
        let answer = match self.upstreams.ask(query, dnssec, checking_disabled, &self.told).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), name = %query.name(), "DNS forward");
                failed()
            }
        };
        self.cache.lock().put(key, answer.clone());
        answer
    }
}

fn failed() -> Message {
    let mut message = Message::response(0, hickory_proto::op::OpCode::Query);
    message.metadata.response_code = ResponseCode::ServFail;
    message
}
