//! The record of a token that is to take the place of the present one.

use super::super::held::Held;
use super::plan::Can;
use anyhow::Context;
use jiff::Timestamp;
use keelson_pki::ServerToken;
use keelson_pki::sharing::WrongToken;
use serde::{Deserialize, Serialize};

/// Where it is, beside what servers share.
pub const NAME: &str = "token-turn";
const NEXT: &str = "token-next";
const PROOF: &str = "token-proof";

/// Fields are added and never change their meaning.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Turn {
    pub id: String,
    pub began: Timestamp,
    /// The next token, sealed by the present one.
    next: String,
    /// The id, sealed by the next one: who has that knows it.
    proof: String,
}

/// Where a server says what it took.
pub fn said(address: &str) -> String {
    format!("token-taken/{address}")
}

impl Turn {
    /// From the token that counts to another.
    pub fn new(held: &mut Held, next: &ServerToken, began: Timestamp) -> anyhow::Result<Turn> {
        let id = uuid::Uuid::new_v4().to_string();
        let sealed = held.seal(0, NEXT, next.bearer().as_bytes())?;
        let proof = Held::new(next.clone()).seal(0, PROOF, id.as_bytes())?;
        Ok(Turn {
            id,
            began,
            next: String::from_utf8(sealed)?,
            proof: String::from_utf8(proof)?,
        })
    }

    pub fn parse(stored: &[u8]) -> anyhow::Result<Turn> {
        serde_json::from_slice(stored).context("the record of the servers' next token")
    }

    /// The next token, if any that is held opens the record.
    pub fn next(&self, held: &mut Held) -> anyhow::Result<Option<ServerToken>> {
        if let Some((place, _)) = maybe(held.open(PROOF, self.proof.as_bytes()))? {
            return Ok(held.at(place).cloned());
        }
        let Some((_, token)) = maybe(held.open(NEXT, self.next.as_bytes()))? else {
            return Ok(None);
        };
        let token = String::from_utf8(token)?.parse::<ServerToken>();
        Ok(Some(token.map_err(anyhow::Error::msg)?))
    }

    /// How the token that counts here stands to it.
    pub fn seen(&self, held: &mut Held) -> anyhow::Result<Can> {
        Ok(match maybe(held.open(PROOF, self.proof.as_bytes()))? {
            Some((0, _)) => Can::Next,
            _ => match self.next(held)? {
                Some(_) => Can::Former,
                None => Can::Neither,
            },
        })
    }
}

/// `None`: it is sealed by another token.
pub fn maybe<T>(opened: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
    match opened {
        Err(error) if error.is::<WrongToken>() => Ok(None),
        opened => opened.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_present_token_takes_the_next_and_nobody_else_does() {
        let [present, next, other] = [(); 3].map(|()| ServerToken::generate());
        let mut held = Held::new(present.clone());
        let turn = Turn::new(&mut held, &next, Timestamp::UNIX_EPOCH).unwrap();
        let text = serde_json::to_string(&turn).unwrap();
        assert!(!text.contains(next.secret()) && !text.contains(present.secret()));
        let turn = Turn::parse(text.as_bytes()).unwrap();
        assert_eq!(turn.seen(&mut held).unwrap(), Can::Former);
        assert!(turn.next(&mut held).unwrap().unwrap() == next);
        held.put_first(next.clone());
        assert_eq!(turn.seen(&mut held).unwrap(), Can::Next);
        // Started anew with what it had first.
        let mut started = Held::new(present);
        started.add(next.clone());
        assert_eq!(turn.seen(&mut started).unwrap(), Can::Former);
        assert!(turn.next(&mut started).unwrap().unwrap() == next);
        assert_eq!(turn.seen(&mut Held::new(next)).unwrap(), Can::Next);
        let mut stranger = Held::new(other);
        assert_eq!(turn.seen(&mut stranger).unwrap(), Can::Neither);
        assert!(turn.next(&mut stranger).unwrap().is_none());
    }
}
