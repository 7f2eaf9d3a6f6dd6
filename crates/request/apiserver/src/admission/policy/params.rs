//! Parameters: objects of any kind that a binding hands to its policy.

use crate::admission::Review;
use keelson_api::{Map, Object, Reason, Str, Value};
use keelson_machinery::selector::LabelSelector;
use keelson_registry::options::ListOptions;
use keelson_registry::{Cx, ResourceDef, UserInfo};
use std::sync::Arc;

/// `paramKind`.
#[derive(Clone, Debug)]
pub struct ParamKind {
    group: Str,
    version: Str,
    kind: Str,
}

impl ParamKind {
    pub fn parse(m: &Map) -> ParamKind {
        let api_version = m.str("apiVersion").unwrap_or_default();
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        ParamKind {
            group: group.into(),
            version: version.into(),
            kind: m.str("kind").unwrap_or_default().into(),
        }
    }
    /// The resource of that kind; the error is the policy's.
    pub fn resolve(&self, review: &Review<'_>) -> Result<Arc<ResourceDef>, String> {
        let table = review.lookup.engine().table.snapshot();
        table
            .by_kind(&self.group, &self.version, &self.kind)
            .cloned()
            .ok_or_else(|| {
                let separator = if self.group.is_empty() { "" } else { "/" };
                let (group, version, kind) = (&self.group, &self.version, &self.kind);
                format!("failed to find resource referenced by paramKind: '{group}{separator}{version}, Kind={kind}'")
            })
    }
}

/// `paramRef`.
#[derive(Clone, Debug)]
pub struct ParamRef {
    name: Str,
    namespace: Str,
    selector: Option<Result<LabelSelector, String>>,
    deny_if_missing: bool,
}

impl ParamRef {
    pub fn parse(m: &Map) -> ParamRef {
        ParamRef {
            name: m.str("name").unwrap_or_default().into(),
            namespace: m.str("namespace").unwrap_or_default().into(),
            selector: m
                .get("selector")
                .filter(|s| !s.is_null())
                .map(|s: &Value| LabelSelector::from_object(Some(s))),
            deny_if_missing: m.str("parameterNotFoundAction") == Some("Deny"),
        }
    }

    /// The parameters for a request in a namespace; the error is the binding's.
    async fn find(&self, review: &Review<'_>, def: &Arc<ResourceDef>, namespace: &str) -> Result<Vec<Object>, String> {
        let namespace = match (def.namespaced, self.namespace.as_str()) {
            (false, "") => "",
            (false, _) => {
                return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into());
            }
            (true, "") if namespace.is_empty() => {
                return Err(
                    "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into(),
                );
            }
            (true, "") => namespace,
            (true, given) => given,
        };
        let engine = review.lookup.engine();
        let user = Arc::new(UserInfo::api_server());
        let found = match (&self.selector, self.name.as_str()) {
            (None, "") => return Err("one of name or selector must be provided".into()),
            (Some(_), name) if !name.is_empty() => {
                return Err("paramRef.name and paramRef.selector are mutually exclusive".into());
            }
            (None, name) => {
                let cx = Cx::new(def.clone(), user, namespace, name);
                let mut got = engine.get(&cx, "0").await;
                if got.as_ref().is_err_and(|e| e.is(Reason::NotFound)) {
                    got = engine.get(&cx, "").await;
                }
                match got {
                    Ok(o) => vec![o],
                    Err(e) if e.is(Reason::NotFound) => Vec::new(),
                    Err(e) => return Err(e.message),
                }
            }
            (Some(selector), _) => {
                let selector = selector.as_ref().map_err(String::clone)?;
                let cx = Cx::new(def.clone(), user, namespace, "");
                let mut all = engine
                    .list_objects(&cx, &ListOptions::default())
                    .await
                    .map_err(|e| e.message)?;
                all.retain(|o| selector.matches(o.labels()));
                all
            }
        };
        if found.is_empty() && self.deny_if_missing {
            return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
        }
        Ok(found)
    }
}

/// What the policy is evaluated with, once each: nothing, if it takes no parameters.
pub async fn collect(
    review: &Review<'_>,
    def: Option<&Arc<ResourceDef>>,
    reference: Option<&ParamRef>,
    namespace: &str,
) -> Result<Vec<Option<Object>>, String> {
    match (def, reference) {
        (Some(def), Some(r)) => Ok(r.find(review, def, namespace).await?.into_iter().map(Some).collect()),
        _ => Ok(vec![None]),
    }
}
