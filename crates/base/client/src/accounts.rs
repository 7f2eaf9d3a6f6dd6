//! Clients that act as service accounts, from one user who may ask for their tokens: as kube-controller-manager does it with
//! `--use-service-account-credentials`.
//!
//! An account that isn't there is made. A token is asked for with the first request, and again when four fifths of its time are
//! over or a server doesn't take it any more.

use crate::factory::ClientFactory;
use crate::kubeconfig::load;
use crate::objects::Objects;
use crate::rest::{Error, JSON, Rest, Result, is_already_exists, is_not_found};
use http::{HeaderValue, Method, Request, StatusCode, header};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::client::Body;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Upstream's.
const LIFETIME_SECONDS: i64 = 3600;
/// For a token, with the account that it needs.
const WITHIN: Duration = Duration::from_secs(10);
const PREFIX: &str = "system:serviceaccount:";

/// Whoever's name is no service account's acts as the user.
pub struct Accounts {
    own: kube::Client,
    /// The same server, without credentials.
    bare: kube::Client,
    made: Mutex<HashMap<String, kube::Client>>,
}

impl Accounts {
    /// Must be called within a tokio runtime.
    pub async fn new(file: &Path) -> anyhow::Result<Accounts> {
        let loaded = load(file, None).await?;
        let nobody = |config: &mut kube::Config| config.auth_info = Default::default();
        Ok(Accounts::of(loaded.client(|_| {})?, loaded.client(nobody)?))
    }

    fn of(own: kube::Client, bare: kube::Client) -> Accounts {
        Accounts {
            own,
            bare,
            made: Mutex::default(),
        }
    }
}

impl ClientFactory for Accounts {
    fn client(&self, identity: &str) -> kube::Client {
        let Some((namespace, name)) = identity.strip_prefix(PREFIX).and_then(|rest| rest.split_once(':')) else {
            return self.own.clone();
        };
        let make = || {
            let token = Arc::new(Token {
                rest: Rest::new(self.own.clone(), "keelson"),
                namespace: namespace.into(),
                name: name.into(),
                kept: tokio::sync::Mutex::default(),
            });
            let bare = self.bare.clone();
            let service = tower::service_fn(move |mut request: Request<Body>| {
                let (token, bare) = (token.clone(), bare.clone());
                async move {
                    let (value, asked) = token.get().await?;
                    request.headers_mut().insert(header::AUTHORIZATION, value);
                    let response = bare.send(request).await?;
                    if response.status() == StatusCode::UNAUTHORIZED {
                        token.forget(asked).await;
                    }
                    Ok::<_, Error>(response)
                }
            });
            kube::Client::new(service, namespace)
        };
        self.made.lock().entry(identity.into()).or_insert_with(make).clone()
    }
}

struct Token {
    rest: Rest,
    namespace: String,
    name: String,
    kept: tokio::sync::Mutex<Option<Kept>>,
}

struct Kept {
    value: HeaderValue,
    asked: Instant,
    until: Instant,
}

impl Token {
    /// The header, and when its token was asked for. Whoever comes while one asks waits for that answer.
    async fn get(&self) -> Result<(HeaderValue, Instant)> {
        let mut kept = self.kept.lock().await;
        if let Some(Kept { value, asked, until }) = &*kept
            && Instant::now() < *until
        {
            return Ok((value.clone(), *asked));
        }
        let asked = Instant::now();
        // Others wait for this answer.
        let answered = async {
            match self.ask().await {
                Err(error) if is_not_found(&error) => {
                    self.make_account().await?;
                    self.ask().await
                }
                answer => answer,
            }
        };
        let request = tokio::time::timeout(WITHIN, answered).await;
        let request =
            request.map_err(|_| Error::Service("no token: the API server didn't answer in time".into()))??;
        let status = request.status.unwrap_or_default();
        let (Some(token), Some(until)) = (status.token, status.expiration_timestamp) else {
            return Err(Error::Service("the server's answer has no token in it".into()));
        };
        let mut value = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|e| Error::Service(format!("a token that no header can carry: {e}").into()))?;
        value.set_sensitive(true);
        let lasts = until.0.as_second() - keelson_clock::now().as_second();
        let until = asked + Duration::from_secs(lasts.clamp(0, LIFETIME_SECONDS).unsigned_abs()) * 4 / 5;
        *kept = Some(Kept {
            value: value.clone(),
            asked,
            until,
        });
        Ok((value, asked))
    }

    /// Gives up the token that was asked for then, not a newer one.
    async fn forget(&self, asked: Instant) {
        let mut kept = self.kept.lock().await;
        if kept.as_ref().is_some_and(|kept| kept.asked == asked) {
            *kept = None;
        }
    }

    async fn ask(&self) -> Result<TokenRequest> {
        let path = format!(
            "/api/v1/namespaces/{}/serviceaccounts/{}/token",
            self.namespace, self.name
        );
        let wanted = serde_json::json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": [], "expirationSeconds": LIFETIME_SECONDS},
        });
        let body = wanted.to_string().into_bytes();
        let answer = self.rest.call(Method::POST, &path, JSON, body).await?;
        serde_json::from_slice(&answer).map_err(Error::SerdeError)
    }

    async fn make_account(&self) -> Result<()> {
        let account = ServiceAccount {
            metadata: ObjectMeta {
                namespace: Some(self.namespace.clone()),
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        match Objects::new(&self.rest).create(&account).await {
            Err(error) if !is_already_exists(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Response;
    use serde_json::json;
    use std::convert::Infallible;

    /// Counts tokens that were asked for and accounts made; a token is taken until the next one is there.
    #[derive(Default)]
    struct Server {
        accounts: Vec<String>,
        tokens: u32,
        revoked: Option<u32>,
    }

    fn client(state: &Arc<Mutex<Server>>) -> kube::Client {
        let state = state.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let mut state = state.lock();
            let path = request.uri().path().to_string();
            let shown = request.headers().get(header::AUTHORIZATION);
            let shown = shown.and_then(|v| v.to_str().ok()).unwrap_or_default().to_string();
            let (code, body) = if path.ends_with("/token") {
                let account = path.split('/').nth_back(1).unwrap_or_default().to_string();
                if state.accounts.contains(&account) {
                    state.tokens += 1;
                    let until = keelson_clock::now() + jiff::SignedDuration::from_secs(LIFETIME_SECONDS);
                    let status =
                        json!({"token": format!("t{}", state.tokens), "expirationTimestamp": until.to_string()});
                    (
                        201,
                        json!({"metadata": {}, "spec": {"audiences": []}, "status": status}),
                    )
                } else {
                    (404, json!({"kind": "Status", "code": 404, "reason": "NotFound"}))
                }
            } else if path.ends_with("/serviceaccounts") {
                state.accounts.push("job-controller".into());
                (201, json!({"metadata": {"name": "job-controller"}}))
            } else if state.revoked.is_some_and(|n| shown == format!("Bearer t{n}")) {
                (401, json!({"kind": "Status", "code": 401}))
            } else {
                (200, json!({ "who": shown }))
            };
            let mut response = Response::new(Body::from(body.to_string().into_bytes()));
            *response.status_mut() = StatusCode::from_u16(code).expect("a code");
            async move { Ok::<_, Infallible>(response) }
        });
        kube::Client::new(service, "default")
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_acts_by_a_token_of_its_own_which_is_renewed_in_time_and_when_it_is_refused() {
        let state = Arc::new(Mutex::new(Server::default()));
        let accounts = Accounts::of(client(&state), client(&state));
        let who = async |identity: &str| {
            let rest = Rest::new(accounts.client(identity), "test");
            let answer: Result<serde_json::Value> = rest
                .get("/version", JSON)
                .await
                .map(|b| serde_json::from_slice(&b).expect("JSON"));
            answer.map(|v| v["who"].as_str().unwrap_or_default().to_string())
        };
        let job = "system:serviceaccount:kube-system:job-controller";
        assert_eq!(who(job).await.expect("an answer"), "Bearer t1");
        assert_eq!(who(job).await.expect("an answer"), "Bearer t1", "kept");
        assert_eq!(state.lock().accounts, ["job-controller"]);
        assert_eq!(
            who("system:kube-controller-manager").await.expect("an answer"),
            "",
            "the user itself"
        );
        tokio::time::advance(Duration::from_secs(2881)).await;
        assert_eq!(who(job).await.expect("an answer"), "Bearer t2");
        state.lock().revoked = Some(2);
        assert!(who(job).await.is_err());
        assert_eq!(who(job).await.expect("an answer"), "Bearer t3");
    }
}
