//! What is to be done so that the copies of a source are as it wants them.

use super::policy::Recipients;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{ApiObject, Kind, ObjectKey};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Marks copies, and says of what.
pub const COPY: (&str, &str) = ("keelson.dev/shared", "true");
pub const OF: &str = "keelson.dev/copy-of";
/// By these whoever has them comes into the cluster, or a chart's history is told.
const NEVER: [&str; 3] = [
    "bootstrap.kubernetes.io/token",
    "kubernetes.io/service-account-token",
    "helm.sh/release.v1",
];

/// What can be shared.
pub trait Content: Kind {
    const CONTROLLER: &'static str;
    /// Takes what the source says. Says whether that was anything new.
    fn take(&mut self, source: &Self) -> bool;
    fn empty(metadata: ObjectMeta) -> Self;
    /// What can't be changed in place.
    fn sort(&self) -> &str;
    fn is_fixed(&self) -> bool;
}

impl Content for ConfigMap {
    const CONTROLLER: &'static str = "sharing-configmap";
    fn take(&mut self, source: &Self) -> bool {
        let same = self.data == source.data && self.binary_data == source.binary_data;
        (self.data, self.binary_data) = (source.data.clone(), source.binary_data.clone());
        !same
    }
    fn empty(metadata: ObjectMeta) -> Self {
        ConfigMap {
            metadata,
            ..ConfigMap::default()
        }
    }
    fn sort(&self) -> &str {
        ""
    }
    fn is_fixed(&self) -> bool {
        self.immutable == Some(true)
    }
}

impl Content for Secret {
    const CONTROLLER: &'static str = "sharing-secret";
    fn take(&mut self, source: &Self) -> bool {
        let same = self.data == source.data && self.type_ == source.type_;
        (self.data, self.type_) = (source.data.clone(), source.type_.clone());
        !same
    }
    fn empty(metadata: ObjectMeta) -> Self {
        Secret {
            metadata,
            ..Secret::default()
        }
    }
    fn sort(&self) -> &str {
        self.type_.as_deref().unwrap_or_default()
    }
    fn is_fixed(&self) -> bool {
        self.immutable == Some(true)
    }
}

#[derive(Debug)]
pub enum Step<K> {
    Create(K),
    Update(K),
    /// It can't be changed to what it is to be: it goes, and the next turn makes it.
    Delete(Arc<K>),
}

/// Whether it may be shared at all. Copies aren't: nothing goes on from namespace to namespace.
pub fn is_source<K: Content>(object: &K) -> bool {
    !is_copy(object) && !object.is_deleting() && !NEVER.contains(&object.sort())
}

pub fn is_copy<K: ApiObject>(object: &K) -> bool {
    let labels = object.meta().labels.as_ref();
    labels.is_some_and(|labels| labels.get(COPY.0).is_some_and(|value| value == COPY.1))
}

/// Of what a copy is one.
pub fn source_of<K: ApiObject>(copy: &K) -> Option<ObjectKey> {
    let of = copy.meta().annotations.as_ref()?.get(OF)?;
    let (namespace, name) = of.split_once('/')?;
    (name == copy.name()).then(|| ObjectKey::new(namespace, name))
}

/// `source`: with those who get it; `None`: nobody does. `copies`: all that say they are copies of it.
pub fn plan<K: Content>(
    source: Option<(&K, &Recipients)>,
    namespaces: &[Arc<Namespace>],
    copies: &[Arc<K>],
) -> Vec<Step<K>> {
    let include = |(source, recipients): (&K, &Recipients)| {
        let gets = namespaces.iter().filter(|n| recipients.include(source.namespace(), n));
        gets.map(|n| n.name().to_owned()).collect::<BTreeSet<_>>()
    };
    let mut wanted = source.map(include).unwrap_or_default();
    let mut steps = Vec::new();
    for copy in copies.iter().filter(|copy| !copy.is_deleting()) {
        let kept = source.filter(|_| wanted.remove(copy.namespace()));
        match kept {
            Some((source, _)) if copy.sort() == source.sort() => {
                let mut next = (**copy).clone();
                if !next.take(source) {
                    continue;
                }
                steps.push(match copy.is_fixed() {
                    true => Step::Delete(copy.clone()),
                    false => Step::Update(next),
                });
            }
            _ => steps.push(Step::Delete(copy.clone())),
        }
    }
    if let Some((source, _)) = source {
        // Those that go have to be gone first.
        let going: BTreeSet<&str> = copies
            .iter()
            .filter(|c| c.is_deleting())
            .map(|c| c.namespace())
            .collect();
        let free = wanted.iter().filter(|namespace| !going.contains(namespace.as_str()));
        steps.extend(free.map(|namespace| Step::Create(copy(source, namespace))));
    }
    steps
}

fn copy<K: Content>(source: &K, namespace: &str) -> K {
    let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let of = format!("{}/{}", source.namespace(), source.name());
    let mut copy = K::empty(ObjectMeta {
        name: Some(source.name().to_owned()),
        namespace: Some(namespace.to_owned()),
        labels: Some(BTreeMap::from([own(COPY)])),
        annotations: Some(BTreeMap::from([own((OF, &of))])),
        ..ObjectMeta::default()
    });
    copy.take(source);
    copy
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(namespace: &str, kind: &str, value: &str) -> Secret {
        let data = json!({"k": value});
        serde_json::from_value(
            json!({"metadata": {"name": "tls", "namespace": namespace}, "type": kind, "stringData": {}, "data": data}),
        )
        .unwrap()
    }

    fn namespaces(names: &[&str]) -> Vec<Arc<Namespace>> {
        let one = |name: &&str| Arc::new(serde_json::from_value(json!({"metadata": {"name": name}})).unwrap());
        names.iter().map(one).collect()
    }

    fn recipients(names: &str) -> Recipients {
        let meta = json!({"annotations": {"keelson.dev/share-with": names}});
        Recipients::of(&serde_json::from_value(meta).unwrap()).unwrap().unwrap()
    }

    fn told(steps: &[Step<Secret>]) -> Vec<String> {
        let one = |step: &Step<Secret>| match step {
            Step::Create(copy) => format!("create {}", copy.namespace()),
            Step::Update(copy) => format!("update {}", copy.namespace()),
            Step::Delete(copy) => format!("delete {}", copy.namespace()),
        };
        steps.iter().map(one).collect()
    }

    #[test]
    fn copies_are_made_kept_and_taken_away() {
        let (all, ab) = (namespaces(&["infra", "a", "b", "c"]), recipients("a,b"));
        let source = secret("infra", "Opaque", "eA==");
        let first = plan(Some((&source, &ab)), &all, &[]);
        assert_eq!(told(&first), ["create a", "create b"]);
        let Step::Create(made) = &first[0] else { panic!() };
        assert_eq!(made.data, source.data);
        assert!(is_copy(made) && !is_source(made));
        assert_eq!(source_of(made), Some(ObjectKey::new("infra", "tls")));
        let there = |namespace: &str, value: &str| Arc::new(copy(&secret("infra", "Opaque", value), namespace));
        let copies = [there("a", "eA=="), there("b", "eQ=="), there("c", "eA==")];
        assert_eq!(
            told(&plan(Some((&source, &ab)), &all, &copies)),
            ["update b", "delete c"]
        );
        assert_eq!(told(&plan(None, &all, &copies)), ["delete a", "delete b", "delete c"]);
        let other = secret("infra", "kubernetes.io/tls", "eA==");
        assert_eq!(
            told(&plan(Some((&other, &ab)), &all, &copies[..1])),
            ["delete a", "create b"]
        );
        let mut fixed = copy(&secret("infra", "Opaque", "eQ=="), "a");
        fixed.immutable = Some(true);
        assert_eq!(
            told(&plan(Some((&source, &ab)), &all, &[Arc::new(fixed)])),
            ["delete a", "create b"]
        );
    }

    #[test]
    fn what_lets_somebody_in_is_not_shared_nor_what_only_says_it_is_a_copy_of_another_name() {
        for kind in NEVER {
            assert!(!is_source(&secret("infra", kind, "eA==")), "{kind}");
        }
        let mut other = secret("a", "Opaque", "eA==");
        other.metadata.annotations = Some(BTreeMap::from([(OF.to_owned(), "infra/else".to_owned())]));
        assert_eq!(source_of(&other), None);
    }
}
