//! The operations of resources: what clients look up to learn which parameters and kinds a path takes.

use keelson_api::{GroupVersionKind, Map, Str, Value, value};
use keelson_machinery::structural::publish::Document;

/// What operations are written for: a row of the resource table, or of a CRD.
pub struct Resource<'a> {
    pub group: &'a str,
    pub version: &'a str,
    pub plural: &'a str,
    pub kind: &'a str,
    pub namespaced: bool,
    pub verbs: &'a [Str],
    /// Definition names of the kind and its list.
    pub model: String,
    pub list_model: String,
    pub subresources: Vec<Sub>,
}

pub struct Sub {
    pub name: Str,
    pub gvk: GroupVersionKind,
    pub model: String,
    pub verbs: Vec<Str>,
}

struct Operation<'a> {
    action: &'a str,
    id_verb: &'a str,
    words: String,
    gvk: &'a GroupVersionKind,
    parameters: &'static [(&'static str, &'static str, &'static str)],
    /// Definition names of the body and of the answer.
    body: Option<&'a str>,
    answer: &'a str,
    codes: &'static [(&'static str, &'static str)],
}

type Parameters = &'static [(&'static str, &'static str, &'static str)];
const LIST: Parameters = &[
    (
        "allowWatchBookmarks",
        "boolean",
        "Watch events of type BOOKMARK are wanted.",
    ),
    (
        "continue",
        "string",
        "Where to go on with a list, from the answer before.",
    ),
    ("fieldSelector", "string", "Only objects whose fields match."),
    ("labelSelector", "string", "Only objects whose labels match."),
    ("limit", "integer", "The most objects an answer holds."),
    (
        "resourceVersion",
        "string",
        "The version the answer is of, or not older than.",
    ),
    (
        "resourceVersionMatch",
        "string",
        "How resourceVersion is meant: Exact or NotOlderThan.",
    ),
    (
        "sendInitialEvents",
        "boolean",
        "A watch begins with all objects there are.",
    ),
    (
        "timeoutSeconds",
        "integer",
        "The longest time a list or watch may take.",
    ),
    ("watch", "boolean", "Answer with changes as they happen."),
];
const WRITE: Parameters = &[
    ("dryRun", "string", "All: nothing is persisted."),
    ("fieldManager", "string", "The name of who makes the change."),
    (
        "fieldValidation",
        "string",
        "What becomes of unknown and duplicate fields: Ignore, Warn or Strict.",
    ),
];
const PATCH: Parameters = &[
    ("dryRun", "string", "All: nothing is persisted."),
    ("fieldManager", "string", "The name of who makes the change."),
    (
        "fieldValidation",
        "string",
        "What becomes of unknown and duplicate fields: Ignore, Warn or Strict.",
    ),
    ("force", "boolean", "An apply takes over fields that others own."),
];
const DELETE: Parameters = &[
    ("dryRun", "string", "All: nothing is persisted."),
    ("gracePeriodSeconds", "integer", "How long the object has to end."),
    (
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "boolean",
        "Delete what can't be read.",
    ),
    (
        "orphanDependents",
        "boolean",
        "Dependents stay. Superseded by propagationPolicy.",
    ),
    (
        "propagationPolicy",
        "string",
        "What becomes of dependents: Orphan, Background or Foreground.",
    ),
];
const OK: &[(&str, &str)] = &[("200", "OK")];
const CREATED: &[(&str, &str)] = &[("200", "OK"), ("201", "Created"), ("202", "Accepted")];
const UPDATED: &[(&str, &str)] = &[("200", "OK"), ("201", "Created")];
const DELETED: &[(&str, &str)] = &[("200", "OK"), ("202", "Accepted")];
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const PATCH_MODEL: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const JSON_TYPES: [&str; 2] = ["application/json", "application/yaml"];
const ALL_TYPES: [&str; 3] = [
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];

/// Writes the operations of one document.
pub struct Paths {
    pub document: Document,
    pub custom: bool,
}

impl Paths {
    /// All paths of a resource, with their operations.
    pub fn of(&self, r: &Resource) -> Vec<(String, Value)> {
        let root = if r.group.is_empty() {
            format!("/api/{}", r.version)
        } else {
            format!("/apis/{}/{}", r.group, r.version)
        };
        let gvk = GroupVersionKind::new(r.group, r.version, r.kind);
        let scope = if r.namespaced { "/namespaces/{namespace}" } else { "" };
        let within = if r.namespaced { "Namespaced" } else { "" };
        let has = |verb: &str| r.verbs.iter().any(|v| v == verb);
        let mut paths = Vec::new();
        let mut collection = Map::new();
        for (verb, method, op) in self.collection_operations(r, &gvk) {
            if has(verb) {
                let id = format!("{}{}{within}{}", op.id_verb, camel(r.group, r.version), r.kind);
                collection.insert(method, self.operation(&op, &id, r));
            }
        }
        if !collection.is_empty() {
            self.path_parameters(&mut collection, r.namespaced, false);
            paths.push((format!("{root}{scope}/{}", r.plural), collection.into()));
        }
        if r.namespaced && has("list") {
            let (_, _, op) = self.list_operation(r, &gvk);
            let id = format!("list{}{}ForAllNamespaces", camel(r.group, r.version), r.kind);
            let all = Map::from_iter([("get", self.operation(&op, &id, r))]);
            paths.push((format!("{root}/{}", r.plural), all.into()));
        }
        let mut item = Map::new();
        for (verb, method, op) in self.item_operations(r.kind, &r.model, &gvk) {
            if has(verb) {
                let id = format!("{}{}{within}{}", op.id_verb, camel(r.group, r.version), r.kind);
                item.insert(method, self.operation(&op, &id, r));
            }
        }
        if !item.is_empty() {
            self.path_parameters(&mut item, r.namespaced, true);
            paths.push((format!("{root}{scope}/{}/{{name}}", r.plural), item.into()));
        }
        for sub in &r.subresources {
            let mut ops = Map::new();
            let words = format!("{} of the specified {}", sub.name, r.kind);
            let mut candidates = self.item_operations(&words, &sub.model, &sub.gvk);
            candidates.push(("create", "post", create(&words, &sub.model, &sub.gvk)));
            for (verb, method, op) in candidates {
                if sub.verbs.iter().any(|v| v == verb) {
                    let id = format!(
                        "{}{}{within}{}{}",
                        op.id_verb,
                        camel(r.group, r.version),
                        r.kind,
                        title(&sub.name)
                    );
                    ops.insert(method, self.operation(&op, &id, r));
                }
            }
            if !ops.is_empty() {
                self.path_parameters(&mut ops, r.namespaced, true);
                paths.push((format!("{root}{scope}/{}/{{name}}/{}", r.plural, sub.name), ops.into()));
            }
        }
        paths
    }

    fn list_operation<'a>(
        &self,
        r: &'a Resource,
        gvk: &'a GroupVersionKind,
    ) -> (&'static str, &'static str, Operation<'a>) {
        let words = format!("list or watch objects of kind {}", r.kind);
        let op = Operation {
            action: "list",
            id_verb: "list",
            words,
            gvk,
            parameters: LIST,
            body: None,
            answer: &r.list_model,
            codes: OK,
        };
        ("list", "get", op)
    }

    fn collection_operations<'a>(
        &self,
        r: &'a Resource,
        gvk: &'a GroupVersionKind,
    ) -> Vec<(&'static str, &'static str, Operation<'a>)> {
        let delete = Operation {
            action: "deletecollection",
            id_verb: "deleteCollection",
            words: format!("delete collection of {}", r.kind),
            gvk,
            parameters: LIST,
            body: Some(DELETE_OPTIONS),
            answer: STATUS,
            codes: OK,
        };
        vec![
            self.list_operation(r, gvk),
            ("create", "post", create(&format!("a {}", r.kind), &r.model, gvk)),
            ("deletecollection", "delete", delete),
        ]
    }

    fn item_operations<'a>(
        &self,
        what: &str,
        model: &'a str,
        gvk: &'a GroupVersionKind,
    ) -> Vec<(&'static str, &'static str, Operation<'a>)> {
        let op = |action, id_verb, words: String, parameters, body, answer, codes| Operation {
            action,
            id_verb,
            words,
            gvk,
            parameters,
            body,
            answer,
            codes,
        };
        vec![
            (
                "get",
                "get",
                op(
                    "get",
                    "read",
                    format!("read the specified {what}"),
                    &[][..],
                    None,
                    model,
                    OK,
                ),
            ),
            (
                "update",
                "put",
                op(
                    "put",
                    "replace",
                    format!("replace the specified {what}"),
                    WRITE,
                    Some(model),
                    model,
                    UPDATED,
                ),
            ),
            (
                "patch",
                "patch",
                op(
                    "patch",
                    "patch",
                    format!("partially update the specified {what}"),
                    PATCH,
                    Some(PATCH_MODEL),
                    model,
                    UPDATED,
                ),
            ),
            (
                "delete",
                "delete",
                op(
                    "delete",
                    "delete",
                    format!("delete a {what}"),
                    DELETE,
                    Some(DELETE_OPTIONS),
                    STATUS,
                    DELETED,
                ),
            ),
        ]
    }

    fn operation(&self, op: &Operation, id: &str, r: &Resource) -> Value {
        let mut m = value!({
            "description": op.words.as_str(),
            "operationId": id,
            "tags": [tag(r.group, r.version)],
            "x-kubernetes-action": op.action,
            "x-kubernetes-group-version-kind": {
                "group": op.gvk.group.as_str(), "kind": op.gvk.kind.as_str(), "version": op.gvk.version.as_str(),
            },
        });
        let types: &[&str] = if self.custom { &JSON_TYPES } else { &ALL_TYPES };
        let mut parameters: Vec<Value> = op
            .parameters
            .iter()
            .map(|(name, ty, text)| self.parameter(name, ty, text, "query", false))
            .collect();
        let mut responses = Map::new();
        for (code, text) in op.codes {
            responses.insert(*code, self.response(text, op.answer, types));
        }
        responses.insert("401", value!({"description": "Unauthorized"}));
        match self.document {
            Document::V2 => {
                if let Some(body) = op.body {
                    parameters.push(value!({
                        "in": "body", "name": "body", "required": op.action != "delete" && op.action != "deletecollection",
                        "schema": {"$ref": self.reference(body)},
                    }));
                }
                let consumes: Vec<Value> = if op.action == "patch" {
                    patch_types(self.custom).into_iter().map(Value::from).collect()
                } else {
                    vec!["*/*".into()]
                };
                m.set_at(&["consumes"], consumes);
                m.set_at(
                    &["produces"],
                    types.iter().copied().map(Value::from).collect::<Vec<_>>(),
                );
                m.set_at(&["schemes"], vec![Value::from("https")]);
            }
            Document::V3 => {
                if let Some(body) = op.body {
                    let types: Vec<&str> = if op.action == "patch" {
                        patch_types(self.custom)
                    } else {
                        vec!["*/*"]
                    };
                    let content: Map = types
                        .into_iter()
                        .map(|t| (t, value!({"schema": {"$ref": self.reference(body)}})))
                        .collect();
                    m.set_at(&["requestBody", "content"], content);
                }
            }
        }
        if !parameters.is_empty() {
            m.set_at(&["parameters"], parameters);
        }
        m.set_at(&["responses"], responses);
        m
    }

    fn response(&self, text: &str, model: &str, types: &[&str]) -> Value {
        let mut r = value!({ "description": text });
        let schema = value!({"$ref": self.reference(model)});
        match self.document {
            Document::V2 => r.set_at(&["schema"], schema),
            Document::V3 => {
                let content: Map = types
                    .iter()
                    .map(|t| (*t, value!({"schema": {"$ref": self.reference(model)}})))
                    .collect();
                r.set_at(&["content"], content);
            }
        }
        r
    }

    fn parameter(&self, name: &str, ty: &str, text: &str, place: &str, required: bool) -> Value {
        let mut p = value!({"name": name, "in": place, "description": text});
        if required {
            p.set_at(&["required"], true);
        }
        let typed: &[&str] = if self.document == Document::V3 {
            &["schema", "type"]
        } else {
            &["type"]
        };
        p.set_at(typed, ty);
        let unique: &[&str] = if self.document == Document::V3 {
            &["schema", "uniqueItems"]
        } else {
            &["uniqueItems"]
        };
        p.set_at(unique, true);
        p
    }

    fn path_parameters(&self, item: &mut Map, namespaced: bool, named: bool) {
        let mut list = Vec::new();
        if named {
            list.push(self.parameter("name", "string", "The object's name.", "path", true));
        }
        if namespaced {
            list.push(self.parameter("namespace", "string", "The object's namespace.", "path", true));
        }
        list.push(self.parameter("pretty", "string", "Write the answer for people.", "query", false));
        item.insert("parameters", list);
    }

    fn reference(&self, name: &str) -> String {
        match self.document {
            Document::V2 => format!("#/definitions/{name}"),
            Document::V3 => format!("#/components/schemas/{name}"),
        }
    }
}

fn create<'a>(what: &str, model: &'a str, gvk: &'a GroupVersionKind) -> Operation<'a> {
    Operation {
        action: "post",
        id_verb: "create",
        words: format!("create {what}"),
        gvk,
        parameters: WRITE,
        body: Some(model),
        answer: model,
        codes: CREATED,
    }
}

fn patch_types(custom: bool) -> Vec<&'static str> {
    let mut types = vec![
        "application/apply-patch+yaml",
        "application/json-patch+json",
        "application/merge-patch+json",
    ];
    if !custom {
        types.push("application/strategic-merge-patch+json");
    }
    types
}

fn title(word: &str) -> String {
    let mut chars = word.chars();
    chars
        .next()
        .map(|c| c.to_ascii_uppercase().to_string() + chars.as_str())
        .unwrap_or_default()
}

/// `AppsV1`, `RbacAuthorizationV1`, `CoreV1`
fn camel(group: &str, version: &str) -> String {
    let group = if group.is_empty() {
        "core"
    } else {
        group.trim_end_matches(".k8s.io")
    };
    let words: String = group.split(['.', '-']).map(title).collect();
    words + &title(version)
}

/// `apps_v1`, `rbacAuthorization_v1`
fn tag(group: &str, version: &str) -> String {
    let mut name = camel(group, "");
    if let Some(first) = name.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    format!("{name}_{version}")
}
