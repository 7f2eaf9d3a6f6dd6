//! To the collector; that it can't be reached is said once, and that it can be again.

use crate::settings::{Endpoint, Settings};
use anyhow::Result;
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::SpanData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a lot may take to be taken.
const SEND: Duration = Duration::from_secs(10);

/// To be made within a tokio runtime; connects when there is something to send.
pub fn to(settings: &Settings) -> Result<Telling<SpanExporter>> {
    let builder = SpanExporter::builder().with_tonic().with_timeout(SEND);
    let builder = match &settings.endpoint {
        Endpoint::Host(host) => builder.with_endpoint(format!("http://{host}")),
        Endpoint::Socket(path) => builder.with_channel(keelson_grpc::channel(path)),
    };
    Ok(Telling::new(builder.build()?))
}

/// An exporter of which it is told whether it works.
#[derive(Debug)]
pub struct Telling<E> {
    inner: E,
    lost: Arc<AtomicBool>,
}

impl<E> Telling<E> {
    pub fn new(inner: E) -> Self {
        Telling {
            inner,
            lost: Arc::default(),
        }
    }
}

impl<E: opentelemetry_sdk::trace::SpanExporter> opentelemetry_sdk::trace::SpanExporter for Telling<E> {
    fn export(&self, batch: Vec<SpanData>) -> impl Future<Output = OTelSdkResult> + Send {
        let spans = batch.len();
        let sent = self.inner.export(batch);
        let lost = self.lost.clone();
        async move {
            let result = sent.await;
            match &result {
                Ok(()) if lost.swap(false, Ordering::Relaxed) => {
                    tracing::info!("the collector of traces takes them again")
                }
                Err(error) if !lost.swap(true, Ordering::Relaxed) => {
                    tracing::warn!(
                        "{spans} spans are lost, the collector of traces doesn't take them, and more may be: {error}"
                    );
                }
                _ => {}
            }
            result
        }
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
