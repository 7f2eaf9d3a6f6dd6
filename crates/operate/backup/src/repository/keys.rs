//! A repository's keys: one secret, drawn when the repository is made, from which two come. What seals is AES-256-GCM with nonces at
//! random, bound to the name of what is sealed; names of pieces are HMACs, so that whoever sees them can't tell what they are of.
//!
//! The secret stands in the repository, sealed by a key that PBKDF2 makes of a passphrase; or as it is, where no encryption was asked for.
//! Nothing here has a form that a log could show.

use super::{Damage, Result};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::pbkdf2::{self, PBKDF2_HMAC_SHA256};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;

const SECRET: usize = 32;
/// As OWASP asks of this function; about a third of a second.
const ITERATIONS: u32 = 600_000;
/// What a file may ask of us.
const BOUNDS: std::ops::RangeInclusive<u32> = 100_000..=20_000_000;
const SHORTEST: usize = 12;

/// What opens a repository.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    Passphrase(String),
    /// Asked for by name: whoever reads the repository reads all that is in it.
    None,
}

impl Secret {
    /// # Errors
    ///
    /// If it is so short that it can be guessed.
    pub fn passphrase(text: &str) -> Result<Secret> {
        let text = text.trim_end_matches(['\n', '\r']);
        match text.chars().count() >= SHORTEST {
            true => Ok(Secret::Passphrase(text.into())),
            false => Err(Damage::Refused(format!(
                "a passphrase has at least {SHORTEST} characters"
            ))),
        }
    }
}

/// How a repository's secret is kept in it.
#[derive(Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Kept {
    #[serde(rename_all = "camelCase")]
    Sealed {
        kdf: String,
        iterations: u32,
        salt: String,
        sealed: String,
    },
    Plain(String),
}

const KDF: &str = "pbkdf2-hmac-sha256";

pub struct Keys {
    /// `None`: nothing is sealed.
    seal: Option<LessSafeKey>,
    names: hmac::Key,
}

/// A piece's name, from which its content can't be told.
pub type Id = [u8; 32];

pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let drawn = SystemRandom::new().fill(&mut bytes);
    drawn.map_err(|_| Damage::Refused("the machine gives no randomness".into()))?;
    Ok(bytes)
}

impl Keys {
    /// New ones, and how they are kept. Takes a while.
    pub fn make(repository: &str, secret: &Secret) -> Result<(Keys, Kept)> {
        let drawn: [u8; SECRET] = random()?;
        let kept = match secret {
            Secret::None => Kept::Plain(hex::encode(drawn)),
            Secret::Passphrase(passphrase) => {
                let salt: [u8; 16] = random()?;
                let key = stretched(passphrase, &salt, ITERATIONS);
                Kept::Sealed {
                    kdf: KDF.into(),
                    iterations: ITERATIONS,
                    salt: hex::encode(salt),
                    sealed: hex::encode(seal(&key, repository.as_bytes(), &drawn)?),
                }
            }
        };
        Ok((Keys::of(&drawn, *secret != Secret::None), kept))
    }

    /// Takes a while, where a passphrase opens it.
    pub fn open(repository: &str, kept: &Kept, secret: &Secret) -> Result<Keys> {
        let refused = |why: &str| Err(Damage::Refused(why.into()));
        let malformed = || Damage::Refused("the repository's configuration is malformed".into());
        let unhex = |text: &str| hex::decode(text).map_err(|_| malformed());
        let secret_of = |drawn: Vec<u8>| <[u8; SECRET]>::try_from(drawn).map_err(|_| malformed());
        match (kept, secret) {
            (Kept::Plain(drawn), Secret::None) => Ok(Keys::of(&secret_of(unhex(drawn)?)?, false)),
            (Kept::Plain(_), Secret::Passphrase(_)) => refused(
                "the repository isn't encrypted, and a passphrase was given: say --unencrypted, or take another place",
            ),
            (Kept::Sealed { .. }, Secret::None) => refused("the repository is encrypted: give its passphrase"),
            (Kept::Sealed { kdf, .. }, _) if kdf != KDF => {
                refused(&format!("the repository's key is made by {kdf:?}, which isn't known"))
            }
            (
                Kept::Sealed {
                    iterations,
                    salt,
                    sealed,
                    ..
                },
                Secret::Passphrase(passphrase),
            ) => {
                if !BOUNDS.contains(iterations) {
                    return Err(malformed());
                }
                let key = stretched(passphrase, &unhex(salt)?, *iterations);
                match open(&key, repository.as_bytes(), unhex(sealed)?) {
                    Some(drawn) => Ok(Keys::of(&secret_of(drawn)?, true)),
                    None => refused("that isn't the repository's passphrase"),
                }
            }
        }
    }

    fn of(drawn: &[u8; SECRET], sealed: bool) -> Keys {
        let from = hmac::Key::new(hmac::HMAC_SHA256, drawn);
        let derived = |what: &[u8]| hmac::sign(&from, what);
        Keys {
            seal: sealed.then(|| key(derived(b"keelson backup: seal").as_ref())),
            names: hmac::Key::new(hmac::HMAC_SHA256, derived(b"keelson backup: names").as_ref()),
        }
    }

    pub fn is_sealed(&self) -> bool {
        self.seal.is_some()
    }

    pub fn id(&self, content: &[u8]) -> Id {
        let mut id = [0; 32];
        id.copy_from_slice(hmac::sign(&self.names, content).as_ref());
        id
    }

    /// What is kept under a name: nonce and what is sealed; or the content, with its HMAC in front.
    pub fn seal(&self, name: &str, content: &[u8]) -> Result<Vec<u8>> {
        match &self.seal {
            Some(key) => seal(key, name.as_bytes(), content),
            None => Ok([&self.mark(name, content)[..], content].concat()),
        }
    }

    /// `None`: it isn't what was kept under that name.
    pub fn open_sealed(&self, name: &str, kept: Vec<u8>) -> Option<Vec<u8>> {
        match &self.seal {
            Some(key) => open(key, name.as_bytes(), kept),
            None => {
                let (mark, content) = kept.split_first_chunk::<32>()?;
                (*mark == self.mark(name, content)).then(|| content.to_vec())
            }
        }
    }

    fn mark(&self, name: &str, content: &[u8]) -> Id {
        self.id(&[name.as_bytes(), b"\0", content].concat())
    }
}

fn key(bytes: &[u8]) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, bytes);
    // 32 bytes are a key.
    LessSafeKey::new(key.unwrap_or_else(|_| unreachable!("a key of another length")))
}

fn stretched(passphrase: &str, salt: &[u8], iterations: u32) -> LessSafeKey {
    let mut made = [0; 32];
    let iterations = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
    pbkdf2::derive(PBKDF2_HMAC_SHA256, iterations, salt, passphrase.as_bytes(), &mut made);
    key(&made)
}

fn seal(key: &LessSafeKey, name: &[u8], content: &[u8]) -> Result<Vec<u8>> {
    let nonce: [u8; NONCE_LEN] = random()?;
    let mut kept = Vec::with_capacity(NONCE_LEN + content.len() + AES_256_GCM.tag_len());
    kept.extend_from_slice(&nonce);
    kept.extend_from_slice(content);
    let sealed = key.seal_in_place_separate_tag(
        Nonce::assume_unique_for_key(nonce),
        Aad::from(name),
        &mut kept[NONCE_LEN..],
    );
    let tag = sealed.map_err(|_| Damage::Refused("it can't be sealed".into()))?;
    kept.extend_from_slice(tag.as_ref());
    Ok(kept)
}

fn open(key: &LessSafeKey, name: &[u8], mut kept: Vec<u8>) -> Option<Vec<u8>> {
    let nonce: [u8; NONCE_LEN] = kept.first_chunk().copied()?;
    let opened = key.open_within(
        Nonce::assume_unique_for_key(nonce),
        Aad::from(name),
        &mut kept,
        NONCE_LEN..,
    );
    let length = opened.ok()?.len();
    kept.truncate(length);
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase(text: &str) -> Secret {
        Secret::passphrase(text).unwrap()
    }

    #[test]
    fn a_repository_opens_by_its_own_secret_only() {
        let right = passphrase("correct horse battery\n");
        let (made, kept) = Keys::make("r1", &right).unwrap();
        let sealed = made.seal("chunks/a", b"content").unwrap();
        let again = Keys::open("r1", &kept, &right).unwrap();
        assert_eq!(again.open_sealed("chunks/a", sealed.clone()).unwrap(), b"content");
        assert_eq!(again.id(b"content"), made.id(b"content"));
        let refused =
            |repository, kept: &Kept, secret: &Secret| Keys::open(repository, kept, secret).err().unwrap().to_string();
        assert!(refused("r1", &kept, &passphrase("correct horse batterz")).contains("passphrase"));
        assert!(
            refused("r2", &kept, &right).contains("passphrase"),
            "bound to its repository"
        );
        assert!(refused("r1", &kept, &Secret::None).contains("is encrypted"));
        let mut slow = kept.clone();
        if let Kept::Sealed { iterations, .. } = &mut slow {
            *iterations = u32::MAX;
        }
        assert!(
            refused("r1", &slow, &right).contains("malformed"),
            "nobody makes us compute for hours"
        );
        let (_, plain) = Keys::make("r1", &Secret::None).unwrap();
        assert!(refused("r1", &plain, &right).contains("isn't encrypted"));
        assert!(Secret::passphrase("too short").is_err());
    }

    #[test]
    fn what_was_changed_or_moved_is_told() {
        for secret in [Secret::None, passphrase("correct horse battery")] {
            let (keys, _) = Keys::make("r1", &secret).unwrap();
            let kept = keys.seal("chunks/a", b"content").unwrap();
            assert_eq!(keys.is_sealed(), !kept.windows(7).any(|w| w == b"content"));
            assert!(
                keys.open_sealed("chunks/b", kept.clone()).is_none(),
                "under another name"
            );
            for at in 0..kept.len() {
                let mut flipped = kept.clone();
                flipped[at] ^= 1;
                assert!(keys.open_sealed("chunks/a", flipped).is_none(), "byte {at}");
                assert!(
                    keys.open_sealed("chunks/a", kept[..at].to_vec()).is_none(),
                    "cut at {at}"
                );
            }
        }
    }
}
