//! DELETE of one object and of a collection.

use super::negotiate::Output;
use super::{Call, Served, listing, negotiate, respond};
use crate::authz::Attributes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use http::StatusCode;
use keelson_api::codec::{DecodeError, Format, Strictness, decode_text, proto};
use keelson_api::{ApiError, ApiResult, Object, Reason, builtin, value};
use keelson_cache::Entry;
use keelson_registry::codec::no_kind;
use keelson_registry::engine::Engine;
use keelson_registry::options::{DeleteOptions, ListOptions};
use keelson_registry::{Admission, Cx};

/// So many deletions of a collection run at the same time.
const WORKERS: usize = 16;

pub async fn one(call: Call<'_>) -> Served {
    let mut cx = call.cx();
    let options = options(&call)?;
    cx.dry_run = options.is_dry_run();
    cx.options = options.to_value();
    if options.ignore_read_error {
        return unreadable(&call, &cx).await;
    }
    let result = call
        .state
        .engine
        .delete(&cx, call.state.admission.as_ref(), &options)
        .await;
    call.gathered(&cx);
    let deleted = result?;
    let code = if !deleted.gone && options.orphan_dependents == Some(false) {
        StatusCode::ACCEPTED
    } else {
        StatusCode::OK
    };
    if deleted.show_object {
        return Ok(respond::object(
            code,
            call.out,
            &call.def,
            &call.def.schema,
            deleted.object,
            call.include_object(),
        )?);
    }
    let status = success(&cx, &deleted.object);
    Ok(respond::built_in(
        code,
        Output {
            shape: negotiate::Shape::Object,
            ..call.out
        },
        status,
    )?)
}

/// Removes an object that can't be read, for whoever may do that.
async fn unreadable(call: &Call<'_>, cx: &Cx) -> Served {
    const VERB: &str = "unsafe-delete-ignore-read-errors";
    let audit = &call.context.audit;
    audit.add("apiserver.k8s.io/unsafe-delete-ignore-read-error", "");
    let info = &call.context.info;
    if !info.subresource.is_empty() {
        let why = "ignoreStoreReadErrorWithClusterBreakingPotential delete option is not allowed on a subresource or non-resource request";
        return Err(cx.forbidden(&cx.name, why).into());
    }
    let attributes = Attributes {
        verb: VERB.into(),
        ..Attributes::of(&call.context.user, info)
    };
    let decision = call.state.authorizer.authorize(&attributes).await;
    if !decision.is_allowed() {
        let why = format!("not permitted to do {VERB:?}, reason: {}", decision.reason());
        return Err(cx.forbidden(&cx.name, why).into());
    }
    call.state.engine.delete_unreadable(cx).await?;
    let mut status = Object::new();
    status.set_gvk("v1", "Status");
    let details = value!({"name": cx.name.as_str(), "kind": cx.def.kind.as_str()});
    status.insert("metadata", keelson_api::Map::new());
    status.insert("status", "Success");
    status.insert("details", details);
    status.insert("code", 200);
    let shape = negotiate::Shape::Object;
    Ok(respond::built_in(StatusCode::OK, Output { shape, ..call.out }, status)?)
}

/// The Status that says what was deleted: enough to tell it from an object of the same name that comes after.
fn success(cx: &Cx, object: &Object) -> Object {
    let mut status = Object::new();
    status.set_gvk("v1", "Status");
    let mut details = value!({"name": object.name(), "kind": cx.def.gvr.resource.as_str(), "uid": object.uid()});
    if !cx.def.gvr.group.is_empty() {
        details.set_at(&["group"], cx.def.gvr.group.clone());
    }
    status.insert("details", details);
    status.insert("metadata", keelson_api::Map::new());
    status.insert("status", "Success");
    status
}

/// Options come in the body, or in the query when there is none.
pub fn options(call: &Call<'_>) -> ApiResult<DeleteOptions> {
    let content_type = call.content_type();
    let bytes = call.body.clone();
    if bytes.is_empty() {
        return DeleteOptions::from_query(&call.query());
    }
    let schema = builtin::builtin_kind_at("v1", "DeleteOptions")
        .ok_or_else(|| ApiError::internal("no schema of DeleteOptions"))?;
    let object = match negotiate::input(content_type.as_deref(), false)? {
        Format::Protobuf => {
            let envelope = proto::open(&bytes).map_err(|e| ApiError::bad_request(e.to_string()))?;
            envelope
                .decode(&schema)
                .map_err(|e| ApiError::bad_request(e.to_string()))?
        }
        format => {
            let decoded = decode_text(&bytes, format, Some(&schema), Strictness::Lenient)
                .map_err(|e| ApiError::bad_request(unreadable_options(&bytes, format, &e)))?;
            Object::try_from(decoded.value).map_err(|_| ApiError::bad_request("DeleteOptions must be an object"))?
        }
    };
    if !matches!(object.kind(), "" | "DeleteOptions") {
        let version = match object.api_version() {
            "" => "v1",
            said => said,
        };
        return Err(ApiError::bad_request(
            match builtin::builtin_kind_at(version, object.kind()) {
                None => no_kind(version, object.kind()),
                Some(_) => "decoded object cannot be converted to DeleteOptions".into(),
            },
        ));
    }
    DeleteOptions::from_object(&object)
}

/// Why options can't be read: their kind is read first.
fn unreadable_options(bytes: &[u8], format: Format, why: &DecodeError) -> String {
    match decode_text(bytes, format, None, Strictness::Lenient) {
        Err(why) => format!("couldn't get version/kind; json parse error: {why}"),
        Ok(_) => why.to_string(),
    }
}

/// One object of a collection; one that is gone already is none to worry about.
async fn delete_entry(
    engine: &Engine,
    cx: &Cx,
    admission: &dyn Admission,
    entry: &Entry,
    options: &DeleteOptions,
) -> ApiResult<()> {
    let mut one = cx.derive(cx.def.clone(), entry.namespace(), entry.name());
    one.options = cx.options.clone();
    let result = engine.delete(&one, admission, options).await;
    cx.absorb(&one);
    match result {
        Err(e) if e.is(Reason::NotFound) => Ok(()),
        other => other.map(drop),
    }
}

pub async fn collection(call: Call<'_>) -> Served {
    let mut list = ListOptions::from_query(&call.query())?;
    // Upstream lists page by page, and so what there was at just this revision.
    if list.resource_version_match.is_empty() && !matches!(list.resource_version.as_str(), "" | "0") {
        list.resource_version_match = "Exact".into();
    }
    let options = options(&call)?;
    options.check_collection()?;
    let mut cx = call.cx();
    let engine = &call.state.engine;
    let page = engine.list(&cx, &list).await?;
    listing::readable(&call.def, &page)?;
    cx.dry_run = options.is_dry_run();
    cx.options = options.to_value();
    let admission = call.state.admission.as_ref();
    let work: Vec<BoxFuture<ApiResult<()>>> = page
        .entries
        .iter()
        .map(|entry| delete_entry(engine, &cx, admission, entry, &options).boxed())
        .collect();
    let mut running = futures::stream::iter(work).buffer_unordered(WORKERS);
    let mut failed = None;
    while let Some(result) = running.next().await {
        if let Err(e) = result {
            failed.get_or_insert(e);
        }
    }
    drop(running);
    call.gathered(&cx);
    if let Some(e) = failed {
        return Err(e.into());
    }
    let cache = engine.cache_of(&call.def)?;
    Ok(listing::list(engine, cache, call.out, &call.def, page, call.include_object()).await?)
}
