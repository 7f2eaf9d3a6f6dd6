//! Who is asking: the authenticators of the chain, and the traits by which handlers review and issue tokens.

pub mod bootstrap;
mod cache;
mod chain;
pub mod impersonation;
mod legacy;
pub mod oidc;
pub mod options;
pub mod reload;
pub mod revoked;
pub mod static_tokens;
pub mod structured;
pub mod tokens;
pub mod vouched;
mod waiting;
pub mod webhook;
pub mod x509;

pub use chain::{Authenticator, Tokens, take_identity};
pub use options::{Options, Settings};

use crate::request::{Request, UserInfo};
use async_trait::async_trait;
use keelson_api::{ApiResult, Str};

/// How a request tries to prove who sent it, in the words of the audit log.
pub fn attempted(request: &Request) -> String {
    let header = request.headers().get(http::header::AUTHORIZATION);
    let credentials = header
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.trim().split_once(' '));
    let scheme = credentials.map(|(scheme, _)| scheme).unwrap_or_default();
    let mut tried: Vec<&str> = ["basic", "bearer"]
        .into_iter()
        .filter(|known| scheme.eq_ignore_ascii_case(known))
        .collect();
    if request
        .extensions()
        .get::<std::sync::Arc<x509::PeerCertificate>>()
        .is_some()
    {
        tried.push("x509");
    }
    if tried.is_empty() {
        return "Authentication failed, no credentials provided".into();
    }
    format!("Authentication failed, attempted: {}", tried.join(", "))
}

/// A token that was accepted, and the audiences it was accepted for.
#[derive(Clone, Debug, Default)]
pub struct TokenIdentity {
    pub user: UserInfo,
    pub audiences: Vec<Str>,
    pub remarks: Remarks,
    /// `jti`, where the token has one.
    pub id: Str,
    /// When it was issued, in Unix seconds, where it says so.
    pub issued: Option<i64>,
}

/// What is told of how somebody has proved who he is: to himself, and in the audit log.
#[derive(Clone, Debug, Default)]
pub struct Remarks {
    pub warnings: Vec<Str>,
    pub annotations: Vec<(&'static str, String)>,
}

/// Checks bearer tokens, for the chain and for TokenReviews.
#[async_trait]
pub trait TokenAuthenticator: Send + Sync {
    /// `Ok(None)`: no authenticator knows the token. `Err`: one knows it and refuses it; the text says why.
    /// No audiences: those of the API server.
    async fn authenticate_token(&self, token: &str, audiences: &[Str]) -> Result<Option<TokenIdentity>, String>;
}

/// An object that a token is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BoundObject {
    pub name: Str,
    pub uid: Str,
}

/// What a service-account token is asked for.
#[derive(Clone, Debug, Default)]
pub struct TokenSpec {
    pub namespace: Str,
    pub service_account: BoundObject,
    /// The bound pod, and the node it runs on.
    pub pod: Option<BoundObject>,
    pub node: Option<BoundObject>,
    pub secret: Option<BoundObject>,
    /// Empty: the API server's own.
    pub audiences: Vec<Str>,
    /// Of `spec.expirationSeconds`; validated by the handler (10 minutes at least).
    pub expiration_seconds: i64,
}

/// A signed token, with what `status` and the answered `spec` of a TokenRequest say of it.
#[derive(Clone, Debug)]
pub struct IssuedToken {
    pub token: String,
    pub expires: jiff::Timestamp,
    pub audiences: Vec<Str>,
    pub expiration_seconds: i64,
    /// `jti`, for the audit annotation `authentication.kubernetes.io/issued-credential-id`.
    pub id: String,
}

/// Signs service-account tokens (`serviceaccounts/token`).
pub trait TokenIssuer: Send + Sync {
    fn issue(&self, spec: &TokenSpec) -> ApiResult<IssuedToken>;
}
