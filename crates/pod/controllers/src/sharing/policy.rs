//! With which namespaces a ConfigMap or a Secret is shared: its own annotations say it. They are ours, and those that users of mittwald's
//! replicator and of emberstack's reflector know for giving. A namespace can't ask.

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use keelson_client::ApiObject;
use keelson_client::labels::{matches, parse};
use regex::Regex;

/// Names of namespaces, or expressions that match them as a whole; a selector of namespaces by labels.
const NAMES: [&str; 2] = ["keelson.dev/share-with", "replicator.v1.mittwald.de/replicate-to"];
const MATCHING: [&str; 2] = [
    "keelson.dev/share-with-matching",
    "replicator.v1.mittwald.de/replicate-to-matching",
];
/// Of reflector: both have to be `true`, and no names are all names.
const REFLECTOR: [&str; 2] = [
    "reflector.v1.k8s.emberstack.com/reflection-allowed",
    "reflector.v1.k8s.emberstack.com/reflection-auto-enabled",
];
const REFLECTOR_NAMES: [&str; 2] = [
    "reflector.v1.k8s.emberstack.com/reflection-allowed-namespaces",
    "reflector.v1.k8s.emberstack.com/reflection-auto-namespaces",
];
/// Of a namespace that takes nothing.
const REFUSES: &str = "keelson.dev/take-shared";
/// What stands there is believed by components of the cluster.
const SYSTEM: [&str; 2] = ["kube-", "keelson-"];
/// What an expression may become.
const LARGEST: usize = 1 << 16;

/// Any of these is enough.
#[derive(Debug, Default)]
pub struct Recipients {
    names: Vec<Regex>,
    labels: Vec<LabelSelector>,
    /// All of these have to have it.
    reflected: Option<Vec<Vec<Regex>>>,
}

impl Recipients {
    /// `None`: it isn't shared.
    ///
    /// # Errors
    ///
    /// What of the annotations isn't understood.
    pub fn of(meta: &ObjectMeta) -> Result<Option<Recipients>, String> {
        let get = |key: &str| meta.annotations.as_ref().and_then(|a| a.get(key)).map(String::as_str);
        let mut found = Recipients::default();
        for key in NAMES {
            found.names.extend(names(key, get(key).unwrap_or_default())?);
        }
        for key in MATCHING {
            if let Some(text) = get(key).filter(|text| !text.trim().is_empty()) {
                let selector = parse(text).ok_or_else(|| format!("{key}: {text:?} is no selector"))?;
                found.labels.push(selector);
            }
        }
        if REFLECTOR
            .iter()
            .all(|key| get(key).is_some_and(|v| v.eq_ignore_ascii_case("true")))
        {
            let lists = REFLECTOR_NAMES
                .iter()
                .map(|key| names(key, get(key).unwrap_or_default()));
            found.reflected = Some(lists.collect::<Result<_, _>>()?);
        }
        let is_shared = !found.names.is_empty() || !found.labels.is_empty() || found.reflected.is_some();
        Ok(is_shared.then_some(found))
    }

    /// Whether this namespace gets a copy of what is in `source`.
    pub fn include(&self, source: &str, namespace: &Namespace) -> bool {
        let name = namespace.name();
        let is_here = |pattern: &Regex| pattern.is_match(name);
        let reflected = |lists: &Vec<Vec<Regex>>| lists.iter().all(|list| list.is_empty() || list.iter().any(is_here));
        takes(source, namespace)
            && (self.names.iter().any(is_here)
                || self
                    .labels
                    .iter()
                    .any(|l| matches(Some(l), namespace.metadata.labels.as_ref()))
                || self.reflected.as_ref().is_some_and(reflected))
    }
}

fn takes(source: &str, namespace: &Namespace) -> bool {
    let name = namespace.name();
    let refuses = namespace.metadata.annotations.as_ref().and_then(|a| a.get(REFUSES));
    let is_ending = namespace
        .status
        .as_ref()
        .is_some_and(|s| s.phase.as_deref() == Some("Terminating"));
    name != source
        && !SYSTEM.iter().any(|begin| name.starts_with(begin))
        && refuses.is_none_or(|text| text != "false")
        && !is_ending
        && !namespace.is_deleting()
}

fn names(key: &str, text: &str) -> Result<Vec<Regex>, String> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    let one = |name: &str| {
        let whole = format!("^(?:{name})$");
        let built = regex::RegexBuilder::new(&whole).size_limit(LARGEST).build();
        built.map_err(|_| format!("{key}: {name:?} is neither a name nor an expression"))
    };
    names.map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn recipients(annotations: Value) -> Result<Option<Recipients>, String> {
        Recipients::of(&serde_json::from_value(json!({"annotations": annotations})).unwrap())
    }

    fn namespace(name: &str, labels: Value, annotations: Value) -> Namespace {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": labels, "annotations": annotations}}))
            .unwrap()
    }

    fn get_it(annotations: Value, names: &[&str]) -> Vec<String> {
        let recipients = recipients(annotations).unwrap().expect("it is shared");
        let includes = |name: &&&str| recipients.include("infra", &namespace(name, json!({"team": "a"}), json!({})));
        names.iter().filter(includes).map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_source_says_who_gets_it_in_each_form() {
        let all = ["shop", "shop-1", "my-shop-1", "kube-system", "infra"];
        assert_eq!(get_it(json!({"keelson.dev/share-with": "shop"}), &all), ["shop"]);
        let pattern = json!({"replicator.v1.mittwald.de/replicate-to": "shop-[0-9]*, other"});
        assert_eq!(get_it(pattern, &all), ["shop-1"]);
        let labels = json!({"replicator.v1.mittwald.de/replicate-to-matching": "team=a"});
        assert_eq!(get_it(labels, &all), ["shop", "shop-1", "my-shop-1"]);
        let [allowed, auto] = REFLECTOR;
        let [allowed_names, auto_names] = REFLECTOR_NAMES;
        assert_eq!(
            get_it(json!({allowed: "true", auto: "true"}), &all),
            ["shop", "shop-1", "my-shop-1"]
        );
        let both = json!({allowed: "true", auto: "true", allowed_names: "shop.*", auto_names: "shop,my-shop-1"});
        assert_eq!(get_it(both, &all), ["shop"]);
        for nobody in [
            json!({}),
            json!({allowed: "true"}),
            json!({auto: "true"}),
            json!({"keelson.dev/share-with": " ,"}),
        ] {
            assert!(recipients(nobody.clone()).unwrap().is_none(), "{nobody}");
        }
        for wrong in [
            json!({"keelson.dev/share-with": "shop-["}),
            json!({"keelson.dev/share-with-matching": "a in"}),
            json!({"keelson.dev/share-with": "(a{1000}){1000}"}),
        ] {
            assert!(recipients(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_namespace_may_refuse_and_one_that_ends_takes_nothing() {
        let everywhere = recipients(json!({"keelson.dev/share-with": ".*"})).unwrap().unwrap();
        let includes = |namespace: &Namespace| everywhere.include("infra", namespace);
        assert!(includes(&namespace("shop", json!({}), json!({}))));
        assert!(!includes(&namespace("shop", json!({}), json!({REFUSES: "false"}))));
        for system in ["kube-public", "keelson-ingress"] {
            assert!(!includes(&namespace(system, json!({}), json!({}))), "{system}");
        }
        let mut ending = namespace("shop", json!({}), json!({}));
        ending.status.get_or_insert_default().phase = Some("Terminating".into());
        assert!(!includes(&ending));
    }
}
