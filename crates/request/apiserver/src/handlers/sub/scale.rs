//! `/scale`: one number of a resource, seen as an `autoscaling/v1 Scale`.

use super::{own_answer, own_body};
use crate::handlers::patch::Kind;
use crate::handlers::{Call, Served, method_not_allowed};
use async_trait::async_trait;
use http::StatusCode;
use keelson_api::{ApiError, ApiResult, Cause, GroupVersionKind, Object, SchemaRef, Str, Value, builtin};
use keelson_machinery::apply::{Path, scale as ownership};
use keelson_machinery::selector::LabelSelector;
use keelson_registry::apply::Apply;
use keelson_registry::codec::complete;
use keelson_registry::def::ScalePaths;
use keelson_registry::engine::{Engine, UpdateSource};
use keelson_registry::managed::{self, Target};
use keelson_registry::patch::Patch;
use keelson_registry::{Admission, AdmitAll, Cx, Operation};
use std::sync::Arc;

const VERSION: &str = "autoscaling/v1";

pub async fn serve(call: Call<'_>) -> Served {
    let mut cx = call.cx();
    let paths = paths(&cx)?;
    let kind = GroupVersionKind::new("autoscaling", "v1", "Scale");
    let schema = builtin::builtin_kind(&kind).ok_or_else(|| ApiError::internal("no schema of Scale"))?;
    let engine = &call.state.engine;
    let how = match call.context.info.verb.as_str() {
        "get" => {
            let rv = call.context.info.query.get("resourceVersion").unwrap_or_default();
            let parent = engine.get(&cx, rv).await?;
            let scale = of(&cx, &paths, &parent)?;
            return own_answer(&call, StatusCode::OK, scale, &schema);
        }
        "update" => {
            call.write_options(&mut cx, "UpdateOptions", false)?;
            How::Replace(own_body(&call, &cx, &kind)?.0)
        }
        "patch" => {
            let patch = Kind::of(call.content_type().as_deref(), call.def.custom)?;
            let bytes = call.body.clone();
            let options = call.write_options(&mut cx, "PatchOptions", patch == Kind::Apply)?;
            match patch {
                Kind::Plain(kind) => How::Patch(Patch::parse(&cx, kind, &bytes)?),
                Kind::Apply => How::Apply(Apply::parse(&cx, &bytes, options.force.unwrap_or(false))?),
            }
        }
        _ => return Err(method_not_allowed(&call).into()),
    };
    let source = Source {
        how,
        paths,
        schema: schema.clone(),
        admission: call.state.admission.clone(),
    };
    // Admission has seen the Scale; it isn't asked again about the resource.
    let result = engine.update(&cx, &AdmitAll, &source, false).await;
    call.gathered(&cx);
    let (parent, _) = result?;
    let scale = of(&cx, &source.paths, &parent)?;
    own_answer(&call, StatusCode::OK, scale, &schema)
}

fn paths(cx: &Cx) -> ApiResult<ScalePaths> {
    cx.def
        .subresource("scale")
        .and_then(|s| s.scale.clone())
        .ok_or_else(|| ApiError::internal("the resource has no scale"))
}

fn at<'a>(o: &'a Object, path: &[Str]) -> Option<&'a Value> {
    let keys: Vec<&str> = path.iter().map(Str::as_str).collect();
    o.at(&keys)
}

/// The Scale of a resource.
fn of(cx: &Cx, paths: &ScalePaths, parent: &Object) -> ApiResult<Object> {
    let mut scale = Object::new();
    scale.set_gvk(VERSION, "Scale");
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(v) = parent.meta().and_then(|m| m.get(key)) {
            scale.meta_mut().insert(key, v.clone());
        }
    }
    let number = |path: &[Str]| at(parent, path).and_then(Value::as_i64);
    scale.insert("spec", keelson_api::Map::new());
    match number(&paths.spec_replicas) {
        Some(n) if n != 0 => scale.set_at(&["spec", "replicas"], n),
        Some(_) => {}
        None if cx.def.custom => {
            return Err(ApiError::internal(format!(
                "the spec replicas field {:?} does not exist",
                format!(".{}", paths.spec_replicas.join("."))
            )));
        }
        None => {}
    }
    scale.set_at(&["status", "replicas"], number(&paths.status_replicas).unwrap_or(0));
    let selector = match &paths.selector {
        Some(path) => at(parent, path)
            .and_then(Value::as_str)
            .map(String::from)
            .unwrap_or_default(),
        None if cx.def.custom => String::new(),
        None => selector_text(parent.at(&["spec", "selector"]))?,
    };
    if !selector.is_empty() {
        scale.set_at(&["status", "selector"], selector);
    }
    Ok(scale)
}

/// A selector as text; a ReplicationController's is a plain map.
fn selector_text(selector: Option<&Value>) -> ApiResult<String> {
    let plain = selector
        .and_then(Value::as_object)
        .filter(|m| !m.contains_key("matchLabels") && !m.contains_key("matchExpressions"));
    let parsed = match plain {
        Some(map) => LabelSelector::from_map(Some(map)),
        None => LabelSelector::from_object(selector).map_err(ApiError::bad_request)?,
    };
    Ok(parsed.to_string())
}

enum How {
    Replace(Object),
    Patch(Patch),
    Apply(Apply),
}

struct Source {
    how: How,
    paths: ScalePaths,
    schema: SchemaRef,
    admission: Arc<dyn Admission>,
}

impl Source {
    /// Where replicas stand in the versions that managed fields may name.
    fn replicas_path(&self, cx: &Cx, api_version: &str) -> Option<Option<Path>> {
        let known = api_version == cx.def.api_version()
            || keelson_api::GroupVersion::parse(api_version).group == cx.def.gvr.group;
        let path: Vec<&str> = self.paths.spec_replicas.iter().map(Str::as_str).collect();
        known.then(|| Some(Path::fields(&path)))
    }
    fn changed(&self, engine: &Engine, cx: &Cx, old: &Object) -> ApiResult<Object> {
        let target = Target {
            schema: &self.schema,
            api_version: VERSION,
            kind: "Scale",
        };
        let mut new = match &self.how {
            How::Replace(o) => o.clone(),
            How::Patch(p) => p.apply_as(cx, &self.schema, None, old)?,
            How::Apply(a) => {
                let merged = managed::apply_as(cx, &target, Some(old), a.config(), a.force(), engine.now())?;
                return complete(&self.schema, None, merged)
                    .map(|(o, _)| o)
                    .map_err(ApiError::bad_request);
            }
        };
        managed::update_as(cx, &target, Some(old), &mut new, engine.now());
        Ok(new)
    }
}

#[async_trait]
impl UpdateSource for Source {
    fn uid(&self) -> Option<&str> {
        match &self.how {
            How::Replace(o) => Some(o.uid()).filter(|u| !u.is_empty()),
            _ => None,
        }
    }
    async fn updated(&self, engine: &Engine, cx: &Cx, existing: Option<&Object>) -> ApiResult<Object> {
        let parent = existing.ok_or_else(|| cx.not_found(&cx.name))?;
        let mut old = of(cx, &self.paths, parent)?;
        let entries = parent.meta().and_then(|m| m.get("managedFields"));
        let path = |v: &str| self.replicas_path(cx, v);
        if let Some(list) = ownership::to_scale(entries, &path).map_err(ApiError::internal)? {
            old.meta_mut().insert("managedFields", list);
        }
        let mut new = self.changed(engine, cx, &old)?;
        if !new.name().is_empty() && new.name() != cx.name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({})",
                new.name(),
                cx.name
            )));
        }
        self.admission
            .mutate(cx, Operation::Update, Some(&mut new), Some(&old))
            .await?;
        let replicas = new.at(&["spec", "replicas"]).and_then(Value::as_i64).unwrap_or(0);
        if replicas < 0 {
            let cause = Cause::invalid("spec.replicas", &replicas.into(), "must be greater than or equal to 0");
            return Err(ApiError::invalid("autoscaling", "Scale", new.name(), vec![cause]));
        }
        self.admission
            .validate(cx, Operation::Update, Some(&new), Some(&old))
            .await?;
        let mut out = parent.clone();
        let keys: Vec<&str> = self.paths.spec_replicas.iter().map(Str::as_str).collect();
        out.set_at(&keys, replicas);
        let asked = new.resource_version();
        out.set_meta(
            "resourceVersion",
            if asked.is_empty() {
                parent.resource_version()
            } else {
                asked
            },
        );
        let after = new.meta().and_then(|m| m.get("managedFields"));
        match ownership::to_parent(entries, after, &cx.def.api_version(), &path).map_err(ApiError::internal)? {
            Some(list) => {
                out.meta_mut().insert("managedFields", list);
            }
            None => {
                out.meta_mut().remove("managedFields");
            }
        }
        Ok(out)
    }
}
