//! What objects were: reads below `/keelson/history`, where every resource's path stands once more.
//!
//! | path | |
//! |---|---|
//! | `…/NAME`            | the changes that are kept of an object, the newest last (`limit`) |
//! | `…/NAME?at=MOMENT`  | what it was; 404: it wasn't there |
//! | `…/pods/NAME/log`   | what the last pod of that name wrote last that is gone (`uid`, and what `pods/log` takes), while its node has it |
//! | `…?at=MOMENT`       | what the list was, in pages (`limit`, `continue`); also as a table; `unreadable` names what can't be read |
//!
//! Whoever may read a resource may read what it was: the chain has authorised `get` or `list` of it. Two may read less. What was in a namespace
//! before it was made (again) was perhaps others': that takes the same permission in all namespaces. A node may read what its pods need now,
//! which says nothing about what was.
//!
//! What the store's own past shows, and when it is given up, is as ever; nothing here is a `resourceVersion` that other requests may name.

use super::negotiate::{self, Offers, Output, Shape};
use super::{place, respond, table};
use crate::authz::Attributes;
use crate::connect;
use crate::encryption::ROOT;
use crate::nowhere::Nowhere;
use crate::request::{Request, RequestContext, Response};
use crate::state::ServerState;
use bytes::Bytes;
use http::{Method, StatusCode};
use keelson_api::{ApiError, ApiResult, Map, Object, Reason, Value, value};
use keelson_past::{At, Changes, Error, History, Who};
use keelson_registry::ResourceDef;
use keelson_store::{KeyValue, Revision};
use std::sync::Arc;

/// Objects of a page, and changes of an object, that are told at a time.
const PAGE: usize = 500;
/// Of what was stored, in an answer.
const BYTES: usize = 8 << 20;

/// What isn't kept, by what its keys begin with below the root: it changes every few seconds and says what its holder lives for, or is itself an
/// account of what happened. The last two are the servers' own.
pub const WITHOUT: [&str; 4] = ["/leases/", "/events/", "/masterleases/", "/ranges/"];

/// Who is about to write, if it is noted.
pub fn writer(server: &ServerState, context: &RequestContext) -> Option<Who> {
    let info = &context.info;
    let writes = info.is_resource_request && !info.is_read_only() && !info.past;
    let noted = writes && server.config.history.is_some();
    noted.then(|| Who {
        user: context.user.name.to_string(),
        agent: context.user_agent.to_string(),
        verb: match (context.applies, info.subresource.as_str()) {
            (true, "") => "apply".into(),
            (true, sub) => format!("apply {sub}"),
            (false, "") => info.verb.to_string(),
            (false, sub) => format!("{} {sub}", info.verb),
        },
    })
}

pub async fn serve(server: &ServerState, context: &RequestContext, request: Request) -> Response {
    let offers = Offers {
        no_protobuf: true,
        shapes: true,
        tables: true,
        watch: false,
    };
    let out = match negotiate::output(negotiate::accept(request.headers()).as_deref(), context, offers) {
        Ok(out) => out,
        Err(e) => return respond::error(&e, None, None),
    };
    if *request.method() != Method::GET || context.info.verb == "watch" {
        return Nowhere::method().answer(request.headers(), context);
    }
    let def = match place::find(server, &context.info, request.method()) {
        Ok(def) => def,
        Err(nowhere) => return nowhere.answer(request.headers(), context),
    };
    match answer(server, context, &def, out).await {
        Ok(response) => response,
        Err(e) => respond::error(&e, Some(out), None),
    }
}

async fn answer(
    server: &ServerState,
    context: &RequestContext,
    def: &Arc<ResourceDef>,
    out: Output,
) -> ApiResult<Response> {
    let info = &context.info;
    let history = server.config.history.as_ref().ok_or_else(|| {
        let text = "this server keeps no history (--history-age)";
        ApiError::new(Reason::NotFound, text)
    })?;
    if context.user.node_name().is_some() {
        return Err(ApiError::new(Reason::Forbidden, "nodes don't read what objects were"));
    }
    let is_log = def.is("", "pods") && info.subresource == "log";
    if !info.subresource.is_empty() && !is_log {
        return Err(ApiError::bad_request("subresources have no history of their own"));
    }
    if !info.field_selector.is_empty() || !info.label_selector.is_empty() {
        return Err(ApiError::bad_request("selectors don't select in what was"));
    }
    let storage = def
        .storage
        .as_ref()
        .ok_or_else(|| ApiError::bad_request("what isn't stored has no history"))?;
    let namespace = if def.namespaced { info.namespace.as_str() } else { "" };
    // A namespace's own past is as much others' as what was in it.
    let within = match def.is("", "namespaces") {
        true => info.namespace.as_str(),
        false => namespace,
    };
    let asked = Asked {
        server,
        history,
        def,
        floor: floor(server, context, within).await?,
    };
    let at = match info.query.get("at") {
        Some(text) => {
            let at = At::parse(text, keelson_clock::now()).map_err(refused)?;
            Some(asked.revision(at).await?)
        }
        None => None,
    };
    let key = match info.name.is_empty() {
        true => storage.key_prefix(namespace),
        false => storage.key(namespace, &info.name),
    };
    if !history.keeps(&asked.real(&key)?) {
        let text = format!("no history is kept of {}", def.gvr.resource);
        return Err(ApiError::bad_request(text));
    }
    match (info.name.is_empty(), at) {
        _ if is_log => asked.log(&key, context).await,
        (false, None) => asked.changes(&key, limit(context)?, out).await,
        (false, Some(at)) => {
            let kv = history.get(&asked.real(&key)?, at).await.map_err(refused)?;
            let kv = kv.ok_or_else(|| ApiError::not_found(&def.gvr.group, &def.gvr.resource, &info.name))?;
            let object = asked.object(kv).await?;
            respond::object(StatusCode::OK, out, def, &def.schema, object, include(context))
        }
        (true, Some(at)) => asked.list(&key, at, context, out).await,
        (true, None) => Err(ApiError::bad_request(
            "a list has no history of its own: say at which moment (at=10m)",
        )),
    }
}

fn include(context: &RequestContext) -> &str {
    context.info.query.get("includeObject").unwrap_or_default()
}

fn limit(context: &RequestContext) -> ApiResult<usize> {
    match context.info.query.int("limit") {
        None => Ok(PAGE),
        Some(Ok(limit)) if limit > 0 => Ok(usize::try_from(limit).unwrap_or(PAGE).min(PAGE)),
        Some(_) => Err(ApiError::bad_request("limit: it is a number above 0")),
    }
}

/// Before which revision this user may not look: what the namespace is since when it was made, unless he may do it in all namespaces.
async fn floor(server: &ServerState, context: &RequestContext, namespace: &str) -> ApiResult<Revision> {
    if namespace.is_empty() {
        return Ok(0);
    }
    let everywhere = Attributes {
        namespace: Default::default(),
        ..Attributes::of(&context.user, &context.info)
    };
    if server.authorizer.authorize(&everywhere).await.is_allowed() {
        return Ok(0);
    }
    let key = format!("{ROOT}/namespaces/{namespace}");
    let found = server.engine.store().get(key.as_bytes(), None).await;
    let found = found.map_err(|e| ApiError::new(Reason::ServiceUnavailable, e.to_string()))?;
    // There is none: whatever was in it was others'.
    Ok(found.kv.map_or(Revision::MAX, |kv| kv.create_revision))
}

struct Asked<'a> {
    server: &'a ServerState,
    history: &'a Arc<History>,
    def: &'a Arc<ResourceDef>,
    floor: Revision,
}

impl Asked<'_> {
    async fn revision(&self, at: At) -> ApiResult<Revision> {
        let at = self.history.revision(at).await.map_err(refused)?;
        if at < self.floor {
            let why =
                "the namespace was made later: what was in it before may be read by who may read in all namespaces";
            return Err(ApiError::new(Reason::Forbidden, why));
        }
        Ok(at)
    }

    /// The key as it is in the store below, whatever root this server's keys are seen under.
    fn real(&self, key: &str) -> ApiResult<Bytes> {
        let below = key.strip_prefix(ROOT).and_then(|below| below.strip_prefix('/'));
        let below = below.ok_or_else(|| ApiError::internal("a key outside of the root"))?;
        Ok(format!("{}{below}", self.history.prefix()).into())
    }

    async fn object(&self, kv: KeyValue) -> ApiResult<Object> {
        let kv = match &self.server.config.sealing {
            Some(sealing) => sealing.opened(kv).await.map_err(|e| refused(e.into()))?,
            None => kv,
        };
        Ok(self.server.engine.decode(self.def, &kv).await?.object)
    }

    async fn list(&self, prefix: &str, at: Revision, context: &RequestContext, out: Output) -> ApiResult<Response> {
        table::check_include(include(context))?;
        let real = self.real(prefix)?;
        let real = std::str::from_utf8(&real).map_err(ApiError::internal)?;
        let after = match context.info.query.get("continue").filter(|after| !after.is_empty()) {
            Some(after) if after.split('/').any(|part| matches!(part, "" | "." | "..")) => {
                return Err(ApiError::bad_request("continue: it is no name of this list"));
            }
            Some(after) => Some(Bytes::from(format!("{real}{after}"))),
            None => None,
        };
        let page = self
            .history
            .list(real, after, limit(context)?, at)
            .await
            .map_err(refused)?;
        let next = page.next.as_ref().and_then(|key| key.strip_prefix(real.as_bytes()));
        let next = next.map(|name| String::from_utf8_lossy(name).into_owned());
        let (mut objects, mut unreadable) = (Vec::with_capacity(page.kvs.len()), Vec::new());
        for kv in page.kvs {
            let name = String::from_utf8_lossy(kv.key.strip_prefix(real.as_bytes()).unwrap_or(&kv.key)).into_owned();
            match self.object(kv).await {
                Ok(object) => objects.push(object),
                // One that can't be read is no reason to show nothing; who asks is told, since what isn't in the list would seem not to have been.
                Err(e) => unreadable.push(Value::from(format!("{name}: {}", e.message))),
            }
        }
        let version = at.to_string();
        if out.shape == Shape::Table {
            let mut table = table::table(self.def, objects, out, include(context), &version, true)?;
            if let Some(next) = next {
                table.set_at(&["metadata", "continue"], next);
            }
            if !unreadable.is_empty() {
                table.set_at(&["unreadable"], unreadable);
            }
            return respond::text(StatusCode::OK, out, table);
        }
        let items: Vec<Value> = objects.into_iter().map(Value::from).collect();
        let mut list = Map::new();
        list.push("apiVersion", self.def.api_version());
        list.push("items", items);
        list.push("kind", self.def.list_kind.as_str());
        let mut metadata = Map::new();
        if let Some(next) = next {
            metadata.push("continue", next);
        }
        metadata.push("resourceVersion", version);
        list.push("metadata", metadata);
        if !unreadable.is_empty() {
            list.push("unreadable", unreadable);
        }
        respond::text(StatusCode::OK, out, list.into())
    }

    /// Of the newest pod that is gone, or of the one that is meant.
    async fn log(&self, key: &str, context: &RequestContext) -> ApiResult<Response> {
        let changes = self
            .history
            .changes(&self.real(key)?, PAGE, BYTES)
            .await
            .map_err(refused)?;
        let wanted = context.info.query.get("uid").unwrap_or_default();
        let deletions = changes.records.iter().rev();
        let mut found = None;
        for record in deletions.filter(|record| record.deleted && record.revision >= self.floor) {
            let Some(was) = record.was() else { continue };
            let pod = self.object(was).await?;
            if wanted.is_empty() || pod.uid() == wanted {
                found = Some(pod);
                break;
            }
        }
        let since = changes.since;
        // All that the pod was is a lot to hold while its node is waited for.
        drop(changes);
        if let Some(pod) = found {
            return connect::deleted_log(self.server, context, &pod).await;
        }
        let text = format!(
            "no pod {:?} was deleted, as far as is kept: since {}",
            context.info.name.as_str(),
            since
        );
        Err(ApiError::new(Reason::NotFound, text))
    }

    async fn changes(&self, key: &str, limit: usize, out: Output) -> ApiResult<Response> {
        let Changes {
            mut records,
            now,
            mut more,
            since,
        } = self
            .history
            .changes(&self.real(key)?, limit, BYTES)
            .await
            .map_err(refused)?;
        let hidden = records.iter().take_while(|record| record.revision < self.floor).count();
        records.drain(..hidden);
        more |= hidden > 0;
        let mut states: Vec<Option<KeyValue>> = records.iter().map(|record| record.was()).collect();
        if hidden > 0
            && let Some(first) = states.first_mut()
        {
            *first = None;
        }
        states.push(now.filter(|kv| kv.mod_revision >= self.floor));
        let mut shown = Vec::with_capacity(states.len());
        for state in states {
            let mut told = Map::new();
            match state {
                None => told.insert("object", Value::Null),
                Some(kv) => match self.object(kv).await {
                    Ok(object) => told.insert("object", object),
                    Err(e) => told.insert("unreadable", e.message.as_str()),
                },
            };
            shown.push(Value::from(told));
        }
        if matches!(&shown[..], [only] if only.at(&["object"]).is_some_and(Value::is_null)) {
            let name = key.rsplit('/').next().unwrap_or_default();
            return Err(ApiError::not_found(&self.def.gvr.group, &self.def.gvr.resource, name));
        }
        let mut shown = shown.into_iter();
        let first = shown.next().unwrap_or_default();
        let told = records.iter().zip(shown).map(|(record, mut state)| {
            state.set_at(&["revision"], i64::try_from(record.revision).unwrap_or(i64::MAX));
            let ms = i64::try_from(record.time_ms).unwrap_or(i64::MAX);
            let time = jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX);
            state.set_at(&["time"], time.to_string());
            if record.late {
                state.set_at(&["late"], true);
            }
            if record.deleted {
                state.set_at(&["deleted"], true);
            }
            if let Some(who) = &record.who {
                for (name, text) in [("user", &who.user), ("agent", &who.agent), ("verb", &who.verb)] {
                    state.set_at(&[name], text.as_str());
                }
            }
            state
        });
        let told: Vec<Value> = told.collect();
        let mut answer = Map::new();
        answer.push("apiVersion", "history.keelson.dev/v1");
        answer.push("before", first);
        answer.push("changes", told);
        answer.push("kind", "History");
        answer.push("more", more);
        let revision = i64::try_from(since.revision).unwrap_or(i64::MAX);
        answer.push(
            "since",
            value!({"revision": revision, "time": since.time().to_string()}),
        );
        respond::text(StatusCode::OK, out, answer.into())
    }
}

fn refused(error: Error) -> ApiError {
    let text = error.to_string();
    match error {
        Error::TooOld { .. } => ApiError::expired(text),
        Error::Future { .. } | Error::Invalid { .. } => ApiError::bad_request(text),
        Error::Later { .. } => ApiError::new(Reason::ServiceUnavailable, text).with_retry_after(1),
        Error::Unreadable { .. } | Error::Full { .. } => {
            tracing::error!("{text}");
            ApiError::internal("what was written of the past can't be read; the server's log says more")
        }
    }
}
