//! Who asks a component, and whether they may: both decided by the API server, remembered for a while.

use crate::rest::{Error, JSON, Rest};
use crate::revocations::{self, Held, Revocations, Shows};
use http::{HeaderMap, Method};
use keelson_pki::revocation::{Credential, bearer};
use keelson_pki::{ServiceAccountKeys, x509};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::Digest;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
}

impl User {
    /// The subject of a client's certificate that was verified. None: it names nobody.
    pub fn of_certificate(common_name: String, organizations: Vec<String>) -> Option<User> {
        let groups = organizations.into_iter();
        Some(User {
            name: Some(common_name).filter(|name| !name.is_empty())?,
            groups: groups.chain(["system:authenticated".to_owned()]).collect(),
        })
    }
}

/// What a client's certificate was found to be when it connected. Connections outlast certificates: whether it still counts is
/// judged with each request, as upstream judges it.
pub struct Shown {
    user: Option<User>,
    not_after: i64,
    certificate: revocations::Certificate,
    /// The connection ends when the certificate is taken back.
    _held: Option<Held>,
}

impl Shown {
    /// None: nobody vouches for the certificate. Whoever cancels `ended` ends the connection.
    pub fn new(
        certificate: Option<x509::Certificate>,
        revocations: Option<&Arc<Revocations>>,
        ended: &CancellationToken,
    ) -> Shown {
        let Some(shown) = certificate else {
            return Shown {
                user: None,
                not_after: i64::MAX,
                certificate: revocations::Certificate::default(),
                _held: None,
            };
        };
        let certificate = revocations::Certificate::of(&shown);
        let held = revocations.and_then(|all| all.attach(Arc::new(certificate.clone()), ended.clone()));
        Shown {
            not_after: shown.not_after.as_second(),
            user: User::of_certificate(shown.subject.common_name, shown.subject.organization),
            certificate,
            _held: held,
        }
    }

    fn user_at(&self, now: i64) -> Option<User> {
        self.user.clone().filter(|_| now <= self.not_after)
    }
}

/// How long answers are remembered; zero: not at all. The defaults are upstream's of kubelets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remember {
    /// Whose a token is, and that it is nobody's.
    pub tokens: Duration,
    /// That somebody may do something.
    pub allowed: Duration,
    /// That he may not.
    pub denied: Duration,
}

impl Default for Remember {
    fn default() -> Self {
        Remember {
            tokens: Duration::from_secs(120),
            allowed: Duration::from_secs(300),
            denied: Duration::from_secs(30),
        }
    }
}

impl Remember {
    /// As other components of upstream's remember.
    pub const SHORTLY: Remember = Remember {
        tokens: Duration::from_secs(10),
        allowed: Duration::from_secs(10),
        denied: Duration::from_secs(10),
    };
}

/// Decisions remembered at most; at that many all are forgotten. Of what was asked only hashes are kept: strangers send tokens and
/// paths as long as they like.
const MAX_CACHE: usize = 4096;
/// Upstream's time for the API server's answer.
const WITHIN: Duration = Duration::from_secs(10);

type Cache<K, V> = Mutex<HashMap<K, (Instant, V)>>;

/// Asks the API server by TokenReviews and SubjectAccessReviews.
pub struct Reviews {
    rest: Rest,
    anonymous: bool,
    times: Remember,
    /// `None`: nothing is known of what has been taken back.
    revocations: Option<Arc<Revocations>>,
    tokens: Cache<[u8; 32], Option<User>>,
    decisions: Cache<[u8; 32], bool>,
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

impl Reviews {
    /// `anonymous`: who shows nothing is `system:anonymous`, rather than nobody.
    pub fn new(rest: Rest, anonymous: bool) -> Self {
        Self::remembering(rest, anonymous, Remember::default())
    }

    pub fn remembering(rest: Rest, anonymous: bool, times: Remember) -> Self {
        Reviews {
            rest,
            anonymous,
            times,
            revocations: None,
            tokens: Mutex::default(),
            decisions: Mutex::default(),
        }
    }

    /// What has been taken back counts for nothing here, also what is remembered.
    #[must_use]
    pub fn heeding(mut self, revocations: Option<Arc<Revocations>>) -> Self {
        self.revocations = revocations;
        self
    }

    /// Whether what is shown has been taken back; an error while that isn't known.
    async fn is_revoked(&self, shown: &Credential<'_>) -> Result<bool, String> {
        let Some(revocations) = &self.revocations else {
            return Ok(false);
        };
        if !revocations.are_read(WITHIN).await {
            return Err("it isn't known yet which credentials have been revoked".into());
        }
        let why = revocations.judge(shown);
        if let Some(why) = &why {
            tracing::debug!("a request is refused: {why}");
        }
        Ok(why.is_some())
    }

    /// The user behind a request; `None` when there is none. Who shows a certificate that isn't accepted may still bring a
    /// token, but is not anonymous.
    pub async fn authenticate(&self, peer: Option<&Shown>, headers: &HeaderMap) -> Result<Option<User>, String> {
        let now = keelson_clock::now().as_second();
        if let Some((shown, user)) = peer.and_then(|shown| Some((shown, shown.user_at(now)?))) {
            let revoked = self.is_revoked(&shown.certificate.credential()).await?;
            return Ok(Some(user).filter(|_| !revoked));
        }
        let header = headers.get(http::header::AUTHORIZATION).and_then(|h| h.to_str().ok());
        let token = header
            .and_then(|h| h.split_once(' '))
            .map(|(scheme, token)| (scheme, token.trim()));
        if let Some((_, token)) = token.filter(|(s, token)| s.eq_ignore_ascii_case("bearer") && !token.is_empty()) {
            return match self.review_token(token).await? {
                Some(user) if self.is_revoked_token(token, &user).await? => Ok(None),
                found => Ok(found),
            };
        }
        Ok((self.anonymous && peer.is_none()).then(|| User {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
        }))
    }

    /// A token that was accepted says of itself what it is taken back by.
    async fn is_revoked_token(&self, token: &str, user: &User) -> Result<bool, String> {
        if self.revocations.is_none() {
            return Ok(false);
        }
        let claims = ServiceAccountKeys::unverified(token);
        let text = bearer(token);
        let shown = Credential {
            name: &user.name,
            issued: claims.as_ref().and_then(|c| c.iat),
            token: claims.as_ref().map(|c| c.jti.as_str()).filter(|id| !id.is_empty()),
            bearer: Some(&text),
            ..Credential::default()
        };
        self.is_revoked(&shown).await
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
        remember(&self.tokens, key, user.clone(), self.times.tokens);
        Ok(user)
    }

    /// Whether the user may do what `attributes` (`resourceAttributes` or `nonResourceAttributes` of a review) say.
    pub async fn allowed(&self, user: &User, attributes: &Value) -> Result<bool, String> {
        let key: [u8; 32] = sha2::Sha256::digest(json!([user.name, user.groups, attributes]).to_string()).into();
        if let Some(known) = recall(&self.decisions, &key) {
            return Ok(known);
        }
        let mut spec = attributes.clone();
        spec["user"] = user.name.as_str().into();
        spec["groups"] = user.groups.as_slice().into();
        let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec});
        let answer = self
            .post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &body)
            .await?;
        let allowed = answer["status"]["allowed"] == true;
        let ttl = if allowed { self.times.allowed } else { self.times.denied };
        remember(&self.decisions, key, allowed, ttl);
        Ok(allowed)
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        let body = body.to_string().into_bytes();
        let answer = tokio::time::timeout(WITHIN, self.rest.call(Method::POST, path, JSON, body)).await;
        let answer = answer.map_err(|_| "the API server didn't answer in time".to_owned())?;
        let bytes = answer.map_err(|error| match &error {
            Error::Api(status) if !status.message.is_empty() => status.message.clone(),
            other => other.to_string(),
        })?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_certificate_that_ends_while_its_connection_lasts_is_nobodys() {
        let silent = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("nobody is asked"))
        });
        let rest = Rest::new(kube::Client::new(silent, "default"), "test");
        let auth = Reviews::new(rest, true);
        let now = keelson_clock::now().as_second();
        let shown = |user: Option<&str>, not_after| {
            let user = user.map(|name| User {
                name: name.into(),
                groups: Vec::new(),
            });
            Shown {
                user,
                not_after,
                certificate: revocations::Certificate::default(),
                _held: None,
            }
        };
        let headers = HeaderMap::new();
        let name = async |shown: Option<Shown>| {
            let user = auth.authenticate(shown.as_ref(), &headers).await.expect("an answer");
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

    /// What is remembered of a token, and what a connection has proved, ends with the record that takes it back.
    #[tokio::test(start_paused = true)]
    async fn what_has_been_revoked_proves_nothing_here() {
        use keelson_pki::revocation::{Record, Table};
        let api = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            let answer = json!({"status": {"authenticated": true, "user": {"username": "bob"}}}).to_string();
            Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::from(answer.into_bytes())))
        });
        let all = Arc::new(Revocations::default());
        let rest = Rest::new(kube::Client::new(api, "default"), "test");
        let auth = Reviews::new(rest, true).heeding(Some(all.clone()));
        let ca = keelson_pki::Authority::generate("kubernetes").expect("an authority");
        let issued = ca
            .issue(&keelson_pki::CertSpec::client("ana", None))
            .expect("a certificate");
        let der = x509::pem::certificates(issued.cert_pem.as_bytes()).next().expect("PEM");
        let certificate = x509::Certificate::from_der(&der).expect("a certificate");
        let ended = CancellationToken::new();
        let ana = Shown::new(Some(certificate), Some(&all), &ended);
        let bearer = http::HeaderValue::from_static("Bearer e30.eyJqdGkiOiJpZCJ9.c2ln");
        let bob = HeaderMap::from_iter([(http::header::AUTHORIZATION, bearer)]);
        let none = HeaderMap::new();
        assert!(
            auth.authenticate(Some(&ana), &none).await.is_err(),
            "the list isn't there yet"
        );
        all.set(Table::default());
        for _ in 0..2 {
            assert!(auth.authenticate(Some(&ana), &none).await.expect("an answer").is_some());
            assert!(auth.authenticate(None, &bob).await.expect("an answer").is_some());
        }
        let now = keelson_clock::now();
        let records = [
            Record::of_certificate(&issued.cert_pem, now).expect("a record"),
            Record::of_token("e30.eyJqdGkiOiJpZCJ9.c2ln", now).expect("a record"),
        ];
        let texts = records.map(|record| (record.key(), record.to_json().expect("JSON")));
        all.set(revocations::read(texts.iter().map(|(k, v)| (k.as_str(), v.as_str()))));
        assert!(ended.is_cancelled());
        assert_eq!(
            auth.authenticate(Some(&ana), &bob).await,
            Ok(None),
            "nothing else helps"
        );
        assert_eq!(auth.authenticate(None, &bob).await, Ok(None));
    }

    /// Nobody knows any of them, and each is remembered.
    #[tokio::test]
    async fn tokens_that_nobody_knows_cost_little() {
        let api = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            let answer = json!({"status": {"authenticated": false}}).to_string();
            Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::from(answer.into_bytes())))
        });
        let rest = Rest::new(kube::Client::new(api, "default"), "test");
        let auth = Reviews::new(rest, false);
        for n in 0..3 {
            let token = format!("{n}{}", "x".repeat(1 << 20));
            let header = http::HeaderValue::from_str(&format!("Bearer {token}")).expect("a header");
            let headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, header)]);
            assert_eq!(auth.authenticate(None, &headers).await, Ok(None));
        }
        {
            let kept = auth.tokens.lock();
            assert_eq!(kept.len(), 3);
            assert!(kept.keys().all(|key| std::mem::size_of_val(key) == 32));
        }
        let stranger = User {
            name: "system:anonymous".into(),
            groups: Vec::new(),
        };
        for n in 0..3 {
            let path = format!("/{n}{}", "x".repeat(1 << 16));
            let attributes = json!({"nonResourceAttributes": {"verb": "get", "path": path}});
            assert_eq!(auth.allowed(&stranger, &attributes).await, Ok(false));
        }
        let kept = auth.decisions.lock();
        assert_eq!(kept.len(), 3);
        assert!(kept.keys().all(|key| std::mem::size_of_val(key) == 32));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_is_not_waited_for() {
        let silent = tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, std::convert::Infallible>>()
        });
        let auth = Reviews::new(Rest::new(kube::Client::new(silent, "default"), "test"), true);
        let began = Instant::now();
        let headers = HeaderMap::from_iter([(
            http::header::AUTHORIZATION,
            http::HeaderValue::from_static("bearer somebody"),
        )]);
        assert!(
            auth.authenticate(None, &headers).await.is_err(),
            "the scheme has no case"
        );
        assert_eq!(began.elapsed(), WITHIN);
        let headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, http::HeaderValue::from_static("Bearer "))]);
        let user = auth.authenticate(None, &headers).await.expect("an answer");
        assert_eq!(user.map(|u| u.name).as_deref(), Some("system:anonymous"), "no token");
    }
}
