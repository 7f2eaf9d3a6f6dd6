//! Service account tokens for pods: requested when first needed, replaced well before they expire.

use crate::pods;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use keelson_client::{Kind, Rest};
use parking_lot::Mutex;
use std::collections::HashMap;

/// Pod uid, audience, asked lifetime, and the uid that the account has to have (empty: any).
type Key = (String, String, i64, String);

#[derive(Clone)]
struct Token {
    text: String,
    refresh: Timestamp,
    expires: Timestamp,
}

impl Token {
    /// When to ask again after a renewal that failed, if the token serves until then.
    fn until_retry(&self, now: Timestamp) -> Option<Timestamp> {
        let retry = now + RETRY;
        (retry < self.expires).then_some(retry)
    }
}

pub struct Tokens {
    rest: Rest,
    cache: Mutex<HashMap<Key, Token>>,
}

/// A token is replaced after four fifths of its life, and never later than this.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(24);

/// Seconds that a token lives when nobody says how long.
const USUAL: i64 = 3600;

/// How soon a renewal that failed is tried again, while the old token serves.
const RETRY: SignedDuration = SignedDuration::from_secs(30);

/// When a token issued now and valid until `expires` is to be replaced.
pub fn refresh_at(now: Timestamp, expires: Timestamp) -> Timestamp {
    let life = expires.duration_since(now);
    now + (life * 4 / 5).min(MAX_AGE)
}

impl Tokens {
    pub fn new(rest: Rest) -> Self {
        Tokens {
            rest,
            cache: Mutex::default(),
        }
    }

    /// The token known for this projection.
    pub fn known(&self, pod: &Pod, audience: &str, seconds: i64) -> Option<String> {
        self.cache
            .lock()
            .get(&key(pod, audience, seconds))
            .map(|t| t.text.clone())
    }

    /// The token, and until when it is valid.
    pub fn known_until(&self, pod: &Pod, audience: &str, seconds: i64) -> Option<(String, Timestamp)> {
        let cache = self.cache.lock();
        let token = cache.get(&key(pod, audience, seconds))?;
        Some((token.text.clone(), token.expires))
    }

    /// Makes sure a fresh token is known; returns when it is to be replaced.
    pub async fn ensure(&self, pod: &Pod, audience: &str, seconds: i64, now: Timestamp) -> Result<Timestamp, String> {
        self.ensure_key(pod, key(pod, audience, seconds), now).await
    }

    /// A fresh token of just this service account, for as long as the API gives one that isn't asked for a time.
    pub async fn of_account(&self, pod: &Pod, audience: &str, uid: &str, now: Timestamp) -> Result<String, String> {
        let mut key = key(pod, audience, USUAL);
        key.3 = uid.to_owned();
        self.ensure_key(pod, key.clone(), now).await?;
        let known = self.cache.lock().get(&key).map(|t| t.text.clone());
        known.ok_or_else(|| "failed to fetch token: the pod is gone".to_owned())
    }

    async fn ensure_key(&self, pod: &Pod, key: Key, now: Timestamp) -> Result<Timestamp, String> {
        let known = self.cache.lock().get(&key).cloned();
        if let Some(t) = known.as_ref().filter(|t| t.refresh > now) {
            return Ok(t.refresh);
        }
        match self.fetch(pod, &key, now).await {
            Ok(token) => {
                let refresh = token.refresh;
                self.cache.lock().insert(key, token);
                Ok(refresh)
            }
            // The pod goes on with what it has.
            Err(e) => match known.and_then(|t| t.until_retry(now)) {
                Some(retry) => {
                    tracing::warn!(pod = %pods::describe(pod), "a pod's token can't be renewed yet: {e}");
                    Ok(retry)
                }
                None => Err(e),
            },
        }
    }

    async fn fetch(&self, pod: &Pod, key: &Key, now: Timestamp) -> Result<Token, String> {
        let (_, audience, seconds, uid) = key;
        let seconds = *seconds;
        let account = pods::spec(pod).service_account_name.as_deref().unwrap_or("default");
        let audiences: Vec<&str> = if audience.is_empty() { vec![] } else { vec![audience] };
        let mut body = serde_json::json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": audiences, "expirationSeconds": seconds,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pods::name(pod), "uid": pods::uid(pod)}}});
        if !uid.is_empty() {
            body["metadata"] = serde_json::json!({"uid": uid});
        }
        let answer = self
            .rest
            .post_raw(&ServiceAccount::RESOURCE, pods::namespace(pod), account, "token", &body)
            .await
            .map_err(|e| format!("failed to fetch token: {}", crate::error_text(&e)))?;
        let answer: serde_json::Value =
            serde_json::from_slice(&answer).map_err(|e| format!("failed to fetch token: {e}"))?;
        let status = &answer["status"];
        let text = status["token"]
            .as_str()
            .filter(|t| !t.is_empty())
            .ok_or("failed to fetch token: the answer has none")?;
        let expires: Timestamp = status["expirationTimestamp"]
            .as_str()
            .and_then(|t| t.parse().ok())
            .unwrap_or(now + SignedDuration::from_secs(seconds));
        Ok(Token {
            text: text.to_owned(),
            refresh: refresh_at(now, expires),
            expires,
        })
    }

    pub fn forget(&self, uid: &str) {
        self.cache.lock().retain(|k, _| k.0 != uid);
    }
}

fn key(pod: &Pod, audience: &str, seconds: i64) -> Key {
    (pods::uid(pod).to_owned(), audience.to_owned(), seconds, String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_replaced_in_time() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(
            refresh_at(now, now + SignedDuration::from_secs(1000)),
            now + SignedDuration::from_secs(800)
        );
        assert_eq!(refresh_at(now, now + SignedDuration::from_hours(1000)), now + MAX_AGE);
    }

    #[test]
    fn a_token_serves_until_it_expires_when_it_cannot_be_renewed() {
        let now = Timestamp::UNIX_EPOCH;
        let token = |left| Token {
            text: "t".into(),
            refresh: now,
            expires: now + SignedDuration::from_secs(left),
        };
        assert_eq!(token(600).until_retry(now), Some(now + RETRY));
        assert_eq!(token(5).until_retry(now), None);
    }
}
