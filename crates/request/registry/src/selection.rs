//! Selectors of a request, compiled into what the cache asks of each entry.

use crate::def::{ResourceDef, Selectable, StorageDef};
use keelson_api::{ApiError, ApiResult, Map, Str, Value};
use keelson_cache::{Entry, IndexKey, Scope, Selection};
use keelson_machinery::selector::{FieldSelector, LabelSelector};
use std::sync::Arc;

/// Where a selector finds a field of an entry.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    Name,
    Namespace,
    Field(usize),
}

impl StorageDef {
    /// The position of a selectable field among an entry's attributes.
    pub fn field_index(&self, name: &str) -> Option<usize> {
        match &self.selectable {
            Selectable::Fields(list) => list.iter().position(|f| f.name == name),
            Selectable::Paths(list) => list.iter().position(|p| p == name),
        }
    }
    /// The values of the selectable fields, in their order.
    pub fn field_values(&self, object: &Map) -> Vec<Str> {
        self.field_values_by(&mut |path| at(object, path.iter().copied()).cloned())
    }
    /// The same of an object whose fields are read by `read`.
    pub fn field_values_by(&self, read: &mut dyn FnMut(&[&str]) -> Option<Value>) -> Vec<Str> {
        let mut text = |path: &[&str]| read(path).as_ref().map(shown).unwrap_or_default();
        match &self.selectable {
            Selectable::Fields(list) => list
                .iter()
                .map(|f| [f.path, f.or].into_iter().map(&mut text).find(|s| !s.is_empty()))
                .zip(list.iter())
                .map(|(found, f)| found.unwrap_or_else(|| f.absent.into()))
                .collect(),
            Selectable::Paths(list) => list
                .iter()
                .map(|p| text(&p.split('.').filter(|s| !s.is_empty()).collect::<Vec<_>>()))
                .collect(),
        }
    }
    /// What the cache indexes: the fields that many watchers select by.
    pub fn indexes(&self) -> Vec<IndexKey> {
        self.field_index("spec.nodeName")
            .map(IndexKey::Field)
            .into_iter()
            .collect()
    }
}

fn at<'a, 'p>(object: &'a Map, path: impl Iterator<Item = &'p str>) -> Option<&'a Value> {
    let mut value: Option<&Value> = None;
    for key in path {
        value = match value {
            None => Some(object.get(key)?),
            Some(v) => Some(v.get(key)?),
        };
    }
    value.filter(|v| !v.is_null())
}

fn shown(v: &Value) -> Str {
    match v {
        Value::String(s) => s.clone(),
        Value::Bool(b) => if *b { "true" } else { "false" }.into(),
        Value::Int(i) => i.to_string().into(),
        Value::Float(f) => f.to_string().into(),
        _ => Str::default(),
    }
}

/// Both selectors of a request.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    labels: LabelSelector,
    fields: FieldSelector,
    sources: Vec<Source>,
}

impl Selector {
    /// Parses; refuses fields that the kind can't be selected by. `name` narrows to one object, as watch paths do.
    pub fn parse(def: &ResourceDef, labels: &str, fields: &str, name: &str) -> ApiResult<Self> {
        let labels = LabelSelector::parse(labels).map_err(|e| {
            ApiError::bad_request(format!("unable to parse requirement: {e}").replace(
                "unable to parse requirement: unable to parse requirement",
                "unable to parse requirement",
            ))
        })?;
        let mut fields = FieldSelector::parse(fields).map_err(ApiError::bad_request)?;
        for r in &mut fields.requirements {
            // Old names of fields that kinds of the core group still accept.
            if def.gvr.group.is_empty() && r.field == "spec.host" && def.gvr.resource == "pods" {
                r.field = "spec.nodeName".into();
            }
        }
        if !name.is_empty() {
            if fields.is_empty() {
                let quoted = keelson_machinery::selector::escape_value(name);
                fields = FieldSelector::parse(&format!("metadata.name={quoted}")).map_err(ApiError::bad_request)?;
            } else if fields.requires_exact_match("metadata.name") != Some(name) {
                return Err(ApiError::bad_request(
                    "fieldSelector metadata.name doesn't match requested name",
                ));
            }
        }
        let storage = def.view.as_ref().or(def.storage.as_ref());
        let mut sources = Vec::with_capacity(fields.requirements.len());
        for r in &fields.requirements {
            let source = match r.field.as_str() {
                "metadata.name" => Some(Source::Name),
                "metadata.namespace" => Some(Source::Namespace),
                other if def.custom && !def.selectable.iter().any(|f| f == other) => None,
                other => storage
                    .and_then(|s| s.field_index(selectable_name(def, other)))
                    .map(Source::Field),
            };
            sources.push(source.ok_or_else(|| ApiError::bad_request(unknown_field(def, &r.field)))?);
        }
        Ok(Selector {
            labels,
            fields,
            sources,
        })
    }
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }
    fn matches_with<'a>(
        &self,
        label: impl Fn(&str) -> Option<&'a str>,
        field: impl Fn(Source) -> Option<&'a str>,
    ) -> bool {
        self.fields
            .requirements
            .iter()
            .zip(&self.sources)
            .all(|(r, s)| (field(*s).unwrap_or_default() == r.value) != r.negated)
            && (self.labels.is_empty() && !self.labels.is_nothing() || self.labels.matches_with(label))
    }
    pub fn matches(&self, e: &Entry) -> bool {
        self.matches_with(
            |k| e.attributes().label(k),
            |s| match s {
                Source::Name => Some(e.name()),
                Source::Namespace => Some(e.namespace()),
                Source::Field(i) => e.attributes().field(i),
            },
        )
    }
    /// Whose cache to ask.
    pub fn storage<'a>(&self, def: &'a ResourceDef) -> ApiResult<&'a Arc<StorageDef>> {
        let by_fields = self.sources.iter().any(|s| matches!(s, Source::Field(_)));
        def.view
            .as_ref()
            .filter(|_| by_fields)
            .or(def.storage.as_ref())
            .ok_or_else(|| ApiError::internal("a virtual resource can't be listed"))
    }
    /// As the cache takes it; a selector for one name or namespace narrows the scope.
    pub fn into_selection(self, def: &ResourceDef, namespace: &str) -> ApiResult<Selection> {
        let storage = self.storage(def)?;
        let namespace = match self.fields.requires_exact_match("metadata.namespace") {
            Some(n) if namespace.is_empty() && def.namespaced => n,
            _ => namespace,
        };
        let scope = match self.fields.requires_exact_match("metadata.name") {
            Some(name) if !def.namespaced || !namespace.is_empty() => Scope::Key(storage.key(namespace, name).into()),
            _ if def.namespaced && !namespace.is_empty() => Scope::Namespace(namespace.into()),
            _ => Scope::All,
        };
        let mut selection = Selection::scope(scope);
        if self.is_empty() {
            return Ok(selection);
        }
        for (position, index) in storage.indexes().iter().enumerate() {
            if let IndexKey::Field(field) = index {
                let wanted = self.sources.iter().position(|s| *s == Source::Field(*field));
                if let Some(r) = wanted.map(|i| &self.fields.requirements[i]).filter(|r| !r.negated) {
                    selection = selection.with_index(position, r.value.clone());
                }
            }
        }
        if let Some((name, value)) = self.labels.one_exact() {
            selection = selection.with_label(name.clone(), value.clone());
        }
        let this = Arc::new(self);
        Ok(selection.with_predicate(Arc::new(move |e| this.matches(e))))
    }
}

/// Selectable fields are named in the storage version's terms; the other group of events has its own names.
fn selectable_name<'a>(def: &ResourceDef, field: &'a str) -> &'a str {
    if def.gvr.group != "events.k8s.io" {
        return field;
    }
    match field {
        "regarding.kind" => "involvedObject.kind",
        "regarding.namespace" => "involvedObject.namespace",
        "regarding.name" => "involvedObject.name",
        "regarding.uid" => "involvedObject.uid",
        "regarding.apiVersion" => "involvedObject.apiVersion",
        "regarding.resourceVersion" => "involvedObject.resourceVersion",
        "regarding.fieldPath" => "involvedObject.fieldPath",
        "reportingController" => "reportingComponent",
        other => other,
    }
}

fn unknown_field(def: &ResourceDef, field: &str) -> String {
    let declares = def.storage.as_ref().is_some_and(|s| match &s.selectable {
        Selectable::Fields(l) => !l.is_empty(),
        Selectable::Paths(_) => true,
    });
    match (def.gvr.group.as_str(), def.kind.as_str()) {
        ("batch", "Job") => format!("field label {field:?} not supported for Job"),
        ("resource.k8s.io", "ResourceSlice") => {
            format!("field label not supported for {}: {field}", def.gvk())
        }
        _ if declares => format!("field label not supported: {field}"),
        _ => format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""),
    }
}
