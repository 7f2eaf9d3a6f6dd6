//! Who selects whom, without a look at everybody in a namespace: objects are found by their labels, and those that select by a label
//! that whatever they select must have.
//!
//! What is found by one label is then compared whole. Selectors that ask for no particular label, and those that share one with
//! thousands of others, are still looked at one by one.

use crate::kind::ApiObject;
use crate::labels::{Labels, includes, matches};
use crate::store::{IndexFn, Store};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::sync::Arc;

/// The index of objects by namespace and each label they have.
const BY_LABEL: &str = "label";
/// The index of those that select, by what [`wanted`] says.
const BY_WANTED: &str = "wanted-label";

/// The index value for what has a label in a namespace.
pub fn place(namespace: &str, key: &str, value: &str) -> String {
    format!("{namespace}\0{key}\0{value}")
}

/// The index values for an object's labels.
pub fn labelled<K: ApiObject>(object: &K) -> Vec<String> {
    let labels = object.meta().labels.iter().flatten();
    labels
        .map(|(key, value)| place(object.namespace(), key, value))
        .collect()
}

/// Where one that selects by labels stands in its index: under one that it asks for.
pub fn wanted(namespace: &str, labels: Option<&Labels>) -> Vec<String> {
    let Some(labels) = labels else { return Vec::new() };
    let first = labels.iter().next();
    vec![first.map_or_else(|| place(namespace, "", ""), |(key, value)| place(namespace, key, value))]
}

/// The same for the newer kind of selector.
pub fn wanted_by(namespace: &str, selector: Option<&LabelSelector>) -> Vec<String> {
    let Some(selector) = selector else { return Vec::new() };
    let first = pairs(selector).next();
    vec![first.map_or_else(|| place(namespace, "", ""), |(key, value)| place(namespace, key, value))]
}

/// The labels that everything has that the selector matches.
pub fn pairs(selector: &LabelSelector) -> impl Iterator<Item = (&str, &str)> {
    let equal = selector.match_labels.iter().flatten();
    let rules = selector.match_expressions.iter().flatten();
    let only = rules.filter_map(|rule| match (rule.operator.as_str(), rule.values.as_deref()) {
        ("In", Some([value])) => Some((rule.key.as_str(), value.as_str())),
        _ => None,
    });
    equal.map(|(key, value)| (key.as_str(), value.as_str())).chain(only)
}

impl<K: ApiObject> Store<K> {
    /// For [`Store::selected`] and [`Store::having`].
    pub fn index_labels(&self) {
        self.add_index(BY_LABEL, labelled);
    }

    /// For [`Store::selecting`]: `wanted` is [`wanted`] or [`wanted_by`] of an object's selector.
    pub fn index_wanted(&self, wanted: IndexFn<K>) {
        self.add_index(BY_WANTED, wanted);
    }

    /// The objects of a namespace that the selector matches.
    pub fn selected(&self, namespace: &str, selector: &LabelSelector) -> Vec<Arc<K>> {
        let keep = |object: &K| matches(Some(selector), object.meta().labels.as_ref());
        let places: Vec<String> = pairs(selector).map(|(k, v)| place(namespace, k, v)).collect();
        self.found(namespace, &places, keep)
    }

    /// The objects of a namespace that have all these labels.
    pub fn having(&self, namespace: &str, labels: &Labels) -> Vec<Arc<K>> {
        let keep = |object: &K| includes(object.meta().labels.as_ref(), labels);
        let places: Vec<String> = labels.iter().map(|(k, v)| place(namespace, k, v)).collect();
        self.found(namespace, &places, keep)
    }

    fn found(&self, namespace: &str, places: &[String], keep: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        match places {
            [] => {
                let mut all = self.list_namespace(namespace);
                all.retain(|object| keep(object));
                all
            }
            places => self.by_rarest(BY_LABEL, places, keep),
        }
    }

    /// Those of a namespace that may select what has these labels: whether they do is for the caller to say.
    pub fn selecting(&self, namespace: &str, labels: Option<&Labels>) -> Vec<Arc<K>> {
        let own = labels
            .into_iter()
            .flatten()
            .map(|(key, value)| place(namespace, key, value));
        let places = own.chain([place(namespace, "", "")]);
        places.flat_map(|place| self.by_index(BY_WANTED, &place)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::parse;
    use crate::store::looked_at;
    use k8s_openapi::api::core::v1::{Pod, Service};

    fn pod(namespace: &str, name: &str, labels: &[(&str, &str)]) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some(namespace.into());
        pod.metadata.name = Some(name.into());
        pod.metadata.labels = Some(map(labels));
        Arc::new(pod)
    }

    fn map(labels: &[(&str, &str)]) -> Labels {
        labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    fn names<K: ApiObject>(found: &[Arc<K>]) -> String {
        found.iter().map(|o| o.name()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_is_selected_is_found_by_its_rarest_label() {
        let store = Store::<Pod>::default();
        store.index_labels();
        for n in 0..50 {
            let pod = pod(
                "a",
                &format!("p{n}"),
                &[("tier", "web"), ("app", &format!("app-{}", n % 10))],
            );
            store.put(pod.key(), pod);
        }
        let other = pod("b", "elsewhere", &[("tier", "web"), ("app", "app-3")]);
        store.put(other.key(), other);
        for (selector, found, most) in [
            ("tier=web,app=app-3", "p13 p23 p3 p33 p43", 5),
            ("tier=web,app=none", "", 0),
            ("app in (app-3),tier=web", "p13 p23 p3 p33 p43", 5),
            ("app in (app-3,app-4),tier=db", "", 0),
            (
                "tier=web,app notin (app-0,app-1,app-2,app-3,app-4,app-5,app-6,app-7,app-8)",
                "p19 p29 p39 p49 p9",
                50,
            ),
            ("app in (app-3,none)", "p13 p23 p3 p33 p43", 50),
        ] {
            let before = looked_at();
            assert_eq!(
                names(&store.selected("a", &parse(selector).unwrap())),
                found,
                "{selector}"
            );
            assert!(looked_at() - before <= most, "{selector}: {}", looked_at() - before);
        }
        assert_eq!(
            store.having("a", &map(&[])).len(),
            50,
            "nothing in particular: all of the namespace"
        );
        assert_eq!(names(&store.having("b", &map(&[("app", "app-3")]))), "elsewhere");
        // It is followed when labels change, and when they don't.
        let moved = pod("a", "p3", &[("tier", "web"), ("app", "none")]);
        store.put(moved.key(), moved.clone());
        store.put(moved.key(), moved);
        assert_eq!(names(&store.having("a", &map(&[("app", "none")]))), "p3");
        assert_eq!(store.having("a", &map(&[("app", "app-3")])).len(), 4);
    }

    #[test]
    fn those_that_select_are_found_by_a_label_they_ask_for() {
        let store = Store::<Service>::default();
        store.index_wanted(|s| wanted(s.namespace(), s.spec.as_ref().and_then(|s| s.selector.as_ref())));
        let put = |name: &str, selector: Option<Labels>| {
            let mut service = Service::default();
            service.metadata.namespace = Some("a".into());
            service.metadata.name = Some(name.into());
            service.spec.get_or_insert_default().selector = selector;
            let service = Arc::new(service);
            store.put(service.key(), service);
        };
        (0..50).for_each(|n| put(&format!("s{n}"), Some(map(&[("app", &format!("app-{n}"))]))));
        put("all", Some(map(&[])));
        put("none", None);
        put("both", Some(map(&[("app", "app-7"), ("tier", "db")])));
        let before = looked_at();
        let found = store.selecting("a", Some(&map(&[("app", "app-7"), ("tier", "web")])));
        assert_eq!(names(&found), "both s7 all", "whether they do is for the caller to say");
        assert_eq!(looked_at() - before, 3);
        assert!(store.selecting("b", Some(&map(&[("app", "app-7")]))).is_empty());
    }
}
