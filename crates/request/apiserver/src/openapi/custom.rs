//! Custom resources in the documents: what a CRD hands over when it is served.

use super::paths::{Resource, Sub};
use keelson_api::{GroupVersionKind, Str, Value};
use keelson_machinery::structural::publish::{Document, Names, kind_schema, list_schema};

/// One version of a custom resource.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CustomKind {
    pub group: Str,
    pub version: Str,
    pub kind: Str,
    pub list_kind: Str,
    pub plural: Str,
    pub namespaced: bool,
    /// `status` and `scale`, as the version has them.
    pub has_status: bool,
    pub has_scale: bool,
    pub selectable: Vec<Str>,
    /// The version's `openAPIV3Schema`.
    pub schema: Option<Value>,
    pub verbs: Vec<Str>,
}

impl CustomKind {
    fn names(&self) -> Names<'_> {
        Names {
            group: &self.group,
            version: &self.version,
            kind: &self.kind,
            list_kind: &self.list_kind,
            plural: &self.plural,
            selectable: &self.selectable,
        }
    }
    /// The definitions of the kind and its list.
    pub fn definitions(&self, document: Document) -> Vec<(String, Value)> {
        let names = self.names();
        vec![
            (names.model(), kind_schema(self.schema.as_ref(), &names, document)),
            (names.list_model(), list_schema(&names, document)),
        ]
    }
    pub fn resource(&self) -> Resource<'_> {
        let names = self.names();
        let mut subresources = Vec::new();
        let verbs: Vec<Str> = ["get", "patch", "update"].map(Str::from).to_vec();
        if self.has_status {
            subresources.push(Sub {
                name: "status".into(),
                gvk: GroupVersionKind::new(&self.group, &self.version, &self.kind),
                model: names.model(),
                verbs: verbs.clone(),
            });
        }
        if self.has_scale {
            subresources.push(Sub {
                name: "scale".into(),
                gvk: GroupVersionKind::new("autoscaling", "v1", "Scale"),
                model: "io.k8s.api.autoscaling.v1.Scale".into(),
                verbs,
            });
        }
        Resource {
            group: &self.group,
            version: &self.version,
            plural: &self.plural,
            kind: &self.kind,
            namespaced: self.namespaced,
            verbs: &self.verbs,
            model: names.model(),
            list_model: names.list_model(),
            subresources,
        }
    }
}
