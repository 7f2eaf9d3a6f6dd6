//! Accepted tokens, remembered for a moment.

use super::TokenIdentity;
use keelson_api::Str;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

const TTL: Duration = Duration::from_secs(10);
/// At the bound what is outdated is dropped, and if that doesn't help, everything: tokens are then checked anew.
const MAX: usize = 4096;

type Key = [u8; 32];

/// Never holds tokens themselves, only their hashes.
#[derive(Default)]
pub struct TokenCache(Mutex<HashMap<Key, (Instant, TokenIdentity)>>);

impl TokenCache {
    pub fn key(token: &str, audiences: &[Str]) -> Key {
        let mut hash = Sha256::new();
        hash.update(token);
        for a in audiences {
            hash.update([0]);
            hash.update(a);
        }
        hash.finalize().into()
    }
    pub fn get(&self, key: &Key) -> Option<TokenIdentity> {
        let (until, identity) = self.0.lock().get(key)?.clone();
        (Instant::now() < until).then_some(identity)
    }
    pub fn put(&self, key: Key, identity: TokenIdentity) {
        let mut map = self.0.lock();
        let now = Instant::now();
        if map.len() >= MAX {
            map.retain(|_, (until, _)| now < *until);
            if map.len() >= MAX {
                map.clear();
            }
        }
        map.insert(key, (now + TTL, identity));
    }
}
