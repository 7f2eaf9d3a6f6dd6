//! Which objects are meant, and how they are read: from a backup or from the cluster, alike.

use anyhow::{Context, ensure};
use keelson_backup::objects::Object;
use keelson_client::discovery::{Discovered, preferred_resources};
use keelson_client::kind::ResourceId;
use keelson_client::rest::{Error, JSON, Rest};
use serde_json::Value;

/// kubectl's, of kinds that people name.
const SHORT: [(&str, &str); 20] = [
    ("cj", "cronjobs.batch"),
    ("cm", "configmaps"),
    ("crd", "customresourcedefinitions.apiextensions.k8s.io"),
    ("deploy", "deployments.apps"),
    ("ds", "daemonsets.apps"),
    ("hpa", "horizontalpodautoscalers.autoscaling"),
    ("ing", "ingresses.networking.k8s.io"),
    ("no", "nodes"),
    ("netpol", "networkpolicies.networking.k8s.io"),
    ("ns", "namespaces"),
    ("pdb", "poddisruptionbudgets.policy"),
    ("po", "pods"),
    ("pv", "persistentvolumes"),
    ("pvc", "persistentvolumeclaims"),
    ("rc", "replicationcontrollers"),
    ("rs", "replicasets.apps"),
    ("sa", "serviceaccounts"),
    ("sc", "storageclasses.storage.k8s.io"),
    ("sts", "statefulsets.apps"),
    ("svc", "services"),
];

/// All of a namespace, or one object in it or in none.
#[derive(Clone, Debug)]
pub struct Selection {
    pub namespace: Option<String>,
    /// KIND/NAME
    pub object: Option<String>,
}

/// What a cluster serves.
pub struct Kinds(Vec<Discovered>);

pub fn name_of(id: &ResourceId) -> String {
    match id.group.is_empty() {
        true => id.plural.to_string(),
        false => format!("{}.{}", id.plural, id.group),
    }
}

impl Kinds {
    /// Of what can be made and listed.
    pub async fn of(rest: &Rest) -> anyhow::Result<Kinds> {
        let found = preferred_resources(rest).await?.found;
        let useful = found.into_iter().filter(|kind| kind.can("list") && kind.can("create"));
        Ok(Kinds(useful.collect()))
    }

    pub fn get(&self, resource: &str) -> Option<&ResourceId> {
        self.0.iter().map(|kind| &kind.id).find(|id| name_of(id) == resource)
    }

    pub fn all(&self) -> impl Iterator<Item = &ResourceId> {
        self.0.iter().map(|kind| &kind.id)
    }

    /// `deploy`, `deployment`, `Deployment`, `deployments`, `deployments.apps`
    pub fn meant(&self, word: &str) -> Option<&ResourceId> {
        let word = word.to_ascii_lowercase();
        let long = SHORT.iter().find(|(short, _)| *short == word).map(|(_, long)| *long);
        let is = |id: &&ResourceId| id.plural == word || id.kind.eq_ignore_ascii_case(&word);
        let ids = || self.0.iter().map(|kind| &kind.id);
        self.get(long.unwrap_or(&word)).or_else(|| ids().find(is))
    }

    /// # Errors
    ///
    /// If the cluster doesn't know that kind, or something can't be read.
    pub async fn read(&self, rest: &Rest, selection: &Selection) -> anyhow::Result<Vec<Object>> {
        let namespace = selection.namespace.as_deref().unwrap_or_default();
        let mut found = Vec::new();
        if let Some(object) = &selection.object {
            let (kind, name) = object
                .split_once('/')
                .with_context(|| format!("--object {object}: it is KIND/NAME"))?;
            let id = self
                .meant(kind)
                .with_context(|| format!("--object {object}: no kind {kind:?} is known"))?;
            ensure!(
                !(id.namespaced && namespace.is_empty()),
                "--object {object}: say its namespace (-n)"
            );
            let namespace = if id.namespaced { namespace } else { "" };
            match rest.get_raw(id, namespace, name, "", JSON).await {
                Ok(json) => found.push(object_of(id, &json)?),
                Err(Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error.into()),
            }
            return Ok(found);
        }
        for id in self.0.iter().map(|kind| &kind.id) {
            let (within, fields) = match (id.namespaced, id.plural == "namespaces" && id.group.is_empty()) {
                (true, _) => (namespace, String::new()),
                (false, true) => ("", format!("metadata.name={namespace}")),
                (false, false) => continue,
            };
            let mut each = |json: &[u8]| {
                found.push(object_of(id, json).map_err(Error::SerdeError)?);
                Ok(())
            };
            let read = rest.list_raw(id, within, "", &fields, JSON, &mut each).await;
            read.with_context(|| format!("listing {}", name_of(id)))?;
        }
        Ok(found)
    }
}

/// In a list objects don't say what they are.
pub fn object_of(id: &ResourceId, json: &[u8]) -> serde_json::Result<Object> {
    let mut value: Value = serde_json::from_slice(json)?;
    value["apiVersion"] = id.api_version().into();
    value["kind"] = id.kind.as_ref().into();
    let resource = name_of(id);
    Ok(Object { resource, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_as_people_name_them() {
        let kind = |group: &'static str, kind, plural| Discovered {
            id: ResourceId::fixed(group, "v1", kind, plural, true),
            verbs: Vec::new(),
        };
        let kinds = Kinds(vec![
            kind("", "Service", "services"),
            kind("apps", "Deployment", "deployments"),
            kind("example.com", "Service", "services"),
        ]);
        let meant = |word| kinds.meant(word).map(name_of).unwrap_or_default();
        for word in ["deploy", "Deployment", "deployments", "deployments.apps"] {
            assert_eq!(meant(word), "deployments.apps", "{word}");
        }
        assert_eq!(
            (meant("svc"), meant("services.example.com")),
            ("services".into(), "services.example.com".into())
        );
        assert_eq!(meant("nothing"), "");
    }
}
