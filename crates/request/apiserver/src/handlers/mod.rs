//! The end of the chain for resources: one file a verb, none a kind.
//!
//! A handler reads what HTTP says (options, body, content types), lets the registry do the work, and writes the answer.
//! What is particular to a kind stands in the registry; what is no stored object (reviews, scales, bindings) in `sub`.

mod body;
mod create;
mod delete;
mod get;
mod list;
mod listing;
pub mod negotiate;
pub mod past;
mod patch;
pub mod place;
pub mod respond;
mod sub;
mod table;
mod update;
mod watch;

use crate::request::{MAX_REQUEST_BODY, Request, RequestContext, Response};
use crate::state::ServerState;
use crate::traces;
use bytes::Bytes;
use http::{Extensions, HeaderMap, header};
use keelson_api::{ApiError, ApiResult, Reason, Str};
use keelson_registry::engine::ListError;
use keelson_registry::options::WriteOptions;
use keelson_registry::{Cx, FieldValidation, ResourceDef};
use keelson_trace::within;
use negotiate::{Offers, Output};
use std::sync::Arc;

/// A failed request, with what a list adds to its status.
pub struct Failure {
    error: ApiError,
    continue_token: Option<String>,
}
impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Failure {
            error,
            continue_token: None,
        }
    }
}
impl From<ListError> for Failure {
    fn from(e: ListError) -> Self {
        Failure {
            error: e.error,
            continue_token: e.continue_token,
        }
    }
}
type Served = Result<Response, Failure>;

/// One request to a resource, with what was found out about it.
pub struct Call<'a> {
    pub state: &'a ServerState,
    pub context: &'a RequestContext,
    pub def: Arc<ResourceDef>,
    /// How to answer.
    pub out: Output,
    pub headers: HeaderMap,
    /// What the server put on the request's head: its connection, for who takes that over.
    pub extensions: Extensions,
    /// Of writes.
    pub body: Bytes,
}

/// Serves a request for a resource that was authenticated and authorised.
pub async fn serve(state: &ServerState, context: RequestContext, request: Request) -> Response {
    let info = &context.info;
    let def = match place::find(state, info, request.method()) {
        Ok(def) => def,
        Err(nowhere) => return nowhere.answer(request.headers(), &context),
    };
    if let Some(text) = &def.deprecation {
        context.warnings.add(text.as_str());
    }
    let watching = info.verb == "watch";
    // Reviews and what acts on an object have no table.
    let tables = match info.subresource.as_str() {
        "" => def.storage.is_some() || def.is("", "componentstatuses"),
        name => matches!(name, "status" | "scale"),
    };
    let offers = Offers {
        no_protobuf: def.custom,
        shapes: true,
        tables,
        watch: watching,
    };
    let out = match negotiate::output(negotiate::accept(request.headers()).as_deref(), &context, offers) {
        Ok(out) => out,
        Err(e) => return respond::error(&e, None, None),
    };
    let (parts, body) = request.into_parts();
    let reads_body = !matches!(info.verb.as_str(), "get" | "list" | "watch");
    let body = if reads_body {
        body.collect(MAX_REQUEST_BODY).await
    } else {
        Ok(Bytes::new())
    };
    let body = match body {
        Ok(bytes) => bytes,
        Err(e) => return respond::error(&e, Some(out), None),
    };
    let call = Call {
        state,
        context: &context,
        def,
        out,
        headers: parts.headers,
        extensions: parts.extensions,
        body,
    };
    let span = traces::handler(&context.info.verb);
    match within(&span, route(call)).await {
        Ok(response) => response,
        Err(f) => respond::error(&f.error, Some(out), f.continue_token.as_deref()),
    }
}

async fn route(call: Call<'_>) -> Served {
    let info = &call.context.info;
    let def = &call.def;
    if !info.subresource.is_empty() {
        return sub::serve(call).await;
    }
    if def.storage.is_none() {
        return sub::virtual_resource(call).await;
    }
    match info.verb.as_str() {
        "get" => get::serve(call).await,
        "list" => list::serve(call).await,
        "watch" => watch::serve(call).await,
        "create" => create::serve(call).await,
        "update" => update::serve(call).await,
        "patch" => patch::serve(call).await,
        "delete" => delete::one(call).await,
        "deletecollection" => delete::collection(call).await,
        _ => Err(method_not_allowed(&call).into()),
    }
}

/// A row of the table says more than there is code for.
fn method_not_allowed(call: &Call) -> ApiError {
    let gr = call.def.gvr.group_resource();
    let mut e = ApiError::new(
        Reason::MethodNotAllowed,
        "the server does not allow this method on the requested resource",
    );
    e.details = Some(Box::new(keelson_api::status::Details {
        group: gr.group,
        kind: gr.resource,
        ..Default::default()
    }));
    e
}

impl Call<'_> {
    /// The registry's view of the request.
    pub fn cx(&self) -> Cx {
        let info = &self.context.info;
        let namespace = if self.def.namespaced {
            info.namespace.as_str()
        } else {
            ""
        };
        let cx = Cx::new(self.def.clone(), self.context.user.clone(), namespace, &info.name);
        cx.with_subresource(&info.subresource).with_verb(&info.verb)
    }
    pub fn query(&self) -> Vec<(Str, Str)> {
        self.context
            .info
            .query
            .iter()
            .map(|(k, v)| (k.into(), v.into()))
            .collect()
    }
    pub fn include_object(&self) -> &str {
        self.context.info.query.get("includeObject").unwrap_or_default()
    }
    pub fn content_type(&self) -> Option<String> {
        self.headers
            .get(header::CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .map(String::from)
    }
    /// Takes over the options that all writes share.
    pub fn write_options(&self, cx: &mut Cx, kind: &str, apply: bool) -> ApiResult<WriteOptions> {
        let options = WriteOptions::from_query(&self.query(), kind, apply)?;
        cx.dry_run = options.is_dry_run();
        cx.field_validation = FieldValidation::parse(&options.field_validation);
        cx.field_manager = match options.field_manager.as_str() {
            // What the server does itself it says nothing of.
            "" if self.context.user_agent.is_empty()
                && self.context.user.name == keelson_registry::UserInfo::api_server().name =>
            {
                "kube-apiserver".into()
            }
            "" => manager_of(&self.context.user_agent),
            m => m.into(),
        };
        cx.options = options.to_value(kind);
        Ok(options)
    }
    /// Hands warnings and audit annotations on to the chain.
    pub fn gathered(&self, cx: &Cx) {
        self.context.seat.has_waited(cx.take_waited());
        for w in cx.take_warnings() {
            self.context.warnings.add(w);
        }
        for (k, v) in cx.take_annotations() {
            self.context.audit.add(&k, v);
        }
    }
}

/// A manager's name from the user agent: what stands before the first slash, at most 128 bytes.
fn manager_of(user_agent: &str) -> Str {
    let mut name = Str::default();
    for c in user_agent
        .split('/')
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|c| !c.is_control())
    {
        if name.len() + c.len_utf8() > 128 {
            break;
        }
        name.push(c);
    }
    name
}
