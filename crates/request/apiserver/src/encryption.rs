//! Encryption at rest, as a server has it: whose a key of the store is, and what an administrator asks about the keys that seal
//! what is stored. The sealing itself is [`keelson_seal`]'s.
//!
//! | path (who may is RBAC's to say, by default administrators) | |
//! |---|---|
//! | `GET /keelson/secrets`           | which keys there are, and how many values are sealed by each |
//! | `POST /keelson/secrets/rotate`   | a new key, and everything is written anew by it               |
//! | `POST /keelson/secrets/rewrite`  | everything is written anew as the configuration says          |

use crate::nowhere::Nowhere;
use crate::request::{Request, RequestContext, Response, response};
use crate::state::ServerState;
use http::{Method, StatusCode};
use keelson_api::ApiError;
use keelson_registry::resources;
use keelson_seal::{GroupResource, Place, Resources};
use keelson_store::KeyRange;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

/// What the keys of everything begin with, where nobody says otherwise.
pub const ROOT: &str = "/registry";
const PATH: &str = "/keelson/secrets";

/// What the store's keys mean. `keys`: the directory of the cluster's keys. `root`: what the store's keys begin with, without a
/// slash at its end; values are bound to these, as upstream's are, and not to those that the registry knows.
pub fn place(keys: PathBuf, root: &str) -> Place {
    Place {
        resources: resources(root),
        all: KeyRange::prefix(format!("{root}/")),
        secrets: KeyRange::prefix(format!("{root}/secrets/")),
        keys,
    }
}

/// Asked for each value that is read or written: kinds that are built in cost a look-up or two and no copies.
fn resources(root: &str) -> Resources {
    let root = format!("{root}/");
    let known: HashMap<String, Arc<GroupResource>> = resources::places()
        .into_iter()
        .filter_map(|(prefix, resource)| {
            let below = prefix.strip_prefix(ROOT)?.trim_matches('/').to_owned();
            let (group, resource) = (resource.group.to_string(), resource.resource.to_string());
            Some((below, Arc::new(GroupResource { group, resource })))
        })
        .collect();
    Arc::new(move |key| {
        let text = std::str::from_utf8(key).ok()?.strip_prefix(&root)?;
        let (first, rest) = text.split_once('/')?;
        if let Some(found) = known.get(first) {
            return Some(found.clone());
        }
        let (second, _) = rest.split_once('/')?;
        if let Some(found) = known.get(&text[..first.len() + 1 + second.len()]) {
            return Some(found.clone());
        }
        let (group, resource) = (first.to_owned(), second.to_owned());
        group.contains('.').then(|| Arc::new(GroupResource { group, resource }))
    })
}

/// Answers the paths of this module; `None` for others, and where nothing of the kind is.
pub async fn serve(server: &ServerState, context: &RequestContext, request: &Request) -> Option<Response> {
    let sealing = server.config.sealing.as_ref()?;
    let asked = context.info.path.strip_prefix(PATH)?.trim_end_matches('/');
    let answer = match (asked, request.method()) {
        ("", &Method::GET) => sealing.report().await.map(|report| shown(&report)),
        ("/rotate", &Method::POST) => sealing.rotate().await.map(|key| shown(&key)),
        ("/rewrite", &Method::POST) => {
            sealing.rewrite();
            Ok(shown(&()))
        }
        ("" | "/rotate" | "/rewrite", _) => return Some(Nowhere::method().answer(request.headers(), context)),
        _ => return None,
    };
    Some(answer.unwrap_or_else(|error| response::error(&ApiError::bad_request(format!("{error:#}")))))
}

fn shown(answer: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(answer) {
        Ok(json) => response::bytes_of(StatusCode::OK, "application/json", json.into()),
        Err(error) => response::error(&ApiError::internal(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_their_resources() {
        let of = resources(ROOT);
        for (key, resource) in [
            ("/registry/secrets/default/a", "secrets"),
            ("/registry/secrets/", "secrets"),
            ("/registry/services/specs/default/a", "services"),
            ("/registry/services/endpoints/default/a", "endpoints"),
            ("/registry/ranges/servicenodeports", "services"),
            ("/registry/deployments/default/a", "deployments.apps"),
            ("/registry/ingress/default/a", "ingresses.networking.k8s.io"),
            ("/registry/events/default/a", "events"),
            (
                "/registry/apiextensions.k8s.io/customresourcedefinitions/a.b.c",
                "customresourcedefinitions.apiextensions.k8s.io",
            ),
            (
                "/registry/stable.example.com/crontabs/default/a",
                "crontabs.stable.example.com",
            ),
            ("/registry/stable.example.com/crontabs/", "crontabs.stable.example.com"),
        ] {
            assert_eq!(of(key.as_bytes()).unwrap().shown(), resource, "{key}");
        }
        for nobodys in ["compact_rev_key", "/registry/unknown/a", "/registry/", ""] {
            assert!(of(nobodys.as_bytes()).is_none(), "{nobodys}");
        }
        for (root, secret) in [("/a/b", "/a/b/secrets/default/a"), ("", "/secrets/default/a")] {
            let of = resources(root);
            assert_eq!(of(secret.as_bytes()).unwrap().shown(), "secrets");
            assert!(of(b"/registry/secrets/default/a").is_none());
        }
    }
}
