//! What nodes tell each other several times a second: that they live, or that they leave.
//!
//! Each message is signed by a key that its sender made at its start and keeps in memory; the public one is shown on its Node, which only that
//! node and administrators write. Messages are numbered: one that was heard is worth nothing to who repeats it. Who begins to hear knows no
//! number yet: to that one, somebody on the link who has kept a dead node's messages can make it seem alive a while (and could answer for
//! its addresses himself).

use anyhow::anyhow;
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

/// The public key of a node's messages.
pub type Key = [u8; 32];

/// The longest message: a node's name has 253 bytes at most.
pub const LONGEST: usize = HEAD + 253 + SIGNATURE;
const MAGIC: [u8; 4] = *b"klb1";
const HEAD: usize = 14;
const SIGNATURE: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    Alive,
    /// It answers no more.
    Leaves,
}

/// This node, for the others.
pub struct Speaker {
    name: String,
    key: Ed25519KeyPair,
    public: Key,
    number: u64,
}

impl Speaker {
    pub fn new(name: &str) -> anyhow::Result<Speaker> {
        let unusable = |_| anyhow!("no key for what is told to other nodes");
        let pair = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(unusable)?;
        let key = Ed25519KeyPair::from_pkcs8(pair.as_ref()).map_err(|e| anyhow!("a key that was just made: {e}"))?;
        let public = key.public_key().as_ref().try_into()?;
        Ok(Speaker {
            name: name.to_string(),
            key,
            public,
            number: 0,
        })
    }

    pub fn public(&self) -> Key {
        self.public
    }

    /// The next message.
    pub fn say(&mut self, word: Word) -> Vec<u8> {
        self.number += 1;
        let mut message = MAGIC.to_vec();
        message.push(match word {
            Word::Alive => 0,
            Word::Leaves => 1,
        });
        message.extend(self.number.to_be_bytes());
        // Kubernetes' bound of names.
        let name = &self.name.as_bytes()[..self.name.len().min(253)];
        message.push(name.len() as u8);
        message.extend(name);
        let signature = self.key.sign(&message);
        message.extend(signature.as_ref());
        message
    }
}

/// A message as somebody sent it, who may be anybody.
pub struct Heard<'a> {
    pub name: &'a str,
    pub word: Word,
    pub number: u64,
    signed: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Heard<'a> {
    pub fn read(message: &'a [u8]) -> Option<Heard<'a>> {
        let head = message.first_chunk::<HEAD>()?;
        let (signed, signature) = message.split_at_checked(HEAD + usize::from(head[13]))?;
        if head[..4] != MAGIC || signature.len() != SIGNATURE {
            return None;
        }
        Some(Heard {
            name: std::str::from_utf8(&signed[HEAD..]).ok()?,
            word: match head[4] {
                0 => Word::Alive,
                1 => Word::Leaves,
                _ => return None,
            },
            number: u64::from_be_bytes(*head[5..].first_chunk()?),
            signed,
            signature,
        })
    }

    pub fn is_of(&self, key: &Key) -> bool {
        UnparsedPublicKey::new(&ED25519, key)
            .verify(self.signed, self.signature)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_its_senders_and_nobody_elses() {
        let (mut one, mut other) = (Speaker::new("n1").unwrap(), Speaker::new("n1").unwrap());
        let message = one.say(Word::Alive);
        let heard = Heard::read(&message).unwrap();
        assert_eq!((heard.name, heard.word, heard.number), ("n1", Word::Alive, 1));
        assert!(heard.is_of(&one.public()) && !heard.is_of(&other.public()));
        assert_eq!(Heard::read(&one.say(Word::Leaves)).unwrap().number, 2);
        assert!(!Heard::read(&other.say(Word::Alive)).unwrap().is_of(&one.public()));
        for at in 0..message.len() {
            let mut changed = message.clone();
            changed[at] ^= 1;
            assert!(
                !Heard::read(&changed).is_some_and(|h| h.is_of(&one.public())),
                "byte {at}"
            );
            assert!(
                !Heard::read(&message[..at]).is_some_and(|h| h.is_of(&one.public())),
                "{at} bytes"
            );
        }
        assert!(Heard::read(&[message.as_slice(), &[0]].concat()).is_none());
        let long = Speaker::new(&"n".repeat(253)).unwrap().say(Word::Alive);
        assert_eq!(long.len(), LONGEST);
    }
}
