//! Claims of volumes: what was decided is written to them, and their volumes are waited for. Who waits looks at local copies only, and
//! no longer than the pod is there: many may wait, and each change of a claim or volume wakes them all.

use super::{Binder, Writes};
use crate::core::Core;
use crate::plugins::volume_binding::{Decision, SELECTED_NODE, is_reachable, volume_name};
use crate::pod::PodInfo;
use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use keelson_client::store::parse_revision;
use keelson_client::{ApiObject, Patch};
use serde_json::json;
use std::sync::Arc;

/// A claim that gets its volume, as it was written or seen last.
struct Awaited {
    claim: Arc<PersistentVolumeClaim>,
    /// The one that was given to it; `None`: one is made for the node.
    given: Option<PersistentVolume>,
}

impl Binder {
    pub async fn bind_volumes(
        &self,
        pod: &PodInfo,
        node: &str,
        volumes: &Decision,
        writes: &Writes,
        core: &Core,
    ) -> anyhow::Result<()> {
        let mut awaited = Vec::new();
        let place = writes.place().await;
        for (volume, claim) in &volumes.bind {
            let claim_ref = json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.namespace(), "name": claim.name(),
                "uid": claim.uid(), "resourceVersion": claim.metadata.resource_version,
            });
            let patch = json!({
                "metadata": {
                    "resourceVersion": volume.metadata.resource_version,
                    "annotations": {"pv.kubernetes.io/bound-by-controller": "yes"},
                },
                "spec": {"claimRef": claim_ref},
            });
            let volumes = self.objects::<PersistentVolume>();
            let given = volumes.patch("", volume.name(), Patch::Merge(&patch)).await?;
            awaited.push(Awaited {
                claim: claim.clone(),
                given: Some(given),
            });
        }
        for claim in &volumes.provision {
            let patch = json!({"metadata": {
                "resourceVersion": claim.metadata.resource_version, "annotations": {SELECTED_NODE: node},
            }});
            let claims = self.objects::<PersistentVolumeClaim>();
            let noted = claims.patch(claim.namespace(), claim.name(), Patch::Merge(&patch));
            awaited.push(Awaited {
                claim: Arc::new(noted.await?),
                given: None,
            });
        }
        // Whoever waits holds none.
        drop(place);
        awaited.extend(volumes.await_volume.iter().map(|claim| Awaited {
            claim: claim.clone(),
            given: None,
        }));
        for awaited in &awaited {
            self.bound(pod, node, awaited, core).await?;
        }
        Ok(())
    }

    /// Waits until the claim has its volume, and looks whether that can be reached from the node.
    async fn bound(&self, pod: &PodInfo, node: &str, awaited: &Awaited, core: &Core) -> anyhow::Result<()> {
        let (namespace, name) = (awaited.claim.namespace(), awaited.claim.name());
        loop {
            let (changed, left) = (self.volumes_changed.notified(), core.left.notified());
            tokio::pin!(changed, left);
            changed.as_mut().enable();
            left.as_mut().enable();
            let is_there = core.look(|state| state.queue.pod(pod.uid()).is_some());
            ensure!(is_there, "the pod doesn't wait for a node any more");
            let claim = self.world.claim(namespace, name);
            let claim = claim.with_context(|| format!("persistentvolumeclaim {name:?} not found"))?;
            awaited.is_still_given(|volume| self.world.volume(volume))?;
            let volume = awaited.volume(&claim, node)?.and_then(|name| self.world.volume(name));
            if let Some(volume) = volume {
                let node = core.look(|state| state.cluster.node(node).cloned());
                return reaches(node.context("the chosen node has gone")?.node(), &volume);
            }
            tokio::select! {
                () = changed => {}
                () = left => {}
            }
        }
    }
}

/// The volume of a claim may be another than the one that was thought of: whoever binds claims has the last word.
fn reaches(node: &Node, volume: &PersistentVolume) -> anyhow::Result<()> {
    let (volume_name, node_name) = (volume.name(), node.name());
    ensure!(
        is_reachable(volume, node),
        "pv {volume_name:?} node affinity doesn't match node {node_name:?}"
    );
    Ok(())
}

impl Awaited {
    /// The name of the claim's volume, once it is bound. What is shown may be older than what was written: that says nothing.
    fn volume<'a>(&self, shown: &'a PersistentVolumeClaim, node: &str) -> anyhow::Result<Option<&'a str>> {
        let name = self.claim.name();
        ensure!(
            shown.uid() == self.claim.uid(),
            "persistentvolumeclaim {name:?} is another one now"
        );
        if revision(shown) < revision(&*self.claim) {
            return Ok(None);
        }
        let volume = volume_name(shown);
        let notes = shown.metadata.annotations.as_ref();
        let noted = notes.and_then(|notes| notes.get(SELECTED_NODE)).map(String::as_str);
        // A provisioner that can't make a volume for the node takes the note away: the pod is to be tried elsewhere.
        ensure!(
            self.given.is_some() || volume.is_some() || noted == Some(node),
            "pvc {name:?}: selectedNode annotation was removed or changed"
        );
        let phase = shown.status.as_ref().and_then(|status| status.phase.as_deref());
        Ok(volume.filter(|_| phase == Some("Bound")))
    }

    /// A volume that was given to the claim may be taken back.
    fn is_still_given(&self, shown: impl Fn(&str) -> Option<Arc<PersistentVolume>>) -> anyhow::Result<()> {
        let Some(given) = &self.given else { return Ok(()) };
        let name = given.name();
        let Some(shown) = shown(name).filter(|shown| revision(&**shown) >= revision(given)) else {
            return Ok(());
        };
        let claim = shown.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        let is_ours = claim.is_some_and(|claim| claim.uid.as_deref() == Some(self.claim.uid()));
        ensure!(is_ours, "ClaimRef got reset for pv {name:?}");
        Ok(())
    }
}

fn revision(object: &impl ApiObject) -> u64 {
    parse_revision(object.meta().resource_version.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn claim(
        revision: &str,
        uid: &str,
        node: Option<&str>,
        volume: Option<&str>,
        phase: &str,
    ) -> PersistentVolumeClaim {
        let mut claim = json!({
            "metadata": {"name": "data", "namespace": "default", "uid": uid, "resourceVersion": revision, "annotations": {}},
            "spec": {}, "status": {"phase": phase},
        });
        if let Some(node) = node {
            claim["metadata"]["annotations"][SELECTED_NODE] = json!(node);
        }
        if let Some(volume) = volume {
            claim["spec"]["volumeName"] = json!(volume);
        }
        serde_json::from_value(claim).unwrap()
    }

    fn volume(revision: &str, claim: Value) -> PersistentVolume {
        let terms = json!([{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]);
        serde_json::from_value(json!({
            "metadata": {"name": "v", "resourceVersion": revision},
            "spec": {"claimRef": claim, "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}},
        }))
        .unwrap()
    }

    #[test]
    fn a_claim_is_awaited_until_it_is_bound_or_its_note_is_taken_away() {
        let awaited = Awaited {
            claim: Arc::new(claim("5", "u", Some("n"), None, "Pending")),
            given: None,
        };
        let found = |shown: PersistentVolumeClaim| {
            let found = awaited.volume(&shown, "n").map(|name| name.map(str::to_owned));
            found.map_err(|error| error.to_string())
        };
        // What was before the note says nothing about it.
        assert_eq!(found(claim("4", "u", None, None, "Pending")), Ok(None));
        assert_eq!(found(claim("5", "u", Some("n"), None, "Pending")), Ok(None));
        assert_eq!(found(claim("6", "u", Some("n"), Some("v"), "Pending")), Ok(None));
        assert_eq!(found(claim("7", "u", None, Some("v"), "Bound")), Ok(Some("v".into())));
        for (shown, said) in [
            (claim("6", "u", None, None, "Pending"), "removed or changed"),
            (claim("6", "u", Some("other"), None, "Pending"), "removed or changed"),
            (claim("6", "new", Some("n"), None, "Pending"), "another one"),
        ] {
            let error = found(shown).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_volume_has_to_be_reached_and_to_stay_the_claims() {
        let node =
            |zone: &str| serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"zone": zone}}})).unwrap();
        reaches(&node("a"), &volume("1", Value::Null)).unwrap();
        let error = reaches(&node("b"), &volume("1", Value::Null)).unwrap_err().to_string();
        assert_eq!(error, "pv \"v\" node affinity doesn't match node \"n\"");

        let ours = json!({"namespace": "default", "name": "data", "uid": "u"});
        let awaited = Awaited {
            claim: Arc::new(claim("5", "u", None, None, "Pending")),
            given: Some(volume("3", ours.clone())),
        };
        let is_given =
            |shown: Option<PersistentVolume>| awaited.is_still_given(|_| shown.clone().map(Arc::new)).is_ok();
        assert!(
            is_given(None) && is_given(Some(volume("2", Value::Null))),
            "older than what was written"
        );
        assert!(is_given(Some(volume("4", ours))));
        assert!(!is_given(Some(volume("4", Value::Null))));
        assert!(!is_given(Some(volume("4", json!({"name": "other", "uid": "x"})))));
    }
}
