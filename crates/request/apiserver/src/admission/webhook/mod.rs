//! Webhooks: servers outside that are asked about requests, and may change objects.
//!
//! Configurations are followed by watches and read once, when they change; what doesn't match a request costs it a walk
//! over rules in memory.

mod mutating;
mod review;
mod validating;

pub use mutating::MutatingWebhooks;
pub use validating::ValidatingWebhooks;

use super::Review;
use super::expressions::{Conditions, Inputs, env};
use super::matching::{Criteria, Subject, Target, request_value};
use crate::live::Sink;
use crate::metrics::Called;
use crate::webhook::ClientConfig;
use keelson_api::{ApiError, ApiResult, Map, Object, Str, Value};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// One webhook of a configuration.
#[derive(Debug)]
pub struct Hook {
    configuration: Str,
    name: Str,
    /// Distinct among all webhooks.
    key: String,
    client: ClientConfig,
    criteria: Criteria,
    conditions: Conditions,
    fail_open: bool,
    side_effects: Option<Str>,
    timeout: Duration,
    versions: Vec<Str>,
    /// Mutating webhooks: wants to see what changed after it.
    again: bool,
}

impl Hook {
    fn parse(configuration: &str, index: usize, m: &Map) -> Hook {
        let name = m.str("name").unwrap_or_default();
        let seconds = m.int("timeoutSeconds").filter(|s| *s > 0).unwrap_or(10);
        let versions = m.arr("admissionReviewVersions").into_iter().flatten();
        Hook {
            configuration: configuration.into(),
            name: name.into(),
            key: format!("{configuration}/{name}/{index}"),
            client: ClientConfig::parse(m.obj("clientConfig")),
            criteria: Criteria::of_webhook(m),
            conditions: Conditions::parse(m, &env(false)),
            fail_open: m.str("failurePolicy") == Some("Ignore"),
            side_effects: m.str("sideEffects").map(Str::from),
            timeout: Duration::from_secs(seconds.unsigned_abs()),
            versions: versions.filter_map(Value::as_str).map(Str::from).collect(),
            again: m.str("reinvocationPolicy") == Some("IfNeeded"),
        }
    }

    /// Whether the webhook is to be asked, and about which version of the resource.
    async fn wanted(
        &self,
        review: &Review<'_>,
        subject: &Subject,
        new: Option<&Object>,
        old: Option<&Object>,
    ) -> ApiResult<Option<Invocation<'_>>> {
        let Some(target) = self.criteria.matches(review, subject, new, old).await? else {
            return Ok(None);
        };
        let request = request_value(review, subject, &target);
        let invocation = Invocation {
            hook: self,
            target,
            request,
        };
        if !self.conditions.is_empty() {
            let (object, old) = invocation.target.views(review, new, old).await?;
            let inputs = Inputs {
                object: object.as_deref(),
                old: old.as_deref(),
                request: &invocation.request,
                namespace: None,
                params: None,
            };
            let holds = self.conditions.hold(&inputs.with_authorizer(review, subject));
            match holds {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(why) => return Err(review.cx.forbidden(&subject.name, why)),
            }
        }
        Ok(Some(invocation))
    }
}

/// A webhook that is to be asked.
struct Invocation<'h> {
    hook: &'h Hook,
    target: Target,
    request: Map,
}

/// Why a webhook gave no permission.
enum Failure {
    /// It couldn't be asked, or gave no usable answer: `failurePolicy` decides. With what upstream calls the error.
    Call(String, u16),
    /// It said no.
    Denied(ApiError),
    /// The server itself failed.
    Broken(ApiError),
}

impl Failure {
    fn called(&self, hook: &Hook) -> Called {
        match self {
            Failure::Denied(e) => Called::Denied(e.code),
            Failure::Broken(_) => Called::Broken,
            Failure::Call(_, code) => Called::Failed {
                code: *code,
                open: hook.fail_open,
            },
        }
    }

    /// The error for the client; `None`: the webhook's failure is to be ignored.
    fn into_error(self, hook: &Hook) -> Option<ApiError> {
        match self {
            Failure::Denied(e) | Failure::Broken(e) => Some(e),
            Failure::Call(why, _) => {
                let text = format!("failed calling webhook \"{}\": {why}", hook.name);
                tracing::warn!(
                    "{}: {text}",
                    if hook.fail_open {
                        "failing open"
                    } else {
                        "failing closed"
                    }
                );
                (!hook.fail_open).then(|| ApiError::internal(text))
            }
        }
    }
}

/// All webhooks of a kind: by the names of their configurations, then as listed.
#[derive(Default)]
pub struct Hooks {
    configurations: Mutex<BTreeMap<Str, Vec<Arc<Hook>>>>,
    all: RwLock<Arc<[Arc<Hook>]>>,
}

impl Hooks {
    fn current(&self) -> Arc<[Arc<Hook>]> {
        self.all.read().clone()
    }
    fn change(&self, f: impl FnOnce(&mut BTreeMap<Str, Vec<Arc<Hook>>>)) {
        let mut configurations = self.configurations.lock();
        f(&mut configurations);
        *self.all.write() = configurations.values().flatten().cloned().collect();
    }
    fn read(object: &Object) -> (Str, Vec<Arc<Hook>>) {
        let list = object
            .arr("webhooks")
            .into_iter()
            .flatten()
            .filter_map(Value::as_object)
            .enumerate();
        let hooks = list.map(|(i, m)| Arc::new(Hook::parse(object.name(), i, m))).collect();
        (object.name().into(), hooks)
    }
}

impl Sink for Hooks {
    fn replace(&self, objects: Vec<Object>) {
        self.change(|all| *all = objects.iter().map(Self::read).collect());
    }
    fn set(&self, object: Object) {
        let (name, hooks) = Self::read(&object);
        self.change(|all| drop(all.insert(name, hooks)));
    }
    fn delete(&self, object: Object) {
        self.change(|all| drop(all.remove(object.name())));
    }
}

/// Whether no webhook may be asked about the resource.
fn is_exempt(review: &Review<'_>) -> bool {
    super::matching::is_configuration(&review.cx.def) || super::matching::is_review(&review.cx.def)
}
