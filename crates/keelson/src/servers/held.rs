//! The servers' token as this server holds it: the one that counts, and beside it others, while one takes the place of another.

use anyhow::{Context, Result};
use keelson_pki::ServerToken;
use keelson_pki::sharing::{Sealer, WrongToken};
use parking_lot::Mutex;
use serde::Deserialize;
use std::fmt;
use std::sync::Arc;

/// Keys that are kept of a token, one for each salt: to make one takes as long as guessing is to take.
const KEYS: usize = 8;

struct Known {
    token: ServerToken,
    sealers: Vec<(String, Sealer)>,
}

/// Tokens by which something may be sealed, the one that counts first.
pub struct Held {
    all: Vec<Known>,
}

/// Never the tokens.
impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Held({})", self.all.len())
    }
}

/// By what an item's key was made, beside the token. Whatever can't be read the sealer refuses.
fn salt(stored: &[u8]) -> String {
    #[derive(Default, Deserialize)]
    struct Salted {
        salt: String,
    }
    serde_json::from_slice::<Salted>(stored).unwrap_or_default().salt
}

impl Known {
    fn keep(&mut self, salt: String, sealer: Sealer) -> &mut Sealer {
        if self.sealers.len() >= KEYS {
            self.sealers.remove(0);
        }
        self.sealers.push((salt, sealer));
        let last = self.sealers.len() - 1;
        &mut self.sealers[last].1
    }

    fn open(&mut self, name: &str, stored: &[u8]) -> Result<Vec<u8>> {
        let salt = salt(stored);
        match self.sealers.iter().position(|(known, _)| *known == salt) {
            Some(place) => self.sealers[place].1.open(name, stored),
            None => {
                let sealer = Sealer::new(self.token.clone());
                self.keep(salt, sealer).open(name, stored)
            }
        }
    }

    /// By the key that was made last, or a new one.
    fn seal(&mut self, name: &str, content: &[u8]) -> Result<Vec<u8>> {
        if let Some((_, sealer)) = self.sealers.last_mut() {
            return sealer.seal(name, content);
        }
        let mut sealer = Sealer::new(self.token.clone());
        let sealed = sealer.seal(name, content)?;
        self.keep(salt(&sealed), sealer);
        Ok(sealed)
    }
}

/// As several of a server's tasks hold it.
pub type Shared = Arc<Mutex<Held>>;

impl Held {
    pub fn new(token: ServerToken) -> Held {
        let mut held = Held { all: Vec::new() };
        held.add(token);
        held
    }

    pub fn shared(self) -> Shared {
        Arc::new(Mutex::new(self))
    }

    pub fn token(&self) -> Result<&ServerToken> {
        let first = self.all.first().context("there is no servers' token")?;
        Ok(&first.token)
    }

    pub fn at(&self, place: usize) -> Option<&ServerToken> {
        self.all.get(place).map(|known| &known.token)
    }

    fn place(&self, token: &ServerToken) -> Option<usize> {
        self.all.iter().position(|known| known.token.secret() == token.secret())
    }

    /// One more, behind the others.
    pub fn add(&mut self, token: ServerToken) {
        if self.place(&token).is_none() {
            self.all.push(Known {
                token,
                sealers: Vec::new(),
            });
        }
    }

    /// This one counts from now on; those that did are still known.
    pub fn put_first(&mut self, token: ServerToken) {
        self.add(token.clone());
        if let Some(place) = self.place(&token) {
            self.all.swap(0, place);
        }
        // It may know more of its cluster than it did.
        if let Some(first) = self.all.first_mut() {
            first.token = token;
        }
    }

    /// Whether others are known beside it.
    pub fn has_former(&self) -> bool {
        self.all.len() > 1
    }

    pub fn forget_former(&mut self) {
        self.all.truncate(1);
    }

    /// What an item is, and by which of them it is sealed.
    pub fn open(&mut self, name: &str, stored: &[u8]) -> Result<(usize, Vec<u8>)> {
        let mut wrong = None;
        for (place, known) in self.all.iter_mut().enumerate() {
            match known.open(name, stored) {
                Ok(opened) => return Ok((place, opened)),
                // The first one's word is told: it is the one that should count.
                Err(error) if error.is::<WrongToken>() => _ = wrong.get_or_insert(error),
                Err(error) => return Err(error),
            }
        }
        Err(wrong.unwrap_or_else(|| anyhow::anyhow!("there is no servers' token")))
    }

    pub fn seal(&mut self, by: usize, name: &str, content: &[u8]) -> Result<Vec<u8>> {
        let known = self.all.get_mut(by).context("there is no such token")?;
        known.seal(name, content)
    }
}
