//! A CRI server on a unix socket, for kubelets of other processes and for crictl.

use std::future::Future;

use anyhow::Context;
use keelson_trace::Tracer;
use keelson_trace::rpc::Served;

use crate::MAX_MESSAGE_BYTES;
use crate::clients::socket_path;
use crate::v1::image_service_server::{ImageService, ImageServiceServer};
use crate::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};

/// Serves both services on `endpoint` (`unix:///…`) until `stop` resolves, then lets running calls finish.
///
/// Calls that are parts of traces are told by `tracer`. The socket is private to root. One that another live server holds is refused; a stale one is replaced.
pub async fn serve<R: RuntimeService, I: ImageService>(
    endpoint: &str,
    runtime: R,
    image: I,
    tracer: Tracer,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    let path = socket_path(endpoint)?;
    let listener = keelson_grpc::bind(&path).await?;
    let served = tonic::transport::Server::builder()
        .layer(tower::layer::layer_fn(move |service| {
            Served::new(service, tracer.clone())
        }))
        .add_service(limited_runtime(RuntimeServiceServer::new(runtime)))
        .add_service(limited_image(ImageServiceServer::new(image)))
        .serve_with_incoming_shutdown(listener, stop)
        .await;
    keelson_grpc::unbind(&path)?;
    served.with_context(|| format!("CRI server on {}", path.display()))
}

pub(crate) fn limited_runtime<R: RuntimeService>(server: RuntimeServiceServer<R>) -> RuntimeServiceServer<R> {
    server
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

pub(crate) fn limited_image<I: ImageService>(server: ImageServiceServer<I>) -> ImageServiceServer<I> {
    server
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}
