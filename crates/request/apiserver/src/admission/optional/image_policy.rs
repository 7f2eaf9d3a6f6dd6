//! ImagePolicyWebhook: somebody outside says whether a pod's images may run. What was said is remembered, also a no; that
//! nobody could be asked is not.
//!
//! Bounds: [`REMEMBERED`] answers, none of which is longer than [`LONGEST_REMEMBERED`]; calls as those of all webhooks ([`Remote`]); no answer is awaited longer than a request may
//! take, however long the configuration would have it pause between calls.

use super::super::{Phase, Plugin, Review};
use crate::remote::Remote;
use anyhow::{Result, ensure};
use async_trait::async_trait;
use keelson_api::codec::json;
use keelson_api::{ApiResult, Map, Object, Value, duration, value};
use keelson_registry::Operation;
use parking_lot::Mutex;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const REMEMBERED: usize = 1024;
/// What is longer is asked for again: an answer may be as long as what the pod's author wrote.
const LONGEST_REMEMBERED: usize = 16 * 1024;
/// All calls for one pod, with the pauses between them.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of one call.
const TIMEOUT: Duration = Duration::from_secs(30);
const AUDIT: &str = "imagepolicywebhook.image-policy.k8s.io/";
/// Annotations of a pod that the webhook is told of.
const TOLD: &str = ".image-policy.k8s.io/";

#[derive(Clone, Debug)]
pub struct Settings {
    remote: Arc<Remote>,
    allow_for: Duration,
    deny_for: Duration,
    default_allow: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    image_policy: Policy,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Policy {
    kube_config_file: PathBuf,
    #[serde(rename = "allowTTL")]
    allow_ttl: i64,
    #[serde(rename = "denyTTL")]
    deny_ttl: i64,
    retry_backoff: i64,
    default_allow: bool,
}

/// A number as the configuration has it: 0 is the default, -1 none at all.
fn time(
    given: i64,
    unit: Duration,
    least: (Duration, &str),
    most: (Duration, &str),
    default: Duration,
) -> Result<Duration> {
    let given = match given {
        -1 => return Ok(Duration::ZERO),
        0 => return Ok(default),
        given => u32::try_from(given).ok().and_then(|n| unit.checked_mul(n)),
    };
    let within = given.filter(|given| (least.0..=most.0).contains(given));
    within.ok_or_else(|| match given {
        Some(given) => {
            let given = duration::format(i64::try_from(given.as_nanos()).unwrap_or(i64::MAX));
            anyhow::anyhow!("valid value is between {} and {}, got {given}", least.1, most.1)
        }
        None => anyhow::anyhow!("valid value is between {} and {}", least.1, most.1),
    })
}

impl Settings {
    /// A relative path in it is relative to `base`.
    pub fn parse(text: &str, base: &Path) -> Result<Settings> {
        let policy = serde_saphyr::from_str::<Written>(text)?.image_policy;
        let (second, minute, milli) = (
            Duration::from_secs(1),
            Duration::from_secs(60),
            Duration::from_millis(1),
        );
        let backoff_most = (5 * minute, "5m0s");
        let pause = time(
            policy.retry_backoff,
            milli,
            (Duration::from_nanos(1), "1ns"),
            backoff_most,
            500 * milli,
        )?;
        let (least, most) = ((second, "1s"), (30 * minute, "30m0s"));
        let allow_for = time(policy.allow_ttl, second, least, most, 5 * minute)?;
        let deny_for = time(policy.deny_ttl, second, least, most, 30 * second)?;
        ensure!(
            !policy.kube_config_file.as_os_str().is_empty(),
            "imagePolicy.kubeConfigFile: Required value"
        );
        let remote = Remote::open(&base.join(&policy.kube_config_file), TIMEOUT)?.pausing(pause);
        Ok(Settings {
            remote: Arc::new(remote),
            allow_for,
            deny_for,
            default_allow: policy.default_allow,
        })
    }
}

type Key = [u8; 32];

pub struct ImagePolicyWebhook {
    settings: Settings,
    answers: Mutex<HashMap<Key, (Instant, Map)>>,
}

impl ImagePolicyWebhook {
    pub fn new(settings: Settings) -> Self {
        ImagePolicyWebhook {
            settings,
            answers: Mutex::default(),
        }
    }

    async fn ask(&self, review: &Value) -> Result<Map, String> {
        let asked = self.settings.remote.ask(review, |_, _| {});
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(answer) => answer.map_err(|failure| failure.said),
            Err(_) => Err("context deadline exceeded".into()),
        }
    }

    fn remembered(&self, key: &Key) -> Option<Map> {
        let answers = self.answers.lock();
        let (until, status) = answers.get(key)?;
        (Instant::now() < *until).then(|| status.clone())
    }

    fn remember(&self, key: Key, status: &Map) {
        let lasts = match allowed(status) {
            true => self.settings.allow_for,
            false => self.settings.deny_for,
        };
        if lasts.is_zero() || json::encode_map(status).len() > LONGEST_REMEMBERED {
            return;
        }
        let (now, mut answers) = (Instant::now(), self.answers.lock());
        if answers.len() >= REMEMBERED {
            answers.retain(|_, (until, _)| now < *until);
        }
        if answers.len() >= REMEMBERED {
            answers.clear();
        }
        answers.insert(key, (now + lasts, status.clone()));
    }
}

fn allowed(status: &Map) -> bool {
    status.get("allowed").and_then(Value::as_bool) == Some(true)
}

/// What the webhook is told of a pod.
fn spec(pod: &Object, namespace: &str, lists: &[&str]) -> Value {
    let containers = lists
        .iter()
        .filter_map(|list| pod.at(&["spec", *list])?.as_array())
        .flatten();
    let images = containers.map(|c| {
        let mut one = value!({});
        if let Some(image) = c.get("image").and_then(Value::as_str).filter(|i| !i.is_empty()) {
            one.set_at(&["image"], image);
        }
        one
    });
    let mut spec = value!({});
    let images: Vec<Value> = images.collect();
    if !images.is_empty() {
        spec.set_at(&["containers"], images);
    }
    let annotations = pod.at(&["metadata", "annotations"]).and_then(Value::as_object);
    let told = annotations
        .into_iter()
        .flat_map(Map::iter)
        .filter(|(key, _)| key.contains(TOLD));
    let told: Map = told.map(|(key, value)| (key.clone(), value.clone())).collect();
    if !told.is_empty() {
        spec.set_at(&["annotations"], told);
    }
    if !namespace.is_empty() {
        spec.set_at(&["namespace"], namespace);
    }
    spec
}

#[async_trait]
impl Plugin for ImagePolicyWebhook {
    fn name(&self) -> &'static str {
        "ImagePolicyWebhook"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Validating]
    }
    fn concerns(&self, review: &Review<'_>) -> bool {
        let pod = review.is("", "pods") || review.is_sub("", "pods", "ephemeralcontainers");
        pod && matches!(review.op, Operation::Create | Operation::Update)
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, _old: Option<&Object>) -> ApiResult<()> {
        let Some(pod) = new else { return Ok(()) };
        let lists: &[&str] = match review.cx.subresource.as_str() {
            "" => &["containers", "initContainers"],
            _ => &["ephemeralContainers"],
        };
        let spec = spec(pod, &review.cx.namespace, lists);
        let key: Key = Sha256::digest(json::encode(&spec)).into();
        let status = match self.remembered(&key) {
            Some(status) => status,
            None => {
                let asked = value!({
                    "kind": "ImageReview", "apiVersion": "imagepolicy.k8s.io/v1alpha1", "metadata": {},
                    "spec": spec, "status": {"allowed": false},
                });
                let began = Instant::now();
                let answer = self.ask(&asked).await;
                review.cx.waited(began.elapsed());
                match answer {
                    Ok(answer) => {
                        let status = answer.obj("status").cloned().unwrap_or_default();
                        self.remember(key, &status);
                        status
                    }
                    Err(_) if self.settings.default_allow => {
                        review.cx.annotate(&format!("{AUDIT}failed-open"), "true");
                        return Ok(());
                    }
                    Err(why) => return Err(review.forbidden(Some(pod), why)),
                }
            }
        };
        for (name, said) in status.obj("auditAnnotations").into_iter().flat_map(Map::iter) {
            review
                .cx
                .annotate(&format!("{AUDIT}{name}"), said.as_str().unwrap_or_default());
        }
        match status.str("reason").unwrap_or_default() {
            _ if allowed(&status) => Ok(()),
            "" => Err(review.forbidden(Some(pod), "one or more images rejected by webhook backend")),
            why => {
                let why = format!("image policy webhook backend denied one or more images: {why}");
                Err(review.forbidden(Some(pod), why))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_pki::Kubeconfig;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const PAUSE: Duration = Duration::from_secs(300);

    fn hook(server: String) -> ImagePolicyWebhook {
        let config = Kubeconfig {
            server,
            ..Kubeconfig::default()
        };
        ImagePolicyWebhook::new(Settings {
            remote: Arc::new(Remote::of(&config, TIMEOUT).unwrap().pausing(PAUSE)),
            allow_for: PAUSE,
            deny_for: PAUSE,
            default_allow: false,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_webhook_that_fails_is_asked_no_longer_than_a_request_takes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let _read = socket.read(&mut [0; 4096]).await;
                let _sent = socket.write_all(b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n").await;
            }
        });
        let hook = hook(server);
        let began = Instant::now();
        assert!(hook.ask(&value!({})).await.is_err());
        assert!(began.elapsed() < PAUSE, "{:?}", began.elapsed());
    }

    #[test]
    fn a_long_answer_is_not_remembered() {
        let hook = hook("http://127.0.0.1:1/".into());
        for (key, length, stays) in [([0; 32], 9, true), ([1; 32], LONGEST_REMEMBERED, false)] {
            let status = value!({"allowed": false, "reason": ("x".repeat(length))});
            hook.remember(key, status.as_object().unwrap());
            assert_eq!(hook.remembered(&key).is_some(), stays, "{length}");
        }
    }
}
