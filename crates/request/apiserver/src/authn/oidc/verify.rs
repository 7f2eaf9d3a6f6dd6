//! Whether a token is good: who signed it, for whom, and for how long. Checks, order and words are those of the library that
//! upstream uses.

use super::keys::RemoteKeys;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keelson_machinery::go::go_quote;
use keelson_pki::jwt::keyset::Signed;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A token that isn't valid yet is taken so long before.
const LEEWAY_SECONDS: i64 = 60;

/// What tokens have to be like.
#[derive(Clone, Debug)]
pub struct Expected {
    /// At least one of these has to be among the token's.
    pub audiences: Vec<String>,
    pub algorithms: Vec<String>,
}

#[derive(Deserialize)]
struct Payload {
    #[serde(default)]
    iss: String,
    #[serde(default)]
    aud: Audience,
    exp: Option<f64>,
    nbf: Option<f64>,
    #[serde(default, rename = "_claim_names")]
    claim_names: BTreeMap<String, String>,
    #[serde(default, rename = "_claim_sources")]
    claim_sources: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    Many(Vec<String>),
    One(String),
}

impl Default for Audience {
    fn default() -> Self {
        Audience::Many(Vec::new())
    }
}

/// The issuer that a token claims, which nobody has verified.
pub fn claimed_issuer(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Issuer {
        #[serde(default)]
        iss: String,
    }
    let parts: Vec<&str> = token.split('.').collect();
    let [_, payload, _] = parts[..] else { return None };
    let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claimed = serde_json::from_slice::<Issuer>(&payload).ok()?.iss;
    Some(match claimed.as_str() {
        // What Google once called itself.
        "accounts.google.com" => "https://accounts.google.com".into(),
        _ => claimed,
    })
}

fn listed(list: &[String]) -> String {
    let quoted: Vec<String> = list.iter().map(|s| go_quote(s)).collect();
    format!("[{}]", quoted.join(" "))
}

impl Expected {
    /// The payload of a good token of the issuer's.
    pub async fn verify(&self, token: &str, issuer: &str, keys: &Arc<RemoteKeys>) -> Result<Vec<u8>, String> {
        let signed = self.read(token)?;
        keys.verify(&signed)
            .await
            .map_err(|why| format!("failed to verify signature: {why}"))?;
        self.check(&signed.payload, issuer, keelson_clock::now().as_second())?;
        Ok(signed.payload)
    }

    pub fn read(&self, token: &str) -> Result<Signed, String> {
        let signed = Signed::parse(token).map_err(|why| format!("oidc: malformed jwt: {why}"))?;
        match self.algorithms.contains(&signed.algorithm) {
            true => Ok(signed),
            false => Err(format!(
                "oidc: id token signed with unsupported algorithm, expected {} got {}",
                listed(&self.algorithms),
                go_quote(&signed.algorithm)
            )),
        }
    }

    pub fn check(&self, payload: &[u8], issuer: &str, now: i64) -> Result<(), String> {
        let token: Payload =
            serde_json::from_slice(payload).map_err(|e| format!("oidc: failed to unmarshal claims: {e}"))?;
        for source in token.claim_names.values() {
            if source.is_empty() {
                return Err("oidc: failed to obtain source from claim name".into());
            }
            if !token.claim_sources.contains_key(source) {
                return Err("oidc: source does not exist".into());
            }
        }
        let google = issuer == "https://accounts.google.com" && token.iss == "accounts.google.com";
        if token.iss != issuer && !google {
            return Err(format!(
                "oidc: id token issued by a different provider, expected {} got {}",
                go_quote(issuer),
                go_quote(&token.iss)
            ));
        }
        let audiences = match token.aud {
            Audience::One(one) => vec![one],
            Audience::Many(many) => many,
        };
        if !audiences.iter().any(|a| self.audiences.contains(a)) {
            let wanted = match self.audiences.as_slice() {
                [one] => go_quote(one),
                many => {
                    let mut sorted = many.to_vec();
                    sorted.sort();
                    format!("in {}", listed(&sorted))
                }
            };
            return Err(format!("oidc: expected audience {wanted} got {}", listed(&audiences)));
        }
        let expires = token.exp.map(|exp| exp as i64);
        if expires.is_none_or(|expires| expires < now) {
            return Err(format!("oidc: token is expired (Token Expiry: {})", time(expires)));
        }
        if let Some(from) = token.nbf.map(|nbf| nbf as i64)
            && now + LEEWAY_SECONDS < from
        {
            return Err(format!(
                "oidc: current time {} before the nbf (not before) time: {}",
                time(Some(now)),
                time(Some(from))
            ));
        }
        Ok(())
    }
}

/// As Go writes a time; none is its first.
fn time(seconds: Option<i64>) -> String {
    let known = seconds.and_then(|s| jiff::Timestamp::from_second(s).ok());
    match known {
        Some(t) => t.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string(),
        None => "0001-01-01 00:00:00 +0000 UTC".into(),
    }
}
