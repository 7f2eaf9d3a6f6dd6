//! The token of a cluster's servers. Who holds it can have everything: it opens what servers share, and lets a machine become
//! one. Not to be confused with tokens for agents ([`crate::JoinToken`]), by which a machine becomes a node.

use rand::Rng;
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

const ALPHABET: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
/// What a token of ours begins with.
const KIND: &str = "server";
/// Of a secret that we make: 165 bits. Of one that somebody chose: at least, and at most.
const MADE: usize = 32;
const LEAST: usize = 16;
const MOST: usize = 256;

/// `server.<secret>.<hex SHA-256 of the authority's certificate>`, or without the last part, or a secret that somebody chose.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerToken {
    secret: String,
    /// Of the cluster's authority. Without it a machine can't be sure whom it asks.
    ca_hash: Option<String>,
}

impl ServerToken {
    pub fn generate() -> Self {
        let mut rng = rand::rng();
        let one = |_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]);
        ServerToken {
            secret: (0..MADE).map(one).collect(),
            ca_hash: None,
        }
    }

    pub fn secret(&self) -> &str {
        &self.secret
    }
    pub fn ca_hash(&self) -> Option<&str> {
        self.ca_hash.as_deref()
    }
    /// The same for the cluster of this authority.
    pub fn with_ca_hash(self, hash: String) -> Self {
        ServerToken {
            ca_hash: Some(hash),
            ..self
        }
    }

    /// As a server takes it from who asks to become one.
    pub fn bearer(&self) -> String {
        format!("{KIND}.{}", self.secret)
    }

    /// Whether this is it, in a time that tells nothing about the secret.
    pub fn is_borne(&self, bearer: &str) -> bool {
        let digest = |text: &str| Sha256::digest(text.as_bytes());
        let (own, other) = (digest(&self.bearer()), digest(bearer));
        own.iter().zip(other.iter()).fold(0, |found, (a, b)| found | (a ^ b)) == 0
    }

    /// The whole of it, to be written where only its owner reads it.
    pub fn reveal(&self) -> String {
        match &self.ca_hash {
            Some(hash) => format!("{KIND}.{}.{hash}", self.secret),
            None => self.bearer(),
        }
    }
}

/// Never the secret.
impl fmt::Debug for ServerToken {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "ServerToken({:?})", self.ca_hash)
    }
}

impl FromStr for ServerToken {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.parse::<crate::JoinToken>().is_ok() || text.parse::<crate::BootstrapToken>().is_ok() {
            return Err("this token is for agents: a server needs the servers' token, pki/server-token in the data directory of any server".into());
        }
        let (secret, hash) = match text.strip_prefix("server.") {
            None => (text, None),
            Some(rest) => match rest.split_once('.') {
                Some((secret, hash)) => (secret, Some(hash)),
                None => (rest, None),
            },
        };
        if !secret
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        {
            return Err("a server's token consists of letters, digits, - and _".into());
        }
        if !(LEAST..=MOST).contains(&secret.len()) {
            return Err(format!(
                "a server's token has {LEAST} to {MOST} characters: who guesses it has the cluster"
            ));
        }
        if hash.is_some_and(|h| h.len() != 64 || !h.bytes().all(|b| b.is_ascii_hexdigit())) {
            return Err("the token's last part is no SHA-256 hash: was it cut short when copied?".into());
        }
        Ok(ServerToken {
            secret: secret.into(),
            ca_hash: hash.map(str::to_ascii_lowercase),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_as_they_were_written_and_never_shown() {
        let token = ServerToken::generate();
        let whole = token.clone().with_ca_hash("ab".repeat(32));
        for token in [&token, &whole] {
            let read: ServerToken = token.reveal().parse().unwrap();
            assert!(read == *token);
            assert!(!format!("{token:?}").contains(token.secret()));
        }
        assert!(whole.is_borne(&token.bearer()) && !whole.is_borne(&whole.reveal()) && !whole.is_borne("server."));
        let chosen: ServerToken = "a-secret_of-somebody\n".parse().unwrap();
        assert_eq!(chosen.secret(), "a-secret_of-somebody");
        assert_eq!(chosen.bearer(), "server.a-secret_of-somebody");
    }

    #[test]
    fn what_is_no_token_of_servers_is_refused_with_the_reason() {
        let agents = format!("{}.{}", crate::BootstrapToken::generate(), "cd".repeat(32));
        for (text, why) in [
            (agents.as_str(), "for agents"),
            ("abcdef.0123456789abcdef", "for agents"),
            ("short", "16 to 256 characters"),
            ("a secret with blanks in it", "letters, digits"),
            ("server.0123456789abcdefgh.abc", "cut short"),
        ] {
            let refused = text.parse::<ServerToken>().unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
