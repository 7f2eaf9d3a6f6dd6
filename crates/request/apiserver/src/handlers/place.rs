//! Whether a request is for something that is served, by path and by method: decided before anything else of it is read.
//!
//! A name in the path is no matter of taste: permissions speak of it, so a create that has one, or an update that has
//! none, is refused rather than understood in some way.

use crate::nowhere::Nowhere;
use crate::request::RequestInfo;
use crate::state::ServerState;
use http::Method;
use keelson_api::ApiError;
use keelson_registry::ResourceDef;
use std::sync::Arc;

/// The row that serves the request.
pub fn find(server: &ServerState, info: &RequestInfo, method: &Method) -> Result<Arc<ResourceDef>, Nowhere> {
    let nothing = || Nowhere::path(server, info);
    let table = &server.table;
    let def = table
        .get(&info.api_group, &info.api_version, &info.resource)
        .ok_or_else(nothing)?;
    // Of `/proxy/…`, an old form of the path, only the permission is left.
    let misplaced = !def.namespaced && !info.namespace.is_empty() && !def.is("", "namespaces");
    if misplaced || info.verb == "proxy" {
        return Err(nothing());
    }
    // Built-in kinds have no such route upstream.
    if *method == Method::HEAD && !def.custom && info.subresource != "proxy" {
        return Err(Nowhere::method());
    }
    let named = info.parts.get(1).is_some_and(|n| !n.is_empty());
    if !info.subresource.is_empty() {
        return sub(&def, info).map(|()| def).map_err(|e| e.unwrap_or_else(nothing));
    }
    let everywhere = def.namespaced && info.namespace.is_empty();
    if everywhere && (named || (def.custom && !matches!(info.verb.as_str(), "list" | "watch"))) {
        return Err(nothing());
    }
    let fits = match info.verb.as_str() {
        "create" => !named && !everywhere,
        "update" | "patch" | "get" | "delete" => named,
        "list" => !named,
        "watch" => matches!(*method, Method::GET | Method::HEAD),
        "deletecollection" => !named && !everywhere,
        _ => false,
    };
    if fits && def.allows(&info.verb) {
        Ok(def)
    } else {
        Err(method_not_allowed(&def, info))
    }
}

/// `Err(None)`: nothing is there.
fn sub(def: &ResourceDef, info: &RequestInfo) -> Result<(), Option<Nowhere>> {
    let Some(sub) = def.subresource(&info.subresource) else {
        let gr = def.gvr.group_resource();
        let unknown = || Nowhere::status(ApiError::not_found(&gr.group, &gr.resource, &info.name));
        return Err(def.custom.then(unknown));
    };
    if def.namespaced && info.namespace.is_empty() {
        return Err(None);
    }
    if info.subresource == "proxy" {
        // Any method, and any path behind it.
        return Ok(());
    }
    if info.parts.len() > 3 && !def.custom {
        return Err(None);
    }
    if sub.verbs.contains(&info.verb) {
        Ok(())
    } else {
        Err(Some(method_not_allowed(def, info)))
    }
}

fn method_not_allowed(def: &ResourceDef, info: &RequestInfo) -> Nowhere {
    if !def.custom {
        return Nowhere::method();
    }
    let gr = def.gvr.group_resource();
    Nowhere::status(ApiError::method_not_allowed(&gr.group, &gr.resource, &info.verb))
}
