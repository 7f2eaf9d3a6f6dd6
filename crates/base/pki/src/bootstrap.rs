//! Bootstrap tokens (`abcdef.0123456789abcdef`), and what a joining machine is given: a token and the hash of the
//! cluster's authority, so that it can't be led to another cluster.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::Rng;
use ring::hmac;
use std::fmt;
use std::str::FromStr;

const ALPHABET: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// A token kept as the Secret `kube-system/bootstrap-token-<id>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootstrapToken {
    pub id: String,
    pub secret: String,
}

impl BootstrapToken {
    pub fn generate() -> Self {
        let mut rng = rand::rng();
        let mut text = |n: usize| {
            (0..n)
                .map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))
                .collect()
        };
        BootstrapToken {
            id: text(6),
            secret: text(16),
        }
    }
    pub fn secret_name(&self) -> String {
        format!("bootstrap-token-{}", self.id)
    }
    /// A signature of `content` as JSON web signatures write it (HS256, compact), without the content itself.
    pub fn sign_detached(&self, content: &str) -> String {
        let header = serde_json::json!({"alg": "HS256", "kid": self.id}).to_string();
        let header = URL_SAFE_NO_PAD.encode(header);
        let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.secret.as_bytes());
        let signature = hmac::sign(&key, message.as_bytes());
        format!("{header}..{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

impl FromStr for BootstrapToken {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let plain = |t: &str, n: usize| t.len() == n && t.bytes().all(|b| ALPHABET.contains(&b));
        match s.split_once('.') {
            Some((id, secret)) if plain(id, 6) && plain(secret, 16) => Ok(BootstrapToken {
                id: id.into(),
                secret: secret.into(),
            }),
            _ => Err("a bootstrap token has the form abcdef.0123456789abcdef".into()),
        }
    }
}
impl fmt::Display for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.secret)
    }
}

/// `<id>.<secret>.<hex SHA-256 of the authority's certificate>`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    pub token: BootstrapToken,
    pub ca_hash: String,
}

impl FromStr for JoinToken {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let (token, hash) = s
            .trim()
            .rsplit_once('.')
            .ok_or("a join token has the form <id>.<secret>.<hash of the authority>")?;
        if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err("the join token's last part is no SHA-256 hash: was it cut short when copied?".into());
        }
        Ok(JoinToken {
            token: token.parse()?,
            ca_hash: hash.to_ascii_lowercase(),
        })
    }
}
impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}.{}", self.token, self.ca_hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // What upstream's code makes of the same token and content.
    #[test]
    fn signatures_are_upstreams() {
        let token: BootstrapToken = "joshua.xxxxxxxxxxxxxxxx".parse().expect("a token");
        let token = BootstrapToken {
            secret: "my voice is my passcode".into(),
            ..token
        };
        let content = "Hello from the other side. I must have called a thousand times.";
        let signature = token.sign_detached(content);
        assert_eq!(
            signature,
            "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8"
        );
    }

    #[test]
    fn tokens_survive_being_written_and_read() {
        let join = JoinToken {
            token: BootstrapToken::generate(),
            ca_hash: "ab".repeat(32),
        };
        assert_eq!(join.to_string().parse(), Ok(join.clone()));
        for bad in ["", "abc", "abcdef.0123456789ABCDEF", "abcdef.0123456789abcde"] {
            assert!(bad.parse::<BootstrapToken>().is_err(), "{bad}");
        }
        assert!(join.token.to_string().parse::<JoinToken>().is_err());
    }
}
