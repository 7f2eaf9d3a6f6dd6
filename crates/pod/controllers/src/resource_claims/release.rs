//! A claim whose users have ended: they are taken off its list, and with the last one the allocation goes.

use super::{FINALIZER, is_done};
use crate::wire;
use anyhow::Context as _;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference};
use keelson_client::{
    ApiObject, Informer, ObjectKey, Objects, Outcome, Patch, Reconcile, delete_options, is_conflict, is_not_found,
};
use serde_json::json;

pub struct Releaser {
    pub known: Informer<Pod>,
    pub claims: Informer<ResourceClaim>,
    pub objects: Objects<ResourceClaim>,
    pub pods: Objects<Pod>,
}

/// What has to be done about a claim.
#[derive(Debug, PartialEq)]
struct Plan {
    /// The users that stay, if some go or the allocation does.
    status: Option<Vec<ResourceClaimConsumerReference>>,
    deallocate: bool,
    /// Nothing holds it any more.
    unprotect: bool,
}

fn plan(claim: &ResourceClaim, remaining: Vec<ResourceClaimConsumerReference>) -> Plan {
    let status = claim.status.as_ref();
    let users = status.and_then(|s| s.reserved_for.as_ref()).map_or(0, Vec::len);
    let is_allocated = status.is_some_and(|s| s.allocation.is_some());
    let is_protected = claim.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER);
    let is_released = remaining.len() < users;
    let is_free = remaining.is_empty() && is_protected && (is_released || claim.is_deleting());
    Plan {
        status: (is_released || is_free && is_allocated).then_some(remaining),
        deallocate: is_free && is_allocated,
        unprotect: is_free,
    }
}

#[async_trait]
impl Reconcile for Releaser {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(claim) = self.claims.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        let mut remaining = Vec::new();
        let users = claim.status.as_ref().and_then(|s| s.reserved_for.as_ref());
        for user in users.into_iter().flatten() {
            if !self.has_ended(key, user).await? {
                remaining.push(user.clone());
            }
        }
        let is_unused = remaining.is_empty();
        let plan = plan(&claim, remaining);
        let mut revision = claim.metadata.resource_version.clone();
        if let Some(users) = plan.status {
            let mut body = json!({
                "metadata": {"uid": claim.uid(), "resourceVersion": revision},
                "status": {"reservedFor": users},
            });
            if plan.deallocate {
                body["status"]["allocation"] = serde_json::Value::Null;
            }
            let patched = self
                .objects
                .patch_status(&key.namespace, &key.name, Patch::Merge(&body))
                .await;
            revision = patched.context("releasing a claim")?.metadata.resource_version;
        }
        if plan.unprotect {
            let others = claim.metadata.finalizers.iter().flatten().filter(|f| *f != FINALIZER);
            let body = json!({"metadata": {
                "uid": claim.uid(), "resourceVersion": revision, "finalizers": others.collect::<Vec<_>>(),
            }});
            let patched = self.objects.patch(&key.namespace, &key.name, Patch::Merge(&body)).await;
            patched.context("taking the protection off a claim")?;
        }
        if is_unused && !claim.is_deleting() {
            self.delete_if_made(&claim).await?;
        }
        Ok(Outcome::Done)
    }
}

impl Releaser {
    /// Whoever isn't a pod decides for itself.
    async fn has_ended(&self, claim: &ObjectKey, user: &ResourceClaimConsumerReference) -> anyhow::Result<bool> {
        if user.resource != "pods" || user.api_group.as_deref().is_some_and(|g| !g.is_empty()) {
            return Ok(false);
        }
        let known = self.known.store().get(&claim.namespace, &user.name);
        if let Some(is_done) = known.and_then(|pod| is_known_done(&pod, &user.uid)) {
            return Ok(is_done);
        }
        // The claim may be ahead of what is known of pods.
        let pod = self.pods.find(&claim.namespace, &user.name).await?;
        Ok(pod.is_none_or(|pod| pod.uid() != user.uid))
    }

    /// A claim that was made for a pod goes when the pod has ended. When it has gone, the garbage collector sees to it.
    async fn delete_if_made(&self, claim: &ResourceClaim) -> anyhow::Result<()> {
        let Some(owner) = wire::controller_of(claim.meta()).filter(|o| wire::is_kind(o, "Pod", "")) else {
            return Ok(());
        };
        let known = self.known.store().get(claim.namespace(), &owner.name);
        if known.and_then(|pod| is_known_done(&pod, &owner.uid)) != Some(true) {
            return Ok(());
        }
        let options = delete_options(None, Some(claim.uid()), None);
        match self.objects.delete(claim.namespace(), claim.name(), &options).await {
            Err(error) if !is_not_found(&error) && !is_conflict(&error) => {
                Err(error).with_context(|| format!("delete unused generated claim {}", claim.key()))
            }
            _ => Ok(()),
        }
    }
}

/// `None`: it is another pod of that name, an earlier or a later one, and says nothing of the one that is meant.
fn is_known_done(known: &Pod, uid: &str) -> Option<bool> {
    (known.uid() == uid).then(|| is_done(known))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn claim(users: &[&str], is_allocated: bool, is_protected: bool, is_deleting: bool) -> ResourceClaim {
        let users: Vec<_> = users
            .iter()
            .map(|u| json!({"resource": "pods", "name": u, "uid": u}))
            .collect();
        let mut claim = json!({"metadata": {"name": "c"}, "spec": {}, "status": {"reservedFor": users}});
        if is_allocated {
            claim["status"]["allocation"] = json!({});
        }
        if is_protected {
            claim["metadata"]["finalizers"] = json!([FINALIZER]);
        }
        if is_deleting {
            claim["metadata"]["deletionTimestamp"] = Value::from("2026-01-01T00:00:00Z");
        }
        serde_json::from_value(claim).unwrap()
    }

    /// Who stays (`-`: nothing is written), whether devices are freed, and whether the protection goes.
    fn planned(claim: &ResourceClaim, stay: &[&str]) -> (String, bool, bool) {
        let users = claim
            .status
            .as_ref()
            .and_then(|s| s.reserved_for.clone())
            .unwrap_or_default();
        let remaining = users.into_iter().filter(|u| stay.contains(&u.uid.as_str())).collect();
        let plan = plan(claim, remaining);
        let names = plan
            .status
            .map(|users| users.into_iter().map(|u| u.name).collect::<Vec<_>>().join(","));
        (names.unwrap_or_else(|| "-".into()), plan.deallocate, plan.unprotect)
    }

    #[test]
    fn devices_are_free_when_the_last_user_has_ended() {
        let used = claim(&["a", "b"], true, true, false);
        assert_eq!(planned(&used, &["a", "b"]), ("-".into(), false, false));
        assert_eq!(planned(&used, &["b"]), ("b".into(), false, false));
        assert_eq!(planned(&used, &[]), (String::new(), true, true));
        let foreign = claim(&["a"], true, false, false);
        assert_eq!(
            planned(&foreign, &[]),
            (String::new(), false, false),
            "whoever allocated it frees it"
        );
        // Allocated ahead of use, it stays so until it is to go.
        assert_eq!(planned(&claim(&[], true, true, false), &[]), ("-".into(), false, false));
        assert_eq!(planned(&claim(&[], true, true, true), &[]), (String::new(), true, true));
        assert_eq!(planned(&claim(&[], false, true, true), &[]), ("-".into(), false, true));
        assert_eq!(
            planned(&claim(&["a"], true, true, true), &["a"]),
            ("-".into(), false, false)
        );
    }

    #[test]
    fn another_pod_of_that_name_says_nothing() {
        let pod = |uid: &str, phase: &str| -> Pod {
            let pod =
                json!({"metadata": {"name": "p", "uid": uid}, "spec": {"containers": []}, "status": {"phase": phase}});
            serde_json::from_value(pod).unwrap()
        };
        assert_eq!(is_known_done(&pod("new", "Running"), "new"), Some(false));
        assert_eq!(is_known_done(&pod("new", "Succeeded"), "new"), Some(true));
        assert_eq!(is_known_done(&pod("old", "Running"), "new"), None);
        assert_eq!(is_known_done(&pod("old", "Succeeded"), "new"), None);
    }
}
