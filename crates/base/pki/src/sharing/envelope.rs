//! How an item is sealed: AES-256-GCM by a key that PBKDF2 makes of the servers' token. Bound to its name, so that none can be
//! put in another's place.
//!
//! A token may be one that somebody chose: so guessing it costs as much as OWASP advises for passwords. The key is made once
//! for each salt, and all items of a cluster have one.

use super::ServerToken;
use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::pbkdf2;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;

const VERSION: u32 = 1;
const CONTEXT: &str = "keelson shared item, version 1";
/// OWASP's advice for PBKDF2-HMAC-SHA256 (2023).
const ITERATIONS: u32 = 600_000;
/// What is read: a store that says less would make guessing cheap, one that says more would keep a server busy.
const LEAST_ITERATIONS: u32 = 100_000;
const MOST_ITERATIONS: u32 = 5_000_000;
const SALT: usize = 16;
/// Bytes of an item at most; certificates and keys have a few thousand.
const MOST: usize = 256 << 10;

/// Fields are added and passed over by who doesn't know them; what changes the meaning of others is another version.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    version: u32,
    iterations: u32,
    salt: String,
    nonce: String,
    sealed: String,
}

/// What seals and opens a cluster's items by its token.
pub struct Sealer {
    token: ServerToken,
    key: Option<Made>,
}

struct Made {
    salt: Vec<u8>,
    iterations: u32,
    key: LessSafeKey,
}

impl Sealer {
    pub fn new(token: ServerToken) -> Self {
        Sealer { token, key: None }
    }

    fn key(&mut self, salt: &[u8], iterations: u32) -> Result<&LessSafeKey> {
        let same = |made: &Made| made.salt == salt && made.iterations == iterations;
        let made = match self.key.take().filter(same) {
            Some(made) => made,
            None => {
                let rounds = NonZeroU32::new(iterations).context("no iterations")?;
                let mut bytes = [0; 32];
                let secret = self.token.secret().as_bytes();
                pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, secret, &mut bytes);
                let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| anyhow::anyhow!("no key"))?;
                Made {
                    salt: salt.to_vec(),
                    iterations,
                    key: LessSafeKey::new(key),
                }
            }
        };
        Ok(&self.key.insert(made).key)
    }

    /// An item for the store.
    pub fn seal(&mut self, name: &str, content: &[u8]) -> Result<Vec<u8>> {
        ensure!(
            content.len() <= MOST,
            "{name} has {} bytes; {MOST} can be shared",
            content.len()
        );
        let random = SystemRandom::new();
        let fill = |bytes: &mut [u8]| random.fill(bytes).map_err(|_| anyhow::anyhow!("no random numbers"));
        let (salt, iterations) = match &self.key {
            Some(made) => (made.salt.clone(), made.iterations),
            None => {
                let mut salt = vec![0; SALT];
                fill(&mut salt)?;
                (salt, ITERATIONS)
            }
        };
        let mut nonce = [0; NONCE_LEN];
        fill(&mut nonce)?;
        let mut sealed = content.to_vec();
        let key = self.key(&salt, iterations)?;
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), bound_to(name), &mut sealed)
            .map_err(|_| anyhow::anyhow!("{name} can't be sealed"))?;
        Ok(serde_json::to_vec(&Envelope {
            version: VERSION,
            iterations,
            salt: STANDARD.encode(&salt),
            nonce: STANDARD.encode(nonce),
            sealed: STANDARD.encode(&sealed),
        })?)
    }

    /// An item from the store. By another token it can't be opened.
    pub fn open(&mut self, name: &str, stored: &[u8]) -> Result<Vec<u8>> {
        let unreadable = || format!("what the store has as the servers' {name} can't be read");
        ensure!(stored.len() <= 2 * MOST, unreadable());
        let envelope: Envelope = serde_json::from_slice(stored).with_context(unreadable)?;
        ensure!(
            envelope.version == VERSION && (LEAST_ITERATIONS..=MOST_ITERATIONS).contains(&envelope.iterations),
            "{}: it is of another version of Keelson",
            unreadable()
        );
        let decode = |text: &str| STANDARD.decode(text).with_context(unreadable);
        let (salt, nonce) = (decode(&envelope.salt)?, decode(&envelope.nonce)?);
        let nonce = Nonce::try_assume_unique_for_key(&nonce).map_err(|_| anyhow::anyhow!(unreadable()))?;
        let mut sealed = decode(&envelope.sealed)?;
        let key = self.key(&salt, envelope.iterations)?;
        let opened = key.open_in_place(nonce, bound_to(name), &mut sealed);
        let opened = opened.map_err(|_| WrongToken(name.into()))?;
        Ok(opened.to_vec())
    }
}

fn bound_to(name: &str) -> Aad<Vec<u8>> {
    Aad::from([CONTEXT.as_bytes(), b"\0", name.as_bytes()].concat())
}

/// The item is sealed by another token, or was tampered with.
#[derive(Debug)]
pub struct WrongToken(String);

impl std::fmt::Display for WrongToken {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(
            f,
            "the token is not the one of the servers of this store ({} can't be opened by it): it stands in pki/server-token in the data directory of each of them",
            self.0
        )
    }
}
impl std::error::Error for WrongToken {}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(token: &str) -> Sealer {
        Sealer::new(token.parse().unwrap())
    }

    #[test]
    fn only_the_same_token_opens_and_only_under_the_same_name() {
        let mut first = sealer("the-token-of-servers");
        let ca = first.seal("ca", b"a key").unwrap();
        let sa = first.seal("sa", b"a key").unwrap();
        assert!(!String::from_utf8_lossy(&ca).contains("a key"));
        let mut second = sealer("the-token-of-servers");
        assert_eq!(second.open("ca", &ca).unwrap(), b"a key");
        // What the second adds is sealed by the same key: it costs no second derivation.
        let more = second.seal("more", b"b").unwrap();
        let salt = |bytes: &[u8]| serde_json::from_slice::<Envelope>(bytes).unwrap().salt;
        assert!(salt(&ca) == salt(&sa) && salt(&ca) == salt(&more));
        assert_ne!(
            serde_json::from_slice::<Envelope>(&ca).unwrap().nonce,
            serde_json::from_slice::<Envelope>(&sa).unwrap().nonce
        );
        assert!(second.open("sa", &ca).unwrap_err().is::<WrongToken>());
        assert!(
            sealer("another-token-of-servers")
                .open("ca", &ca)
                .unwrap_err()
                .is::<WrongToken>()
        );
    }

    #[test]
    fn what_was_changed_in_the_store_is_refused() {
        let mut sealer = sealer("the-token-of-servers");
        let stored = sealer.seal("ca", b"a key").unwrap();
        let changed = |change: fn(&mut Envelope)| {
            let mut envelope: Envelope = serde_json::from_slice(&stored).unwrap();
            change(&mut envelope);
            serde_json::to_vec(&envelope).unwrap()
        };
        for bad in [
            changed(|e| e.sealed.replace_range(0..4, "AAAA")),
            changed(|e| e.nonce = STANDARD.encode([0; NONCE_LEN])),
            changed(|e| e.nonce = "AAAA".into()),
            changed(|e| e.salt = STANDARD.encode([0; SALT])),
            changed(|e| e.iterations = 1),
            changed(|e| e.iterations = u32::MAX),
            changed(|e| e.version = 2),
            b"{}".to_vec(),
            Vec::new(),
        ] {
            assert!(sealer.open("ca", &bad).is_err(), "{}", String::from_utf8_lossy(&bad));
        }
        assert_eq!(sealer.open("ca", &stored).unwrap(), b"a key");
        assert!(sealer.seal("ca", &vec![0; MOST + 1]).is_err());
        let mut later: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&stored).unwrap();
        later.insert("by".into(), "a later version".into());
        let later = serde_json::to_vec(&later).unwrap();
        assert_eq!(sealer.open("ca", &later).unwrap(), b"a key", "more is passed over");
    }
}
