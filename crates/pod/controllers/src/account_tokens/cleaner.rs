//! Clears away tokens that were made for accounts by themselves, as Kubernetes before 1.24 did it, once nobody has used them
//! for a year: first they are marked, which refuses them; those that are marked and unused for another year are deleted.
//!
//! Made by themselves are those that their account lists. What pods mount stays, and so does what can't be judged. An account of their use is kept since
//! a date that the API server notes; before a year of that is over nothing is concluded from silence.

use super::{plan, secrets};
use crate::context::{Context, now};
use async_trait::async_trait;
use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use keelson_client::objects::Patch;
use keelson_client::{
    ApiObject, Controller, Informer, Kind, ObjectKey, Objects, Outcome, Reconcile, delete_options, is_conflict,
    is_not_found,
};
use serde_json::json;
use std::collections::HashSet;
use std::time::Duration;

const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Upstream's `--legacy-service-account-token-clean-up-period`.
const UNUSED_FOR: SignedDuration = SignedDuration::from_hours(365 * 24);
const DAY: SignedDuration = SignedDuration::from_hours(24);
/// What a year is waited for, is looked at once a day; upstream's interval.
const EVERY: Duration = Duration::from_secs(24 * 60 * 60);
const SOON: Duration = Duration::from_secs(600);

pub fn start(context: &Context) {
    let rest = context.rest("legacy-service-account-token-cleaner");
    let secrets = secrets(&context.reader(), context);
    let (accounts, pods) = (context.informer::<ServiceAccount>(), context.informer::<Pod>());
    let controller = Controller::new("legacy-serviceaccount-token-cleaner")
        .input(&secrets)
        .input(&accounts)
        .input(&pods)
        .output(Secret::RESOURCE)
        .workers(1);
    controller.queue().add(ObjectKey::cluster(TRACKING));
    context.run(
        controller,
        Cleaner {
            secrets,
            accounts,
            pods,
            tracking: Objects::new(&rest),
            objects: Objects::new(&rest),
        },
    );
}

struct Cleaner {
    secrets: Informer<Secret>,
    accounts: Informer<ServiceAccount>,
    pods: Informer<Pod>,
    tracking: Objects<ConfigMap>,
    objects: Objects<Secret>,
}

/// A day as labels write it.
fn day(text: &str) -> Option<Date> {
    let parsed = Date::strptime("%Y-%m-%d", text).ok();
    parsed.filter(|_| text.len() == "2026-01-31".len())
}

fn date(at: Timestamp) -> Date {
    at.to_zoned(jiff::tz::TimeZone::UTC).date()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    Mark,
    Delete,
}

/// `listed`: its account has it on its list. `mounted`: a pod has it.
fn judge(secret: &Secret, listed: bool, mounted: bool, now: Timestamp) -> Verdict {
    let bound = now - UNUSED_FOR;
    let young = secret
        .metadata
        .creation_timestamp
        .as_ref()
        .is_none_or(|made| made.0 >= bound);
    let label = |key: &str| secret.metadata.labels.as_ref().and_then(|l| l.get(key));
    let used = match label(LAST_USED) {
        None => false,
        // What can't be read may have been yesterday.
        Some(text) => day(text).is_none_or(|used| used >= date(bound)),
    };
    if young || secret.is_deleting() || used || !listed || mounted {
        return Verdict::Keep;
    }
    match label(INVALID_SINCE).and_then(|text| day(text)) {
        None => Verdict::Mark,
        Some(since) if since >= date(bound) => Verdict::Keep,
        Some(_) => Verdict::Delete,
    }
}

/// The Secrets that a pod's specification names, wherever that is.
fn mounted(pod: &Pod) -> Vec<String> {
    let spec = pod.spec.as_ref().and_then(|spec| serde_json::to_value(spec).ok());
    let mut names = Vec::new();
    if let Some(spec) = spec {
        for pull in spec["imagePullSecrets"].as_array().into_iter().flatten() {
            names.extend(pull["name"].as_str().map(str::to_owned));
        }
        references(&spec, &mut names);
    }
    names
}

/// `secretName`, and the names in `secretRef`, `secretKeyRef`, `…SecretRef` and projected `secret`s.
fn references(value: &serde_json::Value, names: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(members) => {
            for (key, member) in members {
                let names_one =
                    key == "secret" || key == "secretKeyRef" || key.to_ascii_lowercase().ends_with("secretref");
                if key == "secretName" {
                    names.extend(member.as_str().map(str::to_owned));
                } else if names_one {
                    names.extend(member["name"].as_str().map(str::to_owned));
                }
                references(member, names);
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| references(item, names)),
        _ => {}
    }
}

impl Cleaner {
    /// From then on silence means something. `None`: the API server hasn't noted it.
    async fn tracked_for_a_year(&self) -> anyhow::Result<Option<Timestamp>> {
        let Some(map) = self.tracking.find("kube-system", TRACKING).await? else {
            return Ok(None);
        };
        let since = map.data.as_ref().and_then(|d| d.get("since")).and_then(|s| day(s));
        let Some(since) = since else { return Ok(None) };
        let begun = since.to_zoned(jiff::tz::TimeZone::UTC)?.timestamp();
        // The whole of the day after.
        Ok(Some(begun.checked_add(DAY + UNUSED_FOR)?))
    }

    fn is_listed(&self, secret: &Secret) -> bool {
        let Some(wanted) = plan::account(secret) else {
            return false;
        };
        let account = self.accounts.store().get(secret.namespace(), &wanted.name);
        account.is_some_and(|a| wanted.is(&a) && plan::lists(&a, secret.name()))
    }

    async fn clean(&self, now: Timestamp) -> anyhow::Result<()> {
        let mut of_pods: Option<HashSet<(String, String)>> = None;
        for secret in self.secrets.store().list() {
            let listed = self.is_listed(&secret);
            if judge(&secret, listed, false, now) == Verdict::Keep {
                continue;
            }
            let of_pods = of_pods.get_or_insert_with(|| {
                let pods = self.pods.store().list();
                let each = |pod: &std::sync::Arc<Pod>| {
                    let namespace = pod.namespace().to_string();
                    mounted(pod)
                        .into_iter()
                        .map(move |name| (namespace.clone(), name))
                        .collect::<Vec<_>>()
                };
                pods.iter().flat_map(each).collect()
            });
            let mounted = of_pods.contains(&(secret.namespace().to_string(), secret.name().to_string()));
            let done = match judge(&secret, listed, mounted, now) {
                Verdict::Keep => continue,
                Verdict::Mark => self.mark(&secret, now).await,
                Verdict::Delete => {
                    let version = secret.metadata.resource_version.as_deref();
                    let options = delete_options(None, None, version);
                    self.objects.delete(secret.namespace(), secret.name(), &options).await
                }
            };
            match done {
                Err(e) if !is_conflict(&e) && !is_not_found(&e) => return Err(e.into()),
                _ => {}
            }
        }
        Ok(())
    }

    async fn mark(&self, secret: &Secret, now: Timestamp) -> Result<(), keelson_client::Error> {
        let today = date(now).to_string();
        let patch = json!({"metadata": {"uid": secret.uid(), "labels": {INVALID_SINCE: today}}});
        let patched = self
            .objects
            .patch(secret.namespace(), secret.name(), Patch::Merge(&patch));
        patched.await.map(drop)
    }
}

#[async_trait]
impl Reconcile for Cleaner {
    async fn reconcile(&self, _: &ObjectKey) -> anyhow::Result<Outcome> {
        let now = now();
        match self.tracked_for_a_year().await? {
            Some(from) if from <= now => {
                self.clean(now).await?;
                Ok(Outcome::After(EVERY))
            }
            Some(from) => Ok(Outcome::At(from)),
            // The API server makes the note when it starts.
            None => Ok(Outcome::After(SOON)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_uses_is_marked_and_a_year_later_deleted() {
        let now: Timestamp = "2026-11-28T12:00:00Z".parse().unwrap();
        let secret = |made: &str, labels: serde_json::Value| -> Secret {
            serde_json::from_value(json!({"metadata": {"name": "s", "creationTimestamp": made, "labels": labels}}))
                .unwrap()
        };
        let old = "2024-01-01T00:00:00Z";
        for (made, labels, listed, mounted, verdict) in [
            (old, json!({}), true, false, Verdict::Mark),
            (old, json!({}), false, false, Verdict::Keep),
            (old, json!({}), true, true, Verdict::Keep),
            ("2026-01-01T00:00:00Z", json!({}), true, false, Verdict::Keep),
            (old, json!({LAST_USED: "2026-11-27"}), true, false, Verdict::Keep),
            (old, json!({LAST_USED: "2025-11-28"}), true, false, Verdict::Keep),
            (old, json!({LAST_USED: "2025-11-27"}), true, false, Verdict::Mark),
            (old, json!({LAST_USED: "lately"}), true, false, Verdict::Keep),
            (old, json!({INVALID_SINCE: "2025-11-27"}), true, false, Verdict::Delete),
            (old, json!({INVALID_SINCE: "2025-11-28"}), true, false, Verdict::Keep),
            (old, json!({INVALID_SINCE: "once"}), true, false, Verdict::Mark),
            (
                old,
                json!({INVALID_SINCE: "2025-01-01", LAST_USED: "2026-11-01"}),
                true,
                false,
                Verdict::Keep,
            ),
        ] {
            assert_eq!(
                judge(&secret(made, labels.clone()), listed, mounted, now),
                verdict,
                "{made} {labels} {listed} {mounted}"
            );
        }
    }

    #[test]
    fn pods_name_secrets_in_many_places() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "from"}}],
                "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}}]}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "volume"}},
                {"name": "b", "projected": {"sources": [{"secret": {"name": "projected"}}]}},
                {"name": "c", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "csi"}}},
                {"name": "d", "azureFile": {"secretName": "azure", "shareName": "s"}},
            ],
        }}))
        .unwrap();
        let mut names = mounted(&pod);
        names.sort();
        assert_eq!(names, ["azure", "csi", "from", "key", "projected", "pull", "volume"]);
    }
}
