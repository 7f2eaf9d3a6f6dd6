//! The servers' token as this server holds it: the one that counts, and beside it others, while one takes the place of another.

use anyhow::{Context, Result};
use keelson_pki::ServerToken;
use keelson_pki::sharing::{Sealer, WrongToken};
use parking_lot::Mutex;
use std::sync::Arc;

/// Tokens by which something may be sealed, the one that counts first.
pub struct Held {
    all: Vec<(ServerToken, Sealer)>,
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
        Ok(&first.0)
    }

    pub fn at(&self, place: usize) -> Option<&ServerToken> {
        self.all.get(place).map(|(token, _)| token)
    }

    fn place(&self, token: &ServerToken) -> Option<usize> {
        self.all.iter().position(|(held, _)| held.secret() == token.secret())
    }

    /// One more, behind the others.
    pub fn add(&mut self, token: ServerToken) {
        if self.place(&token).is_none() {
            self.all.push((token.clone(), Sealer::new(token)));
        }
    }

    /// This one counts from now on; those that did are still known.
    pub fn put_first(&mut self, token: ServerToken) {
        self.add(token.clone());
        if let Some(place) = self.place(&token) {
            self.all.swap(0, place);
        }
        // It may know more of its cluster than it did.
        if let Some((first, _)) = self.all.first_mut() {
            *first = token;
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
        for (place, (_, sealer)) in self.all.iter_mut().enumerate() {
            match sealer.open(name, stored) {
                Ok(opened) => return Ok((place, opened)),
                // The first one's word is told: it is the one that should count.
                Err(error) if error.is::<WrongToken>() => _ = wrong.get_or_insert(error),
                Err(error) => return Err(error),
            }
        }
        Err(wrong.unwrap_or_else(|| anyhow::anyhow!("there is no servers' token")))
    }

    pub fn seal(&mut self, by: usize, name: &str, content: &[u8]) -> Result<Vec<u8>> {
        let (_, sealer) = self.all.get_mut(by).context("there is no such token")?;
        sealer.seal(name, content)
    }
}
