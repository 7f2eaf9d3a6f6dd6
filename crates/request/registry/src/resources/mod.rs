//! The built-in kinds: what each stores where, and its [`Behaviour`]. Facts that discovery tells (names, verbs,
//! subresources) come from `keelson_api::resources`; types from the schema. One file a group, or a kind where there is
//! more to say.

mod apps;
mod batch;
mod columns;
mod core;
pub mod crd;
pub(crate) mod crd_v1beta1;
mod defaults;
pub mod expressions;
mod misc;
pub mod pod_resources;
mod selectable;

pub use self::core::service::{NodePorts, ServiceRanges};
mod validation;
mod warnings;
pub mod withheld;

use crate::convert::Converter;
use crate::def::{ResourceDef, ScalePaths, Selectable, StorageCodec, StorageDef, SubresourceDef};
use crate::strategy::{Behaviour, built_in};
use keelson_api::resources::{self, ResourceFacts};
use keelson_api::{GroupResource, GroupVersionKind, SchemaRef, Str, builtin};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

/// Rows for every built-in resource.
pub fn rows() -> Vec<ResourceDef> {
    let mut storages: HashMap<String, Arc<StorageDef>> = HashMap::new();
    resources::all().filter_map(|facts| row(facts, &mut storages)).collect()
}

fn row(facts: &'static ResourceFacts, storages: &mut HashMap<String, Arc<StorageDef>>) -> Option<ResourceDef> {
    let schema = builtin::builtin_kind(&facts.gvk())?;
    let storage = stored(facts).then(|| {
        let prefix = prefix(facts.group, facts.resource);
        storages
            .entry(prefix.clone())
            .or_insert_with(|| Arc::new(storage(facts, &prefix, &schema)))
            .clone()
    });
    let converter = converter(facts);
    Some(ResourceDef {
        gvr: keelson_api::GroupVersionResource::new(facts.group, facts.version, facts.resource),
        kind: facts.kind.into(),
        list_kind: format!("{}List", facts.kind).into(),
        singular: facts.singular.into(),
        short_names: strings(&facts.short_names),
        categories: strings(&facts.categories),
        namespaced: facts.namespaced,
        verbs: strings(&facts.verbs),
        subresources: facts
            .subresources
            .iter()
            .map(|s| {
                let own = s.kind != facts.gvk();
                SubresourceDef {
                    name: s.name.into(),
                    kind: own.then(|| s.kind.clone()),
                    schema: if own { builtin::builtin_kind(&s.kind) } else { None },
                    verbs: strings(&s.verbs),
                    scale: (s.name == "scale").then(|| ScalePaths {
                        spec_replicas: strings(&["spec", "replicas"]),
                        status_replicas: strings(&["status", "replicas"]),
                        selector: None,
                    }),
                }
            })
            .collect(),
        schema,
        storage,
        view: None,
        selectable: Vec::new(),
        strategy: built_in(complete(facts.group, facts.kind)),
        converter,
        siblings: Vec::new(),
        columns: columns::of(facts.group, facts.kind),
        custom: false,
        frozen: false,
        deprecation: deprecation(facts.group, facts.kind),
        storage_version_hash: facts.storage_version_hash.into(),
    })
}

/// The quality-of-service class of a pod.
pub fn qos_class(pod: &keelson_api::Object) -> &'static str {
    core::qos_class(pod)
}

/// Whether containers ask a vendor for a resource of this name.
pub fn is_extended_resource(name: &str) -> bool {
    validation::is_extended_resource(name)
}

fn strings(list: &[&str]) -> Vec<Str> {
    list.iter().map(|s| Str::from(*s)).collect()
}

fn stored(facts: &ResourceFacts) -> bool {
    facts.has_verb("watch")
}

/// Upstream's places in the store.
fn prefix(group: &str, resource: &str) -> String {
    match (group, resource) {
        ("", "replicationcontrollers") => "/registry/controllers".into(),
        ("", "endpoints") => "/registry/services/endpoints".into(),
        ("", "services") => "/registry/services/specs".into(),
        ("", "nodes") => "/registry/minions".into(),
        ("networking.k8s.io", "ingresses") => "/registry/ingress".into(),
        ("apiextensions.k8s.io" | "apiregistration.k8s.io", r) => format!("/registry/{group}/{r}"),
        (_, r) => format!("/registry/{r}"),
    }
}

/// Where what is stored stands: the beginning of its keys, with the slash, and whose they are. Custom resources are below
/// `/registry/GROUP/RESOURCE/`, and in none of these.
pub fn places() -> Vec<(String, GroupResource)> {
    let rows = rows();
    let stored = rows.iter().filter_map(|row| row.storage.as_ref());
    let mut places: BTreeMap<String, GroupResource> = stored.map(|s| (s.key_prefix(""), s.resource.clone())).collect();
    // What services have to be given is theirs.
    let services = GroupResource {
        group: "".into(),
        resource: "services".into(),
    };
    places.insert("/registry/ranges/".into(), services);
    places.into_iter().collect()
}

/// The version objects are stored in, where it isn't the only one.
fn storage_gvk(facts: &ResourceFacts) -> GroupVersionKind {
    match (facts.group, facts.kind) {
        ("autoscaling", kind) => GroupVersionKind::new("autoscaling", "v2", kind),
        ("events.k8s.io", kind) => GroupVersionKind::new("", "v1", kind),
        _ => facts.gvk(),
    }
}

fn storage(facts: &'static ResourceFacts, prefix: &str, own: &SchemaRef) -> StorageDef {
    let version = storage_gvk(facts);
    StorageDef {
        prefix: prefix.into(),
        namespaced: facts.namespaced,
        schema: builtin::builtin_kind(&version).unwrap_or_else(|| own.clone()),
        version,
        codec: StorageCodec::Protobuf,
        selectable: Selectable::Fields(selectable::of(facts.group, facts.kind)),
        resource: GroupResource {
            group: facts.group.into(),
            resource: facts.resource.into(),
        },
        view: None,
    }
}

fn converter(facts: &ResourceFacts) -> Option<Arc<dyn Converter>> {
    match (facts.group, facts.kind) {
        ("" | "events.k8s.io", "Event") => Some(Arc::new(crate::convert::events::Events)),
        ("autoscaling", "HorizontalPodAutoscaler") => Some(Arc::new(crate::convert::autoscaling::Autoscalers)),
        _ => None,
    }
}

fn deprecation(group: &str, kind: &str) -> Option<Str> {
    match (group, kind) {
        ("", "Endpoints") => Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".into()),
        ("", "ComponentStatus") => Some("v1 ComponentStatus is deprecated in v1.19+".into()),
        _ => None,
    }
}

/// A kind's behaviour together with its defaults and rules.
fn complete(group: &'static str, kind: &'static str) -> &'static Behaviour {
    static TABLE: LazyLock<HashMap<(&str, &str), Behaviour>> = LazyLock::new(|| {
        let kinds = resources::all().map(|f| (f.group, f.kind));
        kinds
            .map(|(group, kind)| {
                let b = Behaviour {
                    default: defaults::of(group, kind),
                    withheld: withheld::of(group, kind),
                    ..*behaviour(group, kind)
                };
                // Definitions of custom resources are judged by the machinery that reads their schemas.
                let b = match group {
                    "apiextensions.k8s.io" => b,
                    _ => Behaviour {
                        validate: validation::create,
                        validate_update: validation::update,
                        validate_status: validation::status,
                        warnings: warnings::of,
                        ..b
                    },
                };
                ((group, kind), b)
            })
            .collect()
    });
    TABLE.get(&(group, kind)).unwrap_or(&Behaviour::DEFAULT)
}

fn behaviour(group: &str, kind: &str) -> &'static Behaviour {
    let found = match group {
        "" => core::behaviour(kind),
        "events.k8s.io" => core::behaviour("Event"),
        "apps" => apps::behaviour(kind),
        "batch" => batch::behaviour(kind),
        _ => misc::behaviour(group, kind),
    };
    found.unwrap_or(&Behaviour::DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_has_a_row_and_stored_ones_a_place() {
        let rows = rows();
        assert_eq!(rows.len(), resources::all().count());
        for (resource, place) in [
            ("nodes", "/registry/minions"),
            ("services", "/registry/services/specs"),
            (
                "customresourcedefinitions",
                "/registry/apiextensions.k8s.io/customresourcedefinitions",
            ),
            ("leases", "/registry/leases"),
        ] {
            let def = rows.iter().find(|d| d.gvr.resource == resource).unwrap();
            assert_eq!(def.storage.as_ref().unwrap().prefix, place);
        }
        let place = |at: &str| places().into_iter().find(|(p, _)| p == at).unwrap().1.to_string();
        assert_eq!(place("/registry/events/"), "events");
        assert_eq!(place("/registry/ingress/"), "ingresses.networking.k8s.io");
        assert_eq!(place("/registry/services/endpoints/"), "endpoints");
        let events: Vec<_> = rows.iter().filter(|d| d.kind == "Event").collect();
        assert_eq!(events.len(), 2);
        assert!(Arc::ptr_eq(
            events[0].storage.as_ref().unwrap(),
            events[1].storage.as_ref().unwrap()
        ));
        assert!(
            rows.iter()
                .find(|d| d.gvr.resource == "tokenreviews")
                .unwrap()
                .storage
                .is_none()
        );
    }
}
