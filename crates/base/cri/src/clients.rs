//! One client type for every place a runtime can be.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use keelson_trace::Tracer;
use keelson_trace::rpc::Served;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};

use crate::bounded::Bounded;
use crate::observed::{Observed, Observer};
use crate::v1::image_service_client::ImageServiceClient;
use crate::v1::image_service_server::{ImageService, ImageServiceServer};
use crate::v1::runtime_service_client::RuntimeServiceClient;
use crate::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use crate::{MAX_MESSAGE_BYTES, serve};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A transport to a CRI server: a channel over a socket, or the server itself.
#[derive(Clone)]
pub struct CriService(BoxCloneSyncService<http::Request<Body>, http::Response<Body>, BoxError>);

impl CriService {
    /// Wraps any gRPC-speaking service.
    pub fn new<S, E>(service: S) -> Self
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = E> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        E: Into<BoxError> + 'static,
    {
        CriService(BoxCloneSyncService::new(service.map_err(Into::into)))
    }
}

impl Service<http::Request<Body>> for CriService {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.0.call(request)
    }
}

/// What a kubelet needs of a runtime: cheap to clone, usable from any task.
#[derive(Clone)]
pub struct CriClients {
    pub runtime: RuntimeServiceClient<CriService>,
    pub image: ImageServiceClient<CriService>,
    transports: [CriService; 2],
}

impl CriClients {
    /// Clients whose transport is the server itself: no socket, no second code path.
    pub fn in_process<R: RuntimeService, I: ImageService>(runtime: R, image: I) -> Self {
        CriClients::new(
            CriService::new(serve::limited_runtime(RuntimeServiceServer::new(runtime))),
            CriService::new(serve::limited_image(ImageServiceServer::new(image))),
        )
    }

    /// Clients of a runtime behind a socket, e.g. `unix:///run/containerd/containerd.sock`.
    ///
    /// Fails when nobody answers there; a later loss of the connection is repaired at the next call.
    pub async fn connect(endpoint: &str) -> anyhow::Result<Self> {
        let path = socket_path(endpoint)?;
        let channel = keelson_grpc::connect(&path)
            .await
            .with_context(|| format!("no container runtime answers on {}", path.display()))?;
        Ok(CriClients::new(
            CriService::new(channel.clone()),
            CriService::new(channel),
        ))
    }

    /// The same clients, whose calls end after a time; see [`crate::Waits`].
    pub fn bounded(&self, limit: Duration) -> Self {
        let [runtime, image] = &self.transports;
        let bounded = |inner: &CriService| CriService::new(Bounded::new(inner.clone(), limit));
        CriClients::new(bounded(runtime), bounded(image))
    }

    /// The same clients, whose calls the server tells as parts of traces.
    pub fn traced(&self, tracer: &Tracer) -> Self {
        let [runtime, image] = &self.transports;
        let traced = |inner: &CriService| CriService::new(Served::new(inner.clone(), tracer.clone()));
        CriClients::new(traced(runtime), traced(image))
    }

    /// The same clients, of whose calls somebody is told.
    pub fn observed(&self, observer: Observer) -> Self {
        let [runtime, image] = &self.transports;
        let observed = |inner: &CriService| CriService::new(Observed::new(inner.clone(), observer.clone()));
        CriClients::new(observed(runtime), observed(image))
    }

    fn new(runtime: CriService, image: CriService) -> Self {
        CriClients {
            transports: [runtime.clone(), image.clone()],
            runtime: RuntimeServiceClient::new(runtime)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
            image: ImageServiceClient::new(image)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        }
    }
}

/// The path that `endpoint` names.
pub(crate) fn socket_path(endpoint: &str) -> anyhow::Result<PathBuf> {
    keelson_grpc::socket_path("container runtime", endpoint)
}
