//! EventRateLimit: how many Events are written a second, in all, by namespace, by user, or of one source about one object.
//!
//! Bounds: each limit remembers as many buckets as it is told (4096); the one that was used longest ago goes, and begins full
//! when it is needed again. A bucket is known by a hash, whatever an Event says of itself.

use super::super::{Phase, Plugin, Review};
use crate::config::file::{aggregate, together};
use anyhow::{Result, ensure};
use async_trait::async_trait;
use keelson_api::{ApiError, ApiResult, Cause, Object, Reason, Value};
use keelson_registry::Operation;
use parking_lot::Mutex;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use tokio::time::Instant;

const TYPES: [&str; 4] = ["Server", "Namespace", "User", "SourceAndObject"];
const BUCKETS: i64 = 4096;

#[derive(Clone, Debug, Default)]
pub struct Settings(Vec<Limit>);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Limit {
    #[serde(rename = "type")]
    kind: String,
    qps: i32,
    burst: i32,
    cache_size: i32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    api_version: String,
    kind: String,
    #[serde(default)]
    limits: Option<Vec<Limit>>,
}

impl Settings {
    pub fn parse(text: &str) -> Result<Settings> {
        let written: Written = serde_saphyr::from_str(text)?;
        ensure!(
            written.api_version == "eventratelimit.admission.k8s.io/v1alpha1" && written.kind == "Configuration",
            "no kind \"{}\" is registered for version \"{}\"",
            written.kind,
            written.api_version
        );
        let settings = Settings(written.limits.unwrap_or_default());
        settings.check()?;
        Ok(settings)
    }

    pub fn check(&self) -> Result<()> {
        let mut wrong = Vec::new();
        if self.0.is_empty() {
            wrong.push(Cause::invalid("limits", &Value::Null, "must not be empty"));
        }
        for (i, limit) in self.0.iter().enumerate() {
            let at = |field: &str| format!("limits[{i}].{field}");
            if !TYPES.contains(&limit.kind.as_str()) {
                wrong.push(Cause::not_supported(at("type"), &limit.kind.as_str().into(), &TYPES));
            }
            for (field, n) in [("burst", limit.burst), ("qps", limit.qps)] {
                if n <= 0 {
                    wrong.push(Cause::invalid(at(field), &i64::from(n).into(), "must be positive"));
                }
            }
            if limit.kind != "Server" && limit.cache_size < 0 {
                let n = i64::from(limit.cache_size);
                wrong.push(Cause::invalid(at("cacheSize"), &n.into(), "must not be negative"));
            }
        }
        ensure!(wrong.is_empty(), "{}", aggregate(&wrong));
        Ok(())
    }
}

type Key = [u8; 32];

#[derive(Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
    /// Its place in the order of use.
    turn: u64,
}

#[derive(Default)]
struct Buckets {
    all: HashMap<Key, Bucket>,
    by_turn: BTreeMap<u64, Key>,
    turn: u64,
}

struct Enforcer {
    limit: Limit,
    buckets: Mutex<Buckets>,
}

impl Enforcer {
    fn most(&self) -> usize {
        let given = i64::from(self.limit.cache_size);
        let given = if given == 0 { BUCKETS } else { given };
        usize::try_from(given).unwrap_or(1)
    }

    /// Whether there is one more for the key now.
    fn accepts(&self, key: &str, now: Instant) -> bool {
        let (qps, burst) = (f64::from(self.limit.qps), f64::from(self.limit.burst));
        let key: Key = Sha256::digest(key).into();
        let mut buckets = self.buckets.lock();
        buckets.turn += 1;
        let turn = buckets.turn;
        let mut bucket = match buckets.all.get(&key).copied() {
            Some(known) => {
                buckets.by_turn.remove(&known.turn);
                known
            }
            None => {
                if buckets.all.len() >= self.most()
                    && let Some((_, oldest)) = buckets.by_turn.pop_first()
                {
                    buckets.all.remove(&oldest);
                }
                Bucket {
                    left: burst,
                    at: now,
                    turn,
                }
            }
        };
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.left = (bucket.left + passed * qps).min(burst);
        (bucket.at, bucket.turn) = (now, turn);
        let accepted = bucket.left >= 1.0;
        if accepted {
            bucket.left -= 1.0;
        }
        buckets.by_turn.insert(turn, key);
        buckets.all.insert(key, bucket);
        accepted
    }

    fn key(&self, review: &Review<'_>, event: &Object) -> String {
        let text = |path: &[&str]| event.at(path).and_then(Value::as_str).unwrap_or_default();
        match self.limit.kind.as_str() {
            "Namespace" => review.cx.namespace.to_string(),
            "User" => review.cx.user.name.to_string(),
            "SourceAndObject" => [
                text(&["source", "component"]),
                text(&["source", "host"]),
                text(&["involvedObject", "kind"]),
                text(&["involvedObject", "namespace"]),
                text(&["involvedObject", "name"]),
                text(&["involvedObject", "uid"]),
                text(&["involvedObject", "apiVersion"]),
            ]
            .concat(),
            _ => String::new(),
        }
    }
}

pub struct EventRateLimit(Vec<Enforcer>);

impl EventRateLimit {
    pub fn new(settings: &Settings) -> Self {
        let enforcer = |limit: &Limit| Enforcer {
            limit: limit.clone(),
            buckets: Mutex::default(),
        };
        EventRateLimit(settings.0.iter().map(enforcer).collect())
    }
}

#[async_trait]
impl Plugin for EventRateLimit {
    fn name(&self) -> &'static str {
        "EventRateLimit"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Validating]
    }
    /// Upstream's looks at the core group's Events only.
    fn concerns(&self, review: &Review<'_>) -> bool {
        let writes = matches!(review.op, Operation::Create | Operation::Update);
        writes && !review.cx.dry_run && review.cx.def.is("", "events")
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, _old: Option<&Object>) -> ApiResult<()> {
        let Some(event) = new else { return Ok(()) };
        let now = Instant::now();
        let mut reached = Vec::new();
        for enforcer in &self.0 {
            let key = enforcer.key(review, event);
            if !enforcer.accepts(&key, now) {
                reached.push(format!("limit reached on type {} for key {key}", enforcer.limit.kind));
            }
        }
        if reached.is_empty() {
            return Ok(());
        }
        let why = format!("Too many requests: {}", together(reached));
        Err(ApiError::new(Reason::TooManyRequests, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn limits_are_checked_in_upstreams_words() {
        let head = "apiVersion: eventratelimit.admission.k8s.io/v1alpha1\nkind: Configuration\n";
        let said =
            |rest: &str| Settings::parse(&format!("{head}{rest}")).map_or_else(|e| format!("{e:#}"), |_| String::new());
        assert_eq!(said("limits: [{type: Server, qps: 1, burst: 2, cacheSize: -1}]"), "");
        assert_eq!(said(""), "limits: Invalid value: null: must not be empty");
        assert_eq!(
            said("limits: [{type: Foo, qps: 0, burst: -1, cacheSize: -4}]"),
            "[limits[0].type: Unsupported value: \"Foo\": supported values: \"Server\", \"Namespace\", \"User\", \
             \"SourceAndObject\", limits[0].burst: Invalid value: -1: must be positive, limits[0].qps: Invalid value: 0: \
             must be positive, limits[0].cacheSize: Invalid value: -4: must not be negative]"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_fills_with_time_and_the_one_used_longest_ago_goes() {
        let limit = Limit {
            kind: "Namespace".into(),
            qps: 2,
            burst: 3,
            cache_size: 2,
        };
        let enforcer = Enforcer {
            limit,
            buckets: Mutex::default(),
        };
        let took = |key: &str| (0..10).filter(|_| enforcer.accepts(key, Instant::now())).count();
        assert_eq!((took("a"), took("b")), (3, 3));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(took("a"), 2);
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(took("a"), 3);
        // `b` was used before `a`: it goes for `c`, and begins anew.
        assert_eq!((took("c"), took("a"), took("b")), (3, 0, 3));
        assert_eq!(enforcer.buckets.lock().all.len(), 2);
        assert_eq!(enforcer.buckets.lock().by_turn.len(), 2);
    }
}
