//! The data of a claim that goes back: a volume of its own on this machine, and the object that binds the claim to it.

use super::back::Claims;
use super::{pool, restore};
use anyhow::{Context, ensure};
use http::Method;
use keelson_backup::manifest::Backup;
use keelson_backup::objects::Object;
use keelson_backup::repository::Repository;
use keelson_client::is_already_exists;
use keelson_client::kind::ResourceId;
use keelson_client::rest::{Error, JSON, Rest, with_query};
use keelson_local::driver::NAME;
use keelson_local::pool::picture::Incoming;
use keelson_local::pool::{self as volumes};
use serde_json::{Value, json};
use std::path::Path;

pub const VOLUMES: ResourceId = ResourceId::fixed("", "v1", "PersistentVolume", "persistentvolumes", false);
pub const CLAIMS: ResourceId = ResourceId::fixed("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", true);

pub struct Volumes<'a> {
    /// The backup's objects.
    pub from: &'a Rest,
    pub repository: &'a Repository,
    pub backup: &'a Backup,
    pub data_dir: &'a Path,
    /// This machine, as the cluster names it.
    pub node: &'a str,
}

/// The claim is bound to a volume with its data, if the backup has that. `None` also if somebody has made the claim meanwhile. An error if the
/// volume can't be filled, or the volume or the claim would be refused: nothing is left of it then.
impl Claims for Volumes<'_> {
    async fn fill(&self, to: &Rest, claim: &Object, name: &str, value: &mut Value) -> anyhow::Result<Option<String>> {
        let volume = match self.from.get_raw(&VOLUMES, "", name, "", JSON).await {
            Ok(json) => serde_json::from_slice::<Value>(&json)?,
            Err(Error::Api(status)) if status.code == 404 => {
                return Ok(Some("without its data: it had no volume".into()));
            }
            Err(error) => return Err(error).context("the claim's volume in the backup"),
        };
        let handle = volume
            .pointer("/spec/csi/volumeHandle")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let ours = volume.pointer("/spec/csi/driver").is_some_and(|driver| driver == NAME);
        let Some(kept) = self.backup.manifest.volumes.iter().find(|v| ours && v.id == handle) else {
            return Ok(Some("without its data: the backup hasn't its volume".into()));
        };
        let fresh = format!("restored-{}", uuid::Uuid::new_v4());
        let mut record = restore::record_of(kept)?;
        record.id = volumes::id_of(&fresh);
        record.name.clone_from(&fresh);
        record.origin = None;
        let handle = record.id.clone();
        let root = pool(self.data_dir);
        let (incoming, file) = Incoming::begin(&root, record)?;
        let (wanted, free) = (restore::takes(kept)?, volumes::free(&root)?);
        ensure!(wanted <= free, "its volume needs {wanted} bytes, and {free} are free");
        self.repository.fill(&kept.data, &incoming.file(), file).await?;
        let bound = bound(&volume, &fresh, &handle, claim, &self.backup.manifest.node, self.node);
        let mut wanted = value.clone();
        wanted["spec"]["volumeName"] = fresh.as_str().into();
        // Asked dry first: what is refused leaves no volume that nobody has.
        try_on(to, &VOLUMES, "", &bound).await.context("the claim's volume")?;
        match try_on(to, &CLAIMS, claim.namespace(), &wanted).await {
            Err(error) if is_already_exists(&error) => return Ok(None),
            tried => tried?,
        }
        tokio::task::spawn_blocking(move || incoming.place()).await??;
        to.create_raw(&VOLUMES, "", serde_json::to_vec(&bound)?)
            .await
            .context("the claim's volume")?;
        *value = wanted;
        Ok(Some(format!("with its data, as the volume {fresh}")))
    }
}

/// Whether the server would make it: nothing is made.
pub async fn try_on(to: &Rest, id: &ResourceId, namespace: &str, value: &Value) -> Result<(), Error> {
    let path = with_query(&id.path(namespace), &[("dryRun", "All")]);
    let body = serde_json::to_vec(value).map_err(Error::SerdeError)?;
    to.call(Method::POST, &path, JSON, body).await.map(drop)
}

/// The volume's object as it was, under another name, for this claim, on this node.
fn bound(was: &Value, name: &str, handle: &str, claim: &Object, then: &str, now: &str) -> Value {
    let mut spec = was["spec"].clone();
    spec["csi"]["volumeHandle"] = handle.into();
    spec["claimRef"] = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.namespace(), "name": claim.name()});
    let terms = spec
        .pointer_mut("/nodeAffinity/required/nodeSelectorTerms")
        .and_then(Value::as_array_mut);
    for term in terms.into_iter().flatten() {
        let expressions = term.get_mut("matchExpressions").and_then(Value::as_array_mut);
        for expression in expressions.into_iter().flatten() {
            let values = expression.get_mut("values").and_then(Value::as_array_mut);
            for value in values.into_iter().flatten().filter(|value| **value == then) {
                *value = now.into();
            }
        }
    }
    // Without the provisioner's own it would be given one while the claim is being bound.
    let finalizers = was
        .pointer("/metadata/finalizers")
        .cloned()
        .unwrap_or_else(|| json!([]));
    let annotations = was
        .pointer("/metadata/annotations")
        .cloned()
        .unwrap_or_else(|| json!({}));
    json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name, "annotations": annotations, "finalizers": finalizers}, "spec": spec})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_for_its_claim_on_this_node() {
        let was = json!({"metadata": {"name": "pvc-1", "uid": "u", "annotations": {"pv.kubernetes.io/provisioned-by": NAME}}, "spec": {
            "csi": {"driver": NAME, "volumeHandle": "vol-1"}, "capacity": {"storage": "1Gi"}, "claimRef": {"name": "data", "uid": "u"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "k", "operator": "In", "values": ["old"]}]}]}}}});
        let claim = Object {
            resource: "persistentvolumeclaims".into(),
            value: json!({"metadata": {"name": "data", "namespace": "shop"}}),
        };
        let is = bound(&was, "restored-1", "vol-2", &claim, "old", "new");
        assert_eq!(
            is["metadata"],
            json!({"name": "restored-1", "annotations": {"pv.kubernetes.io/provisioned-by": NAME}, "finalizers": []})
        );
        assert_eq!(is["spec"]["csi"]["volumeHandle"], "vol-2");
        assert_eq!(is["spec"]["claimRef"].get("uid"), None);
        let values = is.pointer("/spec/nodeAffinity/required/nodeSelectorTerms/0/matchExpressions/0/values");
        assert_eq!(values, Some(&json!(["new"])));
        assert_eq!(is["spec"]["capacity"]["storage"], "1Gi");
    }
}
