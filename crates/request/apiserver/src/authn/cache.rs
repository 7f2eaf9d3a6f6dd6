//! What was found out about tokens, remembered for a moment; and found out once for all who ask meanwhile.
//!
//! Good tokens have room of their own, so that a flood of bad ones doesn't push them out. What is being found out is bounded
//! where somebody else has to be asked for it ([`Waiting`]); what this server finds out by itself takes no time.

use super::TokenIdentity;
use super::waiting::Waiting;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use keelson_api::Str;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

/// The most of each that is remembered. At the bound what is outdated is dropped, and if that doesn't help, everything:
/// tokens are then checked anew.
const MAX: usize = 4096;
/// How long finding out may take, as upstream.
const TIMEOUT: Duration = Duration::from_secs(30);

type Key = [u8; 32];
/// `Ok(None)`: nobody knows the token.
pub type Found = Result<Option<TokenIdentity>, String>;
type Flight = Shared<BoxFuture<'static, Found>>;

/// Never holds tokens themselves, only their hashes.
pub struct TokenCache {
    good: Mutex<HashMap<Key, (Instant, TokenIdentity)>>,
    /// Tokens that nobody knows, until when.
    bad: Mutex<HashMap<Key, Instant>>,
    flights: Mutex<HashMap<Key, Flight>>,
    waiting: Option<Waiting>,
    good_for: Duration,
    bad_for: Duration,
}

impl TokenCache {
    /// For tokens that this server knows, or that are bounded where they wait.
    pub fn new(good_for: Duration, bad_for: Duration) -> Arc<TokenCache> {
        TokenCache::with(None, good_for, bad_for)
    }

    /// For tokens that somebody else is asked about.
    pub fn of_others(good_for: Duration, bad_for: Duration) -> Arc<TokenCache> {
        TokenCache::with(Some(Waiting::default()), good_for, bad_for)
    }

    fn with(waiting: Option<Waiting>, good_for: Duration, bad_for: Duration) -> Arc<TokenCache> {
        Arc::new(TokenCache {
            good: Mutex::default(),
            bad: Mutex::default(),
            flights: Mutex::default(),
            waiting,
            good_for,
            bad_for,
        })
    }

    /// What is known of a token, or what `ask` finds out. Failures are not remembered.
    pub async fn through<F>(self: &Arc<Self>, token: &str, audiences: &[Str], ask: impl FnOnce() -> F) -> Found
    where
        F: Future<Output = Found> + Send + 'static,
    {
        let key = key(token, audiences);
        if let Some(found) = self.get(&key) {
            return Ok(found);
        }
        let flight = {
            let mut flights = self.flights.lock();
            if let Some(flight) = flights.get(&key) {
                flight.clone()
            } else if let Some(found) = self.get(&key) {
                return Ok(found);
            } else {
                let place = match &self.waiting {
                    Some(waiting) => Some(waiting.enter(token.len())?),
                    None => None,
                };
                let flight = self.start(key, ask(), place);
                flights.insert(key, flight.clone());
                flight
            }
        };
        flight.await
    }

    /// Who asked first may go away; others wait for the same answer.
    fn start(
        self: &Arc<Self>,
        key: Key,
        asked: impl Future<Output = Found> + Send + 'static,
        place: Option<OwnedSemaphorePermit>,
    ) -> Flight {
        let landing = Landing {
            cache: self.clone(),
            key,
            _place: place,
        };
        let task = keelson_listen::for_all().spawn(async move {
            let found = match tokio::time::timeout(TIMEOUT, asked).await {
                Ok(found) => found,
                Err(_) => Err("context deadline exceeded".into()),
            };
            if let Ok(found) = &found {
                landing.cache.put(landing.key, found);
            }
            drop(landing);
            found
        });
        let failed = || Err("authentication failed unexpectedly".into());
        task.map(move |ended| ended.unwrap_or_else(|_| failed()))
            .boxed()
            .shared()
    }

    fn get(&self, key: &Key) -> Option<Option<TokenIdentity>> {
        let now = Instant::now();
        if let Some((until, identity)) = self.good.lock().get(key)
            && now < *until
        {
            return Some(Some(identity.clone()));
        }
        self.bad.lock().get(key).filter(|until| now < **until).map(|_| None)
    }

    fn put(&self, key: Key, found: &Option<TokenIdentity>) {
        let now = Instant::now();
        match found {
            Some(identity) if !self.good_for.is_zero() => {
                let mut good = self.good.lock();
                make_room(&mut good, |(until, _)| now < *until);
                good.insert(key, (now + self.good_for, identity.clone()));
            }
            None if !self.bad_for.is_zero() => {
                let mut bad = self.bad.lock();
                make_room(&mut bad, |until| now < *until);
                bad.insert(key, now + self.bad_for);
            }
            _ => {}
        }
    }
}

fn make_room<V>(map: &mut HashMap<Key, V>, lasts: impl Fn(&V) -> bool) {
    if map.len() >= MAX {
        map.retain(|_, v| lasts(v));
        if map.len() >= MAX {
            map.clear();
        }
    }
}

/// Takes a flight off, however it ends.
struct Landing {
    cache: Arc<TokenCache>,
    key: Key,
    _place: Option<OwnedSemaphorePermit>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.cache.flights.lock().remove(&self.key);
    }
}

fn key(token: &str, audiences: &[Str]) -> Key {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    };
    add(token);
    audiences.iter().for_each(|a| add(a));
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::super::waiting::{LONGEST, PLACES};
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_token_is_asked_about_once_and_good_ones_outlive_a_flood_of_bad_ones() {
        let cache = TokenCache::new(Duration::from_secs(120), Duration::from_secs(120));
        let asked = Arc::new(AtomicUsize::new(0));
        let ask = |token: String| {
            let (cache, asked) = (cache.clone(), asked.clone());
            async move {
                let answer = token.clone();
                cache
                    .through(&token, &[], || async move {
                        asked.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        match answer.as_str() {
                            "good" => Ok(Some(TokenIdentity::default())),
                            "broken" => Err("it is broken".into()),
                            _ => Ok(None),
                        }
                    })
                    .await
            }
        };
        let all = futures::future::join_all((0..50).map(|_| ask("good".into()))).await;
        assert!(all.iter().all(|found| matches!(found, Ok(Some(_)))));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        for _ in 0..2 {
            assert!(ask("broken".into()).await.is_err());
            assert!(matches!(ask("bad".into()).await, Ok(None)));
        }
        assert_eq!(
            asked.load(Ordering::Relaxed),
            4,
            "failures are asked again, strangers not"
        );
        futures::future::join_all((0..2 * MAX).map(|i| ask(i.to_string()))).await;
        assert!(cache.bad.lock().len() <= MAX && cache.flights.lock().is_empty());
        let before = asked.load(Ordering::Relaxed);
        assert!(matches!(ask("good".into()).await, Ok(Some(_))));
        assert_eq!(asked.load(Ordering::Relaxed), before);
        tokio::time::advance(Duration::from_secs(121)).await;
        assert!(matches!(ask("good".into()).await, Ok(Some(_))));
        assert_eq!(asked.load(Ordering::Relaxed), before + 1);
    }

    /// Somebody who doesn't answer is asked about more tokens than there are places.
    #[tokio::test(start_paused = true)]
    async fn a_flood_of_tokens_waits_within_bounds_and_refuses_nobody_who_is_known() {
        let cache = TokenCache::of_others(Duration::from_secs(120), Duration::from_secs(120));
        let good = || std::future::ready::<Found>(Ok(Some(TokenIdentity::default())));
        let never = || futures::future::pending::<Found>();
        assert!(matches!(cache.through("known", &[], good).await, Ok(Some(_))));
        let flood: Vec<_> = (0..3 * PLACES)
            .map(|i| {
                let cache = cache.clone();
                tokio::spawn(async move { cache.through(&format!("flood {i}"), &[], never).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(cache.flights.lock().len(), PLACES);
        assert_eq!(flood.iter().filter(|f| f.is_finished()).count(), 2 * PLACES);
        let full = cache.through("new", &[], good).await.unwrap_err();
        assert!(full.contains("too many tokens"), "{full}");
        assert!(matches!(cache.through("known", &[], never).await, Ok(Some(_))));
        // Their time is over.
        for waited in flood {
            assert!(waited.await.unwrap().is_err());
        }
        assert!(cache.flights.lock().is_empty());
        assert!(matches!(cache.through("new", &[], good).await, Ok(Some(_))));
        let long = "x".repeat(LONGEST + 1);
        assert!(cache.through(&long, &[], good).await.is_err());
    }

    #[test]
    fn what_is_asked_is_told_apart() {
        let a = |list: &[&str]| list.iter().map(|s| Str::from(*s)).collect::<Vec<_>>();
        assert_ne!(key("ab", &[]), key("a", &a(&["b"])));
        assert_ne!(key("a", &a(&["b", "c"])), key("a", &a(&["bc"])));
    }
}
