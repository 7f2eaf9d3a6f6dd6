//! Who asks, and whether they may: both decided by the API server, remembered for a while.

use crate::node;
use http::{Method, Request};
use keelson_client::Rest;
use keelson_pki::x509::Certificate;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::Digest;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
}

/// What a client's certificate was found to be when it connected. Connections outlast certificates: whether it still counts is
/// judged with each request, as upstream judges it.
#[derive(Clone, Debug)]
pub struct Shown {
    /// None: nobody vouches for it.
    user: Option<User>,
    /// Unix seconds.
    not_after: i64,
}

impl Shown {
    /// `None`: it was not accepted.
    pub fn of(cert: Option<Certificate>) -> Shown {
        let not_after = cert.as_ref().map_or(i64::MAX, |c| c.not_after.as_second());
        Shown {
            user: cert.and_then(user_of),
            not_after,
        }
    }

    fn user_at(&self, now: i64) -> Option<User> {
        self.user.clone().filter(|_| now <= self.not_after)
    }
}

/// The subject of a client's certificate that was verified.
fn user_of(cert: Certificate) -> Option<User> {
    let subject = cert.subject;
    let groups = subject.organization.into_iter();
    Some(User {
        name: Some(subject.common_name).filter(|name| !name.is_empty())?,
        groups: groups.chain(["system:authenticated".to_owned()]).collect(),
    })
}

const TOKEN_TTL: Duration = Duration::from_secs(120);
const ALLOW_TTL: Duration = Duration::from_secs(300);
const DENY_TTL: Duration = Duration::from_secs(30);
/// Decisions remembered at most; at that many all are forgotten. Of tokens only their hashes are kept: strangers send them, as
/// long as they like.
const MAX_CACHE: usize = 4096;

type Cache<K, V> = Mutex<HashMap<K, (Instant, V)>>;

pub struct Auth {
    rest: Rest,
    node: String,
    anonymous: bool,
    tokens: Cache<[u8; 32], Option<User>>,
    decisions: Cache<(User, String, String), bool>,
}

fn recall<K: std::hash::Hash + Eq, V: Clone>(cache: &Cache<K, V>, key: &K) -> Option<V> {
    cache
        .lock()
        .get(key)
        .filter(|(until, _)| *until > Instant::now())
        .map(|(_, v)| v.clone())
}

fn remember<K: std::hash::Hash + Eq, V>(cache: &Cache<K, V>, key: K, value: V, ttl: Duration) {
    let mut cache = cache.lock();
    if cache.len() >= MAX_CACHE {
        cache.clear();
    }
    cache.insert(key, (Instant::now() + ttl, value));
}

impl Auth {
    pub fn new(rest: Rest, node: String, anonymous: bool) -> Self {
        Auth {
            rest,
            node,
            anonymous,
            tokens: Mutex::default(),
            decisions: Mutex::default(),
        }
    }

    /// The user behind a request; `None` when there is none. Who shows a certificate that isn't accepted may still bring a
    /// token, but is not anonymous.
    pub async fn authenticate<B>(&self, peer: Option<&Shown>, request: &Request<B>) -> Result<Option<User>, String> {
        let now = jiff::Timestamp::now().as_second();
        if let Some(user) = peer.and_then(|shown| shown.user_at(now)) {
            return Ok(Some(user));
        }
        let header = request
            .headers()
            .get(http::header::AUTHORIZATION)
            .and_then(|h| h.to_str().ok());
        if let Some(token) = header.and_then(|h| h.strip_prefix("Bearer ")) {
            return self.review_token(token.trim()).await;
        }
        Ok((self.anonymous && peer.is_none()).then(|| User {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
        }))
    }

    async fn review_token(&self, token: &str) -> Result<Option<User>, String> {
        let key: [u8; 32] = sha2::Sha256::digest(token).into();
        if let Some(user) = recall(&self.tokens, &key) {
            return Ok(user);
        }
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
        let answer = self.post("/apis/authentication.k8s.io/v1/tokenreviews", &body).await?;
        let status = &answer["status"];
        let user = (status["authenticated"] == true).then(|| User {
            name: status["user"]["username"].as_str().unwrap_or_default().to_owned(),
            groups: strings(&status["user"]["groups"]),
        });
        remember(&self.tokens, key, user.clone(), TOKEN_TTL);
        Ok(user)
    }

    /// Whether the user may do this; any of the subresources that cover the path is enough.
    pub async fn allowed(&self, user: &User, method: &Method, path: &str) -> Result<bool, String> {
        for sub in subresources(path) {
            if self.may(user, verb(method), sub).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn may(&self, user: &User, verb: &str, sub: &str) -> Result<bool, String> {
        let key = (user.clone(), verb.to_owned(), sub.to_owned());
        if let Some(known) = recall(&self.decisions, &key) {
            return Ok(known);
        }
        let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
            "user": user.name, "groups": user.groups,
            "resourceAttributes": {"verb": verb, "version": "v1", "resource": "nodes", "subresource": sub, "name": self.node}}});
        let answer = self
            .post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &body)
            .await?;
        let allowed = answer["status"]["allowed"] == true;
        remember(
            &self.decisions,
            key,
            allowed,
            if allowed { ALLOW_TTL } else { DENY_TTL },
        );
        Ok(allowed)
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        let bytes = self
            .rest
            .call(
                Method::POST,
                path,
                keelson_client::rest::JSON,
                body.to_string().into_bytes(),
            )
            .await
            .map_err(|e| crate::error_text(&e))?;
        serde_json::from_slice(&bytes).map_err(|e| e.to_string())
    }
}

fn strings(v: &Value) -> Vec<String> {
    v.as_array()
        .into_iter()
        .flatten()
        .filter_map(|s| s.as_str())
        .map(str::to_owned)
        .collect()
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

fn subresources(path: &str) -> Vec<&'static str> {
    let below = |base: &str| path == base || path.strip_prefix(base).is_some_and(|r| r.starts_with('/'));
    for (base, sub) in [
        ("/stats", "stats"),
        ("/metrics", "metrics"),
        ("/logs", "log"),
        ("/checkpoint", "checkpoint"),
        ("/statusz", "statusz"),
    ] {
        if below(base) {
            return vec![sub];
        }
    }
    if below("/flagz") {
        return vec!["configz"];
    }
    for (base, sub) in [
        ("/pods", "pods"),
        ("/healthz", "healthz"),
        ("/configz", "configz"),
        ("/runningpods", "pods"),
    ] {
        if below(base) {
            return vec![sub, "proxy"];
        }
    }
    vec!["proxy"]
}

/// The version told to those who ask.
pub fn version() -> &'static str {
    node::status::VERSION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_certificate_that_ends_while_its_connection_lasts_is_nobodys() {
        let silent = tower::service_fn(|_: Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("nobody is asked"))
        });
        let rest = Rest::new(kube::Client::new(silent, "default"), "test");
        let auth = Auth::new(rest, "n1".into(), true);
        let now = jiff::Timestamp::now().as_second();
        let shown = |user: Option<&str>, not_after| Shown {
            user: user.map(|name| User {
                name: name.into(),
                groups: Vec::new(),
            }),
            not_after,
        };
        let request = Request::new(());
        let name = async |shown: Option<Shown>| {
            let user = auth.authenticate(shown.as_ref(), &request).await.expect("an answer");
            user.map(|user| user.name)
        };
        assert_eq!(
            name(Some(shown(Some("admin"), now + 60))).await.as_deref(),
            Some("admin")
        );
        assert_eq!(name(Some(shown(Some("admin"), now - 1))).await, None);
        assert_eq!(name(Some(shown(None, i64::MAX))).await, None);
        assert_eq!(name(None).await.as_deref(), Some("system:anonymous"));
    }

    /// Nobody knows any of them, and each is remembered.
    #[tokio::test]
    async fn tokens_that_nobody_knows_cost_little() {
        let api = tower::service_fn(|_: Request<kube::client::Body>| async {
            let answer = json!({"status": {"authenticated": false}}).to_string();
            Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::from(answer.into_bytes())))
        });
        let rest = Rest::new(kube::Client::new(api, "default"), "test");
        let auth = Auth::new(rest, "n1".into(), false);
        for n in 0..3 {
            let token = format!("{n}{}", "x".repeat(1 << 20));
            let request = Request::builder().header("authorization", format!("Bearer {token}"));
            let request = request.body(()).expect("a request");
            assert_eq!(auth.authenticate(None, &request).await, Ok(None));
        }
        let kept = auth.tokens.lock();
        assert_eq!(kept.len(), 3);
        assert!(kept.keys().all(|key| std::mem::size_of_val(key) == 32));
    }

    #[test]
    fn paths_map_to_subresources() {
        assert_eq!(subresources("/stats/summary"), ["stats"]);
        assert_eq!(subresources("/metrics/resource"), ["metrics"]);
        assert_eq!(subresources("/pods"), ["pods", "proxy"]);
        assert_eq!(subresources("/podsx"), ["proxy"]);
        assert_eq!(subresources("/exec/a/b/c"), ["proxy"]);
    }
}
