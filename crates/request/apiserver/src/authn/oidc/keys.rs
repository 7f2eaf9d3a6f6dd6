//! An issuer's keys, kept as long as the issuer says, and fetched anew when a token isn't signed by any of them.
//!
//! That is where strangers could make this server ask an issuer without end: a token needs no good signature to be looked
//! at. So one fetch serves all who wait, what was fetched within the last second, or failed to be, is not asked again, and
//! those who wait are bounded ([`Waiting`]). A token that a known key signed never waits.

use super::super::waiting::Waiting;
use super::fetch::Client;
use crate::config::file::hash;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use http::{HeaderMap, header};
use keelson_pki::jwt::keyset::{KeySet, Signed};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The least time from one fetch's end to the next fetch.
const LEAST: Duration = Duration::from_secs(1);
/// Keys that end so soon are taken for ended, as upstream takes them.
const EARLY: Duration = Duration::from_secs(30);

type Fetched = Result<Arc<KeySet>, String>;

pub struct RemoteKeys {
    client: Client,
    url: String,
    state: Mutex<State>,
    waiting: Waiting,
}

#[derive(Default)]
struct State {
    keys: Arc<KeySet>,
    /// Until then the issuer promised not to have others.
    until: Option<Instant>,
    last: Option<(Instant, Fetched)>,
    flight: Option<Shared<BoxFuture<'static, Fetched>>>,
    told: Told,
}

/// What monitoring is told of fetches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Seconds since 1970 of the last that brought keys, and of the last that didn't.
    pub success: Option<i64>,
    pub failure: Option<i64>,
    /// Of the keys as they came.
    pub hash: Option<String>,
}

impl RemoteKeys {
    pub fn new(client: Client, url: String) -> RemoteKeys {
        RemoteKeys {
            client,
            url,
            state: Mutex::default(),
            waiting: Waiting::default(),
        }
    }

    /// Whether one of the issuer's keys signed the token. Keys that have ended still count: the issuer may be away.
    pub async fn verify(self: &Arc<Self>, token: &Signed) -> Result<(), String> {
        const FAILED: &str = "failed to verify id token signature";
        let (keys, until) = {
            let state = self.state.lock();
            (state.keys.clone(), state.until)
        };
        if keys.signed(token) {
            return Ok(());
        }
        if until.is_some_and(|until| Instant::now() + EARLY < until) {
            return Err(FAILED.into());
        }
        let _place = self.waiting.enter(token.length())?;
        let keys = self.anew().await.map_err(|why| format!("fetching keys {why}"))?;
        match keys.signed(token) {
            true => Ok(()),
            false => Err(FAILED.into()),
        }
    }

    pub fn told(&self) -> Told {
        self.state.lock().told.clone()
    }

    async fn anew(self: &Arc<Self>) -> Fetched {
        let flight = {
            let mut state = self.state.lock();
            match (&state.flight, &state.last) {
                (Some(flight), _) => flight.clone(),
                (None, Some((at, fetched))) if at.elapsed() < LEAST => return fetched.clone(),
                _ => {
                    let me = self.clone();
                    // It goes on when those who wait have gone.
                    let task = keelson_listen::for_all().spawn(async move { me.fetch().await });
                    let flight = task.map(|ended| ended.unwrap_or_else(|e| Err(e.to_string())));
                    let flight = flight.boxed().shared();
                    state.flight = Some(flight.clone());
                    flight
                }
            }
        };
        flight.await
    }

    async fn fetch(&self) -> Fetched {
        let fetched = self.read().await;
        let mut state = self.state.lock();
        let now = Instant::now();
        let second = Some(keelson_clock::now().as_second());
        match &fetched {
            Ok(read) => {
                state.keys = read.keys.clone();
                state.until = now.checked_add(read.lifetime);
                state.told.success = second;
                state.told.hash = Some(read.hash.clone());
            }
            Err(_) => state.told.failure = second,
        }
        let fetched = fetched.map(|read| read.keys);
        state.last = Some((now, fetched.clone()));
        state.flight = None;
        fetched
    }

    async fn read(&self) -> Result<Read, String> {
        let found = self
            .client
            .get(&self.url, None)
            .await
            .map_err(|why| format!("oidc: get keys failed {why}"))?;
        let found = found
            .ok()
            .map_err(|(status, body)| format!("oidc: get keys failed: {status} {body}"))?;
        let keys = KeySet::parse(&found.body).map_err(|why| format!("oidc: failed to decode keys: {why}"))?;
        Ok(Read {
            keys: Arc::new(keys),
            lifetime: lifetime(&found.headers),
            hash: hash(&found.body),
        })
    }
}

struct Read {
    keys: Arc<KeySet>,
    lifetime: Duration,
    hash: String,
}

/// How long an answer may be kept, as its headers say; by default not at all.
fn lifetime(headers: &HeaderMap) -> Duration {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
    let control = text(header::CACHE_CONTROL).unwrap_or_default().to_ascii_lowercase();
    let directives = || control.split(',').map(str::trim);
    if directives().any(|d| ["no-store", "no-cache", "private"].contains(&d)) {
        return Duration::ZERO;
    }
    let seconds = |name: &str| {
        let value = directives().find_map(|d| d.strip_prefix(name)?.strip_prefix('='));
        value.and_then(|v| v.trim_matches('"').parse::<u64>().ok())
    };
    if let Some(max) = seconds("s-maxage").or_else(|| seconds("max-age")) {
        let age = text(header::AGE).and_then(|a| a.parse().ok()).unwrap_or(0);
        return Duration::from_secs(max.saturating_sub(age));
    }
    let date = |name| {
        let parsed = jiff::fmt::rfc2822::DateTimeParser::new()
            .parse_timestamp(text(name)?)
            .ok();
        parsed.map(|t: jiff::Timestamp| t.as_second())
    };
    let now = date(header::DATE).unwrap_or_else(|| keelson_clock::now().as_second());
    let left = date(header::EXPIRES).map_or(0, |end| end.saturating_sub(now));
    Duration::from_secs(u64::try_from(left).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_kept_as_long_as_they_say() {
        let of = |list: &[(&'static str, &'static str)]| {
            let headers = list.iter().map(|(k, v)| {
                let name = http::HeaderName::from_static(k);
                (name, http::HeaderValue::from_static(v))
            });
            lifetime(&headers.collect()).as_secs()
        };
        assert_eq!(of(&[]), 0);
        assert_eq!(of(&[("cache-control", "public, max-age=3600")]), 3600);
        assert_eq!(of(&[("cache-control", "max-age=3600"), ("age", "600")]), 3000);
        assert_eq!(of(&[("cache-control", "max-age=3600, s-maxage=60")]), 60);
        assert_eq!(of(&[("cache-control", "no-store, max-age=3600")]), 0);
        assert_eq!(of(&[("cache-control", "private, max-age=3600")]), 0);
        let dates = [
            ("date", "Sat, 28 Nov 2026 12:00:00 GMT"),
            ("expires", "Sat, 28 Nov 2026 12:10:00 GMT"),
        ];
        assert_eq!(of(&dates), 600);
        assert_eq!(of(&[("expires", "0")]), 0);
    }
}
