//! Who may do what. Identities and rights are the cluster's: a client certificate, or a token that is shown as it is or as the
//! password of any user, is judged by the API server, and so is what its user may do with a repository.
//!
//! A repository `team/app` is `repositories.registry.keelson.dev` `app` in the namespace `team`, one without `/` is one of
//! the whole cluster. Nothing of that kind exists in the cluster: only rights to it do, as Roles give them. To pull is `get`, to
//! push `update`, to remove `delete`; to see which repositories there are is `list` in the whole cluster.

use crate::error::{Code, Refused, Result, refuse, refused};
use crate::names::Repository;
use base64::Engine;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use keelson_client::reviews::{Reviews, Shown, User};
use keelson_client::revocations::Revocations;
use serde_json::{Value, json};
use std::sync::Arc;

pub const GROUP: &str = "registry.keelson.dev";
pub const RESOURCE: &str = "repositories";
/// The token of who has none, for clients that don't go on without.
const NOBODY: &str = "anonymous";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    Pull,
    Push,
    Delete,
    List,
}

impl Right {
    fn verb(self) -> &'static str {
        match self {
            Right::Pull => "get",
            Right::Push => "update",
            Right::Delete => "delete",
            Right::List => "list",
        }
    }
}

/// Who lets whom in.
pub enum Access {
    /// Everybody may do everything.
    Open,
    Cluster {
        reviews: Reviews,
        /// What has been taken back in the cluster, if it tells: connections end that came by it.
        revocations: Option<Arc<Revocations>>,
        /// Who shows nothing may pull.
        anonymous_pull: bool,
        /// Where clients are sent for a token, beside being asked for a password.
        realm: Option<String>,
    },
}

/// Who asks; None: nobody in particular.
pub type Who = Option<User>;

impl Access {
    pub async fn who(&self, peer: Option<&Shown>, headers: &HeaderMap) -> Result<Who> {
        let Access::Cluster { reviews, .. } = self else {
            return Ok(None);
        };
        let shown = as_bearer(headers)?;
        let told = reviews.authenticate(peer, &shown).await.map_err(|error| {
            tracing::warn!("who asks can't be told: {error}");
            refused(Code::Unavailable, "the cluster can't say now who this is")
        })?;
        match told {
            None if shown.contains_key(AUTHORIZATION) => {
                refuse(Code::Unauthorized, "the cluster doesn't know this token")
            }
            told => Ok(told),
        }
    }

    pub fn revocations(&self) -> Option<&Arc<Revocations>> {
        match self {
            Access::Open => None,
            Access::Cluster { revocations, .. } => revocations.as_ref(),
        }
    }

    /// Whoever asks what is here at all has to be known, so that clients show who they are.
    pub fn known(&self, who: &Who) -> Result<()> {
        match (self, who) {
            (Access::Cluster { .. }, None) => refuse(Code::Unauthorized, "who is this?"),
            _ => Ok(()),
        }
    }

    pub async fn check(&self, who: &Who, right: Right, repository: Option<&Repository>) -> Result<()> {
        let Access::Cluster {
            reviews,
            anonymous_pull,
            ..
        } = self
        else {
            return Ok(());
        };
        if right == Right::Pull && *anonymous_pull {
            return Ok(());
        }
        let Some(user) = who else {
            return refuse(
                Code::Unauthorized,
                "this takes a client certificate, or a token of the cluster as the password of any user",
            );
        };
        if user.groups.iter().any(|group| group == "system:masters") {
            return Ok(());
        }
        match reviews.allowed(user, &attributes(right, repository)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(denied(&user.name, right, repository)),
            Err(error) => {
                tracing::warn!("what somebody may do can't be told: {error}");
                refuse(Code::Unavailable, "the cluster can't say now what is allowed")
            }
        }
    }

    /// What is shown with a refusal of who isn't known.
    pub fn challenges(&self, repository: Option<&Repository>, right: Right) -> Vec<HeaderValue> {
        let Access::Cluster { realm, .. } = self else {
            return Vec::new();
        };
        let bearer = realm.as_ref().map(|realm| {
            let actions = match right {
                Right::Pull => "pull",
                Right::Push => "pull,push",
                Right::Delete => "pull,push,delete",
                Right::List => "*",
            };
            let scope = match (repository, right) {
                (Some(name), _) => format!(",scope=\"repository:{name}:{actions}\""),
                (None, Right::List) => ",scope=\"registry:catalog:*\"".to_owned(),
                _ => String::new(),
            };
            format!("Bearer realm=\"{realm}\",service=\"keelson\"{scope}")
        });
        let all = bearer.into_iter().chain(["Basic realm=\"keelson\"".to_owned()]);
        all.filter_map(|text| HeaderValue::from_str(&text).ok()).collect()
    }

    /// What the token service answers: the token that was shown as a password, once its user is known. What it is good for is
    /// decided when it is used.
    pub async fn token(&self, peer: Option<&Shown>, headers: &HeaderMap) -> Result<Value> {
        let Access::Cluster {
            realm: Some(_),
            anonymous_pull,
            ..
        } = self
        else {
            return refuse(Code::NotFound, "there is no token service here");
        };
        let who = self.who(peer, headers).await?;
        let shown = as_bearer(headers)?;
        let bearer = shown.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
        let token = match (who, bearer.and_then(|b| b.strip_prefix("Bearer "))) {
            (Some(_), Some(token)) => token,
            // The certificate speaks for itself.
            (Some(_), None) => NOBODY,
            (None, _) if *anonymous_pull => NOBODY,
            (None, _) => return refuse(Code::Unauthorized, "who is this?"),
        };
        Ok(json!({"token": token, "access_token": token, "expires_in": 300}))
    }
}

fn denied(user: &str, right: Right, repository: Option<&Repository>) -> Refused {
    let (what, place) = match repository {
        Some(name) => match name.namespace() {
            Some((namespace, rest)) => (format!(" {rest}"), format!("the namespace {namespace}")),
            None => (format!(" {name}"), "the cluster".to_owned()),
        },
        None => (String::new(), "the cluster".to_owned()),
    };
    let text = format!("{user} can't {} {RESOURCE}.{GROUP}{what} in {place}", right.verb());
    refused(Code::Denied, text)
}

fn attributes(right: Right, repository: Option<&Repository>) -> Value {
    let mut attributes = json!({"group": GROUP, "resource": RESOURCE, "verb": right.verb(), "version": "*"});
    if let Some(repository) = repository {
        let (namespace, name) = repository.namespace().unwrap_or(("", repository.as_str()));
        attributes["namespace"] = namespace.into();
        attributes["name"] = name.into();
    }
    json!({"resourceAttributes": attributes})
}

/// The same, with a password as the token that it is.
fn as_bearer(headers: &HeaderMap) -> Result<HeaderMap> {
    let mut shown = HeaderMap::new();
    let Some(value) = headers.get(AUTHORIZATION) else {
        return Ok(shown);
    };
    let unread = || refused(Code::Unauthorized, "the Authorization header can't be read");
    let (scheme, rest) = value.to_str().ok().and_then(|v| v.split_once(' ')).ok_or_else(unread)?;
    let token = if scheme.eq_ignore_ascii_case("basic") {
        let decoded = base64::engine::general_purpose::STANDARD.decode(rest.trim()).ok();
        let decoded = decoded
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(unread)?;
        let (_, password) = decoded.split_once(':').ok_or_else(unread)?;
        password.to_owned()
    } else if scheme.eq_ignore_ascii_case("bearer") {
        rest.trim().to_owned()
    } else {
        return Err(unread());
    };
    if token.is_empty() || token == NOBODY {
        return Ok(shown);
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| unread())?;
    value.set_sensitive(true);
    shown.insert(AUTHORIZATION, value);
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: &str) -> Option<String> {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).unwrap())]);
        let bearer = as_bearer(&headers).ok()?;
        Some(
            bearer
                .get(AUTHORIZATION)
                .map_or("nothing", |v| v.to_str().unwrap())
                .to_owned(),
        )
    }

    #[test]
    fn a_password_is_a_token() {
        let basic = |text: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text));
        assert_eq!(shown(&basic("any:a.b.c")).as_deref(), Some("Bearer a.b.c"));
        assert_eq!(shown(&basic(":t:u")).as_deref(), Some("Bearer t:u"));
        assert_eq!(shown("bearer  t").as_deref(), Some("Bearer t"));
        assert_eq!(shown("Bearer anonymous").as_deref(), Some("nothing"));
        assert_eq!(shown(&basic("u:")).as_deref(), Some("nothing"));
        for bad in ["Basic ?", "Basic", "Digest x", &basic("nocolon"), &basic("u:a\nb")] {
            assert_eq!(shown(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_repository_is_an_object_of_its_namespace() {
        let of = |name: &str| attributes(Right::Push, Repository::parse(name).as_ref())["resourceAttributes"].clone();
        let app = of("team/web/app");
        assert_eq!(
            (&app["namespace"], &app["name"], &app["verb"]),
            (&json!("team"), &json!("web/app"), &json!("update"))
        );
        let alone = of("busybox");
        assert_eq!((&alone["namespace"], &alone["name"]), (&json!(""), &json!("busybox")));
    }
}
