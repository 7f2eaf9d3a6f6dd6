//! Tokens that only somebody else knows: a TokenReview is posted to a webhook, and what it says is remembered, also that it
//! knows nothing of a token. What isn't remembered is that it couldn't be asked.

use super::TokenIdentity;
use super::cache::{Found, TokenCache};
use crate::remote::Remote;
use crate::request::UserInfo;
use anyhow::{Result, bail, ensure};
use keelson_api::{Map, Str, Value, value};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// `--authentication-token-webhook-*`
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub config_file: Option<PathBuf>,
    /// Of TokenReview: `v1` or `v1beta1`.
    pub version: Option<String>,
    pub cache_ttl: Option<Duration>,
}

const DEFAULT_TTL: Duration = Duration::from_secs(120);
/// Of one call, as upstream.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A webhook that knows tokens.
pub struct Webhook {
    remote: Arc<Remote>,
    api_version: &'static str,
    cache: Arc<TokenCache>,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.remote.fmt(f)
    }
}

impl Options {
    pub fn open(&self) -> Result<Option<Webhook>> {
        let api_version = match self.version.as_deref() {
            Some("v1") => "authentication.k8s.io/v1",
            None | Some("v1beta1") => "authentication.k8s.io/v1beta1",
            Some(other) => bail!(
                "unsupported authentication webhook version {other:?}, supported versions are \"v1\", \"v1beta1\""
            ),
        };
        let Some(file) = &self.config_file else {
            ensure!(
                self.version.is_none() && self.cache_ttl.is_none(),
                "--authentication-token-webhook-version and --authentication-token-webhook-cache-ttl mean nothing without --authentication-token-webhook-config-file"
            );
            return Ok(None);
        };
        let ttl = self.cache_ttl.unwrap_or(DEFAULT_TTL);
        Ok(Some(Webhook {
            remote: Arc::new(Remote::open(file, TIMEOUT)?),
            api_version,
            cache: TokenCache::of_others(ttl, ttl),
        }))
    }
}

impl Webhook {
    /// `wanted`: audiences of which the token has to have one; `own`: those of a token that names none.
    pub async fn authenticate(&self, token: &str, wanted: &[Str], own: &[Str]) -> Found {
        let ask = || {
            // Only now: what is remembered, or has no place, costs no copy.
            let review = value!({
                "apiVersion": self.api_version, "kind": "TokenReview", "metadata": {},
                "spec": {"token": token, "audiences": texts_of(wanted)}, "status": {"user": {}},
            });
            let (remote, wanted, own) = (self.remote.clone(), wanted.to_vec(), own.to_vec());
            async move {
                match remote.ask(&review, |_, _| {}).await {
                    Ok(answer) => judged(&answer, &wanted, &own),
                    Err(failure) => {
                        tracing::error!(
                            result = failure.result,
                            "Failed to make webhook authenticator request: {}",
                            failure.said
                        );
                        Err(failure.said)
                    }
                }
            }
        };
        self.cache.through(token, wanted, ask).await
    }
}

fn texts_of(list: &[Str]) -> Value {
    Value::Array(list.iter().cloned().map(Value::String).collect())
}

fn judged(answer: &Map, wanted: &[Str], own: &[Str]) -> Found {
    let empty = Map::new();
    let status = answer.obj("status").unwrap_or(&empty);
    let named: Vec<Str> = texts(status.get("audiences"));
    let has = if named.is_empty() { own } else { &named };
    let audiences: Vec<Str> = wanted.iter().filter(|a| has.contains(a)).cloned().collect();
    if audiences.is_empty() {
        return Ok(None);
    }
    if status.get("authenticated").and_then(Value::as_bool) != Some(true) {
        return match status.str("error").unwrap_or_default() {
            "" => Ok(None),
            why => Err(why.into()),
        };
    }
    let user = status.get("user").map(UserInfo::from_value).unwrap_or_default();
    Ok(Some(TokenIdentity {
        user,
        audiences,
        ..TokenIdentity::default()
    }))
}

fn texts(list: Option<&Value>) -> Vec<Str> {
    let list = list.and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(Str::from).collect()
}
