//! Which ConfigMaps and Secrets a workload follows, by its annotations and its template. They are our own, and those that users of Stakater's
//! Reloader know, on the workload or on its template.

use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// `true`: all that the template names; else a list of `configmap/NAME` and `secret/NAME`.
const OWN: &str = "keelson.dev/reload";
const AUTO: &str = "reloader.stakater.com/auto";
const AUTO_OF: [(Which, &str); 2] = [
    (Which::Map, "configmap.reloader.stakater.com/auto"),
    (Which::Secret, "secret.reloader.stakater.com/auto"),
];
const SEARCH: &str = "reloader.stakater.com/search";
const NAMED: [(Which, &str); 2] = [
    (Which::Map, "configmap.reloader.stakater.com/reload"),
    (Which::Secret, "secret.reloader.stakater.com/reload"),
];
const EXCLUDED: [(Which, &str); 2] = [
    (Which::Map, "configmaps.exclude.reloader.stakater.com/reload"),
    (Which::Secret, "secrets.exclude.reloader.stakater.com/reload"),
];
/// What Reloader itself leaves in a template that it has rolled out: there it runs, and two would do it twice.
const ITS_NOTE: &str = "reloader.stakater.com/last-reloaded-from";
const ITS_VARIABLES: &str = "STAKATER_";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Which {
    Map,
    Secret,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Followed {
    pub kind: Which,
    pub name: String,
    /// Only if it says so itself.
    pub only_matching: bool,
}

impl fmt::Display for Followed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let kind = match self.kind {
            Which::Map => "configmap",
            Which::Secret => "secret",
        };
        write!(f, "{kind}/{}", self.name)
    }
}

/// `None`: nothing is asked for.
pub fn wanted(workload: &ObjectMeta, template: &PodTemplateSpec) -> Option<Vec<Followed>> {
    let below = template.metadata.as_ref().and_then(|m| m.annotations.as_ref());
    let asked = Asked {
        above: workload.annotations.as_ref(),
        below,
    };
    if !asked.is_anything() || is_reloaders(template) {
        return None;
    }
    let named = named(template.spec.as_ref());
    let mut followed = BTreeMap::new();
    let mut add = |kind: Which, name: &str, only_matching: bool| {
        // Who is followed by two ways is followed.
        let only = followed.entry((kind, name.to_owned())).or_insert(only_matching);
        *only &= only_matching;
    };
    for (kind, name) in &named {
        if asked.is(OWN) || asked.is(AUTO) || AUTO_OF.iter().any(|(of, key)| of == kind && asked.is(key)) {
            add(*kind, name, false);
        } else if asked.is(SEARCH) {
            add(*kind, name, true);
        }
    }
    for (kind, key) in NAMED {
        asked.list(key).for_each(|name| add(kind, name, false));
    }
    for text in asked.list(OWN) {
        match text.split_once('/') {
            Some(("configmap", name)) => add(Which::Map, name, false),
            Some(("secret", name)) => add(Which::Secret, name, false),
            _ => {}
        }
    }
    for (kind, key) in EXCLUDED {
        for name in asked.list(key) {
            followed.remove(&(kind, name.to_owned()));
        }
    }
    let one = |((kind, name), only_matching)| Followed {
        kind,
        name,
        only_matching,
    };
    let followed: Vec<_> = followed.into_iter().map(one).collect();
    (!followed.is_empty()).then_some(followed)
}

type Annotations = BTreeMap<String, String>;

struct Asked<'a> {
    above: Option<&'a Annotations>,
    below: Option<&'a Annotations>,
}

impl<'a> Asked<'a> {
    fn get(&self, key: &str) -> Option<&'a str> {
        let of = |annotations: Option<&'a Annotations>| annotations?.get(key).map(String::as_str);
        of(self.above).or_else(|| of(self.below))
    }

    fn is(&self, key: &str) -> bool {
        self.get(key) == Some("true")
    }

    fn list(&self, key: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let names = self.get(key).unwrap_or_default().split(',').map(str::trim);
        names.filter(|name| !name.is_empty())
    }

    fn is_anything(&self) -> bool {
        let of = [&AUTO_OF, &NAMED].into_iter().flatten().map(|(_, key)| *key);
        [OWN, AUTO, SEARCH]
            .into_iter()
            .chain(of)
            .any(|key| self.get(key).is_some())
    }
}

fn is_reloaders(template: &PodTemplateSpec) -> bool {
    let annotations = template.metadata.as_ref().and_then(|m| m.annotations.as_ref());
    let is_its = |container: &Container| {
        container
            .env
            .iter()
            .flatten()
            .any(|env| env.name.starts_with(ITS_VARIABLES))
    };
    annotations.is_some_and(|a| a.contains_key(ITS_NOTE)) || template.spec.iter().flat_map(containers).any(is_its)
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.containers.iter().chain(spec.init_containers.iter().flatten())
}

/// What pods of the template are given, by volumes and by variables.
fn named(spec: Option<&PodSpec>) -> BTreeSet<(Which, String)> {
    let mut found = BTreeSet::new();
    let mut add = |kind, name: Option<&String>| {
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            found.insert((kind, name.clone()));
        }
    };
    for volume in spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        add(Which::Map, volume.config_map.as_ref().map(|source| &source.name));
        add(
            Which::Secret,
            volume.secret.as_ref().and_then(|source| source.secret_name.as_ref()),
        );
        let projected = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
        for source in projected {
            add(Which::Map, source.config_map.as_ref().map(|source| &source.name));
            add(Which::Secret, source.secret.as_ref().map(|source| &source.name));
        }
    }
    for container in spec.into_iter().flat_map(containers) {
        for from in container.env_from.iter().flatten() {
            add(Which::Map, from.config_map_ref.as_ref().map(|source| &source.name));
            add(Which::Secret, from.secret_ref.as_ref().map(|source| &source.name));
        }
        for from in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
            add(Which::Map, from.config_map_key_ref.as_ref().map(|source| &source.name));
            add(Which::Secret, from.secret_key_ref.as_ref().map(|source| &source.name));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn told(annotations: Value, template: Value) -> Option<Vec<String>> {
        let meta: ObjectMeta = serde_json::from_value(json!({"annotations": annotations})).unwrap();
        let template: PodTemplateSpec = serde_json::from_value(template).unwrap();
        let wanted = wanted(&meta, &template)?;
        let shown = |f: &Followed| format!("{f}{}", if f.only_matching { "?" } else { "" });
        Some(wanted.iter().map(shown).collect())
    }

    fn template() -> Value {
        json!({"spec": {
            "volumes": [
                {"name": "a", "configMap": {"name": "volume"}},
                {"name": "b", "secret": {"secretName": "key"}},
                {"name": "c", "projected": {"sources": [{"configMap": {"name": "projected"}}, {"secret": {"name": "token"}}]}},
                {"name": "d", "emptyDir": {}}],
            "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "init"}}]}],
            "containers": [{"name": "c", "envFrom": [{"configMapRef": {"name": "all"}}],
                "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "one", "key": "k"}}}, {"name": "Y", "value": "z"}]}]}})
    }

    #[test]
    fn all_that_a_template_names_in_each_form() {
        let all = [
            "configmap/all",
            "configmap/projected",
            "configmap/volume",
            "secret/init",
            "secret/key",
            "secret/one",
            "secret/token",
        ];
        for key in [OWN, AUTO] {
            assert_eq!(told(json!({key: "true"}), template()).unwrap(), all, "{key}");
        }
        let maps = told(json!({"configmap.reloader.stakater.com/auto": "true"}), template()).unwrap();
        assert_eq!(maps, all[..3]);
        let searched = told(
            json!({SEARCH: "true", "secret.reloader.stakater.com/reload": "key, other"}),
            template(),
        )
        .unwrap();
        assert_eq!(
            searched[3..],
            [
                "secret/init?",
                "secret/key",
                "secret/one?",
                "secret/other",
                "secret/token?"
            ]
        );
        let excluded = told(
            json!({AUTO: "true", "secrets.exclude.reloader.stakater.com/reload": "init,key,one"}),
            template(),
        );
        assert_eq!(excluded.unwrap()[3..], ["secret/token"]);
        let own = told(json!({OWN: "configmap/a, secret/b,nonsense"}), json!({}));
        assert_eq!(own.unwrap(), ["configmap/a", "secret/b"]);
    }

    #[test]
    fn who_does_not_ask_is_left_alone_and_so_is_who_has_reloader() {
        assert_eq!(told(json!({}), template()), None);
        assert_eq!(told(json!({AUTO: "false"}), template()), None);
        assert_eq!(told(json!({AUTO: "true"}), json!({"spec": {"containers": []}})), None);
        let mut below = template();
        below["metadata"] = json!({"annotations": {AUTO: "true"}});
        assert!(told(json!({}), below.clone()).is_some(), "the template may ask");
        below["metadata"]["annotations"][ITS_NOTE] = "{}".into();
        assert_eq!(told(json!({}), below), None);
        let mut variable = template();
        variable["spec"]["containers"][0]["env"][0]["name"] = "STAKATER_ALL_CONFIGMAP".into();
        assert_eq!(told(json!({AUTO: "true"}), variable), None);
    }
}
