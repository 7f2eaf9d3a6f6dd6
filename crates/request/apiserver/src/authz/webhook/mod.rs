//! Somebody else decides: a SubjectAccessReview is posted to a webhook, if the conditions under which it is asked hold.
//! What it says is remembered as long as configured; what it couldn't be asked isn't, and counts as the failure policy says.

mod review;

use super::structured::{Condition, Hook};
use super::{Attributes, Decision, Verdict};
use crate::config::file::together;
use crate::remote::Remote;
use anyhow::{Result, ensure};
use keelson_api::{Map, Value, value};
use keelson_machinery::cel::{PER_CALL_LIMIT, Val};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The most answers that are remembered, of those that allow and of the others each: so a flood of what is denied doesn't
/// push out what is allowed. At the bound what is outdated is dropped, and if that doesn't help, everything.
const MAX: usize = 8192;
/// What is longer, in what the client chose of it, is not remembered (upstream's bound).
const MAX_CONTROLLED: usize = 10_000;

type Key = [u8; 32];

pub struct Webhook {
    name: String,
    remote: Remote,
    version: String,
    conditions: Arc<Vec<Condition>>,
    authorized_ttl: Duration,
    unauthorized_ttl: Duration,
    deny_on_failure: bool,
    allowed: Mutex<HashMap<Key, (Instant, Status)>>,
    others: Mutex<HashMap<Key, (Instant, Status)>>,
    counts: Mutex<Counts>,
}

/// What a webhook said.
#[derive(Clone, Debug, Default)]
struct Status {
    allowed: bool,
    denied: bool,
    reason: String,
}

#[derive(Default)]
struct Counts {
    evaluations: BTreeMap<&'static str, (u64, f64)>,
    fail_open: BTreeMap<&'static str, u64>,
    condition_errors: u64,
    exclusions: u64,
}

/// What is known without asking.
pub enum AtHand {
    Known(Verdict),
    /// It has to be asked this.
    Ask(Box<Question>),
}

pub struct Question {
    spec: Value,
    key: Option<Key>,
}

impl Webhook {
    pub fn open(name: &str, hook: &Hook) -> Result<Webhook> {
        ensure!(
            !hook.kubeconfig.as_os_str().is_empty(),
            "unable to load in-cluster configuration, KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be defined"
        );
        Ok(Webhook {
            name: name.to_string(),
            remote: Remote::open(&hook.kubeconfig, hook.timeout)?,
            version: hook.version.clone(),
            conditions: hook.conditions.clone(),
            authorized_ttl: hook.authorized_ttl,
            unauthorized_ttl: hook.unauthorized_ttl,
            deny_on_failure: hook.deny_on_failure,
            allowed: Mutex::default(),
            others: Mutex::default(),
            counts: Mutex::default(),
        })
    }

    /// What follows from conditions and from what is remembered.
    pub fn at_hand(&self, a: &Attributes) -> AtHand {
        match self.matches(a) {
            Ok(true) => {}
            Ok(false) => return AtHand::Known(Decision::NoOpinion(String::new()).into()),
            Err(why) => return AtHand::Known(self.failed(why)),
        }
        let spec = review::spec(a);
        let key: Key = match serde_json::to_vec(&spec) {
            Ok(text) => Sha256::digest(&text).into(),
            Err(e) => return AtHand::Known(self.failed(e.to_string())),
        };
        for map in [&self.allowed, &self.others] {
            if let Some((until, status)) = map.lock().get(&key)
                && Instant::now() < *until
            {
                return AtHand::Known(status.verdict());
            }
        }
        let controlled = [
            &a.namespace,
            &a.verb,
            &a.api_group,
            &a.api_version,
            &a.resource,
            &a.subresource,
            &a.name,
            &a.path,
        ];
        let controlled: usize = controlled.iter().map(|s| s.len()).sum();
        AtHand::Ask(Box::new(Question {
            spec,
            key: (controlled < MAX_CONTROLLED).then_some(key),
        }))
    }

    pub async fn ask(&self, question: &Question) -> Verdict {
        let spec = match self.version.as_str() {
            "v1" => question.spec.clone(),
            _ => review::of_v1beta1(question.spec.clone()),
        };
        let asked = value!({
            "apiVersion": format!("authorization.k8s.io/{}", self.version), "kind": "SubjectAccessReview",
            "metadata": {}, "spec": spec, "status": {"allowed": false},
        });
        let counted = |answer: &std::result::Result<Map, crate::remote::Failure>, took: Duration| {
            let result = answer.as_ref().map_or_else(|f| f.result, |_| "success");
            let mut counts = self.counts.lock();
            let entry = counts.evaluations.entry(result).or_default();
            *entry = (entry.0 + 1, entry.1 + took.as_secs_f64());
        };
        match self.remote.ask(&asked, counted).await {
            Ok(answer) => {
                let status = Status::read(&answer);
                self.remember(question.key, &status);
                status.verdict()
            }
            Err(failure) => {
                tracing::error!("Failed to make webhook authorizer request: {}", failure.said);
                if !self.deny_on_failure {
                    *self.counts.lock().fail_open.entry(failure.result).or_default() += 1;
                }
                self.failed(failure.said)
            }
        }
    }

    fn failed(&self, why: String) -> Verdict {
        let decision = match self.deny_on_failure {
            true => Decision::Deny(String::new()),
            false => Decision::NoOpinion(String::new()),
        };
        Verdict {
            decision,
            error: Some(why),
        }
    }

    fn remember(&self, key: Option<Key>, status: &Status) {
        let (map, ttl) = match status.allowed {
            true => (&self.allowed, self.authorized_ttl),
            false => (&self.others, self.unauthorized_ttl),
        };
        let Some(key) = key.filter(|_| !ttl.is_zero()) else {
            return;
        };
        let (mut map, now) = (map.lock(), Instant::now());
        if map.len() >= MAX {
            map.retain(|_, (until, _)| now < *until);
            if map.len() >= MAX {
                map.clear();
            }
        }
        map.insert(key, (now + ttl, status.clone()));
    }

    /// Whether all conditions hold. One that is false decides, whatever failed besides.
    fn matches(&self, a: &Attributes) -> std::result::Result<bool, String> {
        if self.conditions.is_empty() {
            return Ok(true);
        }
        let request = review::for_conditions(a);
        let activation = BTreeMap::from([("request", Val::of_json(&request, None))]);
        let mut errors = Vec::new();
        for condition in self.conditions.iter() {
            let (found, _) = condition.program.eval(&activation, PER_CALL_LIMIT);
            let source = &condition.source;
            match found {
                Ok(Val::Bool(true)) => {}
                Ok(Val::Bool(false)) => {
                    self.counts.lock().exclusions += 1;
                    return Ok(false);
                }
                Ok(_) => errors.push(format!(
                    "cel evaluation error: expression '{source}' eval result type should be bool"
                )),
                Err(e) => errors.push(format!(
                    "cel evaluation error: expression '{source}' resulted in error: {e}"
                )),
            }
        }
        if errors.is_empty() {
            return Ok(true);
        }
        self.counts.lock().condition_errors += 1;
        Err(together(errors))
    }

    /// Adds the lines of the metrics' page.
    pub fn write(&self, page: &mut String) {
        let (counts, name) = (self.counts.lock(), &self.name);
        for (result, (count, seconds)) in &counts.evaluations {
            let labels = format!("{{name=\"{name}\",result=\"{result}\"}}");
            let prefix = "apiserver_authorization_webhook";
            let _ = writeln!(page, "{prefix}_evaluations_total{labels} {count}");
            let _ = writeln!(page, "{prefix}_duration_seconds_count{labels} {count}");
            let _ = writeln!(page, "{prefix}_duration_seconds_sum{labels} {seconds}");
        }
        for (result, count) in &counts.fail_open {
            let _ = writeln!(
                page,
                "apiserver_authorization_webhook_evaluations_fail_open_total{{name=\"{name}\",result=\"{result}\"}} {count}"
            );
        }
        for (what, count) in [
            ("evaluation_errors", counts.condition_errors),
            ("exclusions", counts.exclusions),
        ] {
            let _ = writeln!(
                page,
                "apiserver_authorization_match_condition_{what}_total{{name=\"{name}\",type=\"Webhook\"}} {count}"
            );
        }
    }
}

impl Status {
    fn read(answer: &Map) -> Status {
        let empty = Map::new();
        let status = answer.obj("status").unwrap_or(&empty);
        let flag = |key: &str| status.get(key).and_then(Value::as_bool) == Some(true);
        Status {
            allowed: flag("allowed"),
            denied: flag("denied"),
            reason: status.str("reason").unwrap_or_default().to_string(),
        }
    }

    fn verdict(&self) -> Verdict {
        let reason = self.reason.clone();
        match (self.allowed, self.denied) {
            (true, true) => Verdict {
                decision: Decision::Deny(reason),
                error: Some("webhook subject access review returned both allow and deny response".into()),
            },
            (false, true) => Decision::Deny(reason).into(),
            (true, false) => Decision::Allow(reason).into(),
            (false, false) => Decision::NoOpinion(reason).into(),
        }
    }
}
