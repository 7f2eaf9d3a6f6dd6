//! How requests come in: within the process ([`Loopback`], [`ApiService`]) and from the network ([`listener`]).
//!
//! Both end in the same [`Handle`]: the chain. Only calls within the process carry an [`InProcessIdentity`]; the
//! listener builds each request's extensions itself, so that none can come from outside.

mod bridge;
pub mod listener;
pub mod tls;

use crate::request::{Body, Request, Response, UserInfo, response};
use futures::future::BoxFuture;
use http::{HeaderMap, StatusCode};
use keelson_api::codec::{Strictness, json};
use keelson_api::{ApiError, ApiResult, Object, Reason, Value};
use std::convert::Infallible;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

/// What serves requests: the chain with all behind it.
pub trait Handle: Send + Sync {
    fn handle(self: Arc<Self>, request: Request) -> BoxFuture<'static, Response>;
}

/// The identity of a caller within the process; trusted by authentication.
#[derive(Clone, Debug)]
pub struct InProcessIdentity(pub(crate) Arc<UserInfo>);

/// The API as a tower service for callers within the process, with one identity.
#[derive(Clone)]
pub struct ApiService {
    target: Arc<dyn Handle>,
    user: Arc<UserInfo>,
}

impl ApiService {
    pub fn new(target: Arc<dyn Handle>, user: UserInfo) -> Self {
        ApiService {
            target,
            user: Arc::new(user),
        }
    }
    /// A client whose transport is this service.
    pub fn client(self) -> kube::Client {
        kube::Client::new(self, "default")
    }
}

impl<B> tower::Service<http::Request<B>> for ApiService
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<crate::request::BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(InProcessIdentity(self.user.clone()));
        let target = self.target.clone();
        if bridge::wants_upgrade(&request) {
            return Box::pin(async move { Ok(bridge::call(target, request).await) });
        }
        Box::pin(async move { Ok(target.handle(request).await) })
    }
}

/// The server's calls to itself: through the whole chain, as `system:apiserver`. Holds the server weakly, since it
/// stands inside it.
#[derive(Clone)]
pub struct Loopback {
    target: Weak<dyn Handle>,
    user: Arc<UserInfo>,
}

impl Loopback {
    pub fn new(target: Weak<dyn Handle>) -> Self {
        Loopback {
            target,
            user: Arc::new(UserInfo::api_server()),
        }
    }
    /// Makes a call; an error only when the server is gone.
    pub async fn call(&self, mut request: Request) -> Result<Response, Infallible> {
        let Some(target) = self.target.upgrade() else {
            return Ok(response::error(&ApiError::new(
                Reason::ServiceUnavailable,
                "the server is shutting down",
            )));
        };
        request.extensions_mut().insert(InProcessIdentity(self.user.clone()));
        Ok(target.handle(request).await)
    }
    pub async fn get(&self, path: &str, accept: &str) -> Result<Response, http::Error> {
        let request = http::Request::get(path)
            .header(http::header::ACCEPT, accept)
            .body(Body::empty())?;
        match self.call(request).await {
            Ok(response) => Ok(response),
            Err(never) => match never {},
        }
    }
    /// Sends an object (or nothing) and reads the object that is answered. Failures are the answered status.
    pub async fn send(&self, method: http::Method, path: &str, body: Option<&Value>) -> ApiResult<Object> {
        self.send_as(method, path, "application/json", body).await
    }
    pub async fn send_as(
        &self,
        method: http::Method,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> ApiResult<Object> {
        let bytes = body
            .map(serde_json::to_vec)
            .transpose()
            .map_err(ApiError::internal)?
            .unwrap_or_default();
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::ACCEPT, "application/json")
            .header(http::header::CONTENT_TYPE, content_type)
            .body(Body::from(bytes))
            .map_err(ApiError::internal)?;
        let answer = match self.call(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        };
        read_object(answer).await
    }
    /// The object at a path; `None` where there is none.
    pub async fn object(&self, path: &str) -> ApiResult<Option<Object>> {
        match self.send(http::Method::GET, path, None).await {
            Ok(object) => Ok(Some(object)),
            Err(e) if e.is(Reason::NotFound) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

const MAX_ANSWER: usize = 256 * 1024 * 1024;

/// The object of a JSON answer, or the error of its status.
pub async fn read_object(answer: Response) -> ApiResult<Object> {
    let status = answer.status();
    let bytes = answer.into_body().collect(MAX_ANSWER).await?;
    let answer = json::decode(&bytes, None, Strictness::Lenient)
        .map_err(|e| ApiError::internal(format!("reading the answer ({status}): {e}")))?;
    let object = Object::try_from(answer.value).map_err(|_| ApiError::internal("the answer is no object"))?;
    if status.is_success() {
        Ok(object)
    } else {
        Err(error_of(status, &object))
    }
}

/// The error that a status object carries.
pub fn error_of(code: StatusCode, status: &Object) -> ApiError {
    let reason = Reason::parse(status.0.str("reason").unwrap_or_default());
    ApiError::new(reason, status.0.str("message").unwrap_or_default()).with_code(code.as_u16())
}

/// The user agent, for logs, metrics and field managers.
pub fn user_agent(headers: &HeaderMap) -> &str {
    headers
        .get(http::header::USER_AGENT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default()
}
