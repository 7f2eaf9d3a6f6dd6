//! A component's own teller of traces.

use crate::export;
use crate::sampling::Rate;
use crate::settings::Settings;
use crate::span::{Span, bounded};
use crate::{Kind, headers, pods};
use anyhow::{Context as _, Result};
use http::HeaderMap;
use opentelemetry::trace::{Link, SpanBuilder, SpanId, TraceContextExt, TraceId, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, IdGenerator, RandomIdGenerator, Sampler, SdkTracer, SdkTracerProvider,
    SpanExporter,
};
use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How long spans wait for company.
const DELAY: Duration = Duration::from_secs(1);
/// Spans that wait to be sent: some 2 MB, and at most 10 since texts are bounded. More are dropped, and counted by the collector's own clients as every exporter of OTLP does.
const QUEUE: usize = 2048;
/// How long the end of a component waits for a collector.
const LAST: Duration = Duration::from_secs(3);

/// Tells a component's spans; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    rate: Rate,
}

/// Of what a piece of work is a part.
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    /// Of what the caller says.
    Caller(&'a HeaderMap),
    /// Of nothing: what a caller says that isn't believed is pointed to only, so that nobody has others' machines fill a collector.
    Stranger(&'a HeaderMap),
    /// Of the life of the pod with this UID.
    Pod(&'a str),
}

impl Tracer {
    /// One that is switched off.
    pub fn none() -> Tracer {
        Tracer::default()
    }

    /// To be made within a tokio runtime. `service` is the component's name, `instance` tells it from its like.
    pub fn new(settings: &Settings, service: &'static str, instance: &str) -> Result<Tracer> {
        let exporter = export::to(settings).context("telling traces")?;
        Ok(Tracer::with(exporter, settings.rate, service, instance))
    }

    /// One by which another exporter is told.
    pub fn with(exporter: impl SpanExporter + 'static, rate: Rate, service: &'static str, instance: &str) -> Tracer {
        let lots = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_scheduled_delay(DELAY);
        let processor = BatchSpanProcessor::builder(exporter)
            .with_batch_config(lots.build())
            .build();
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attribute(KeyValue::new("service.instance.id", instance.to_owned()))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(rate)))
            .with_id_generator(Ids::default())
            .with_span_processor(processor)
            .with_resource(resource.build())
            .build();
        let tracer = provider.tracer("keelson");
        Tracer(Some(Arc::new(Inner { provider, tracer, rate })))
    }

    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins something that isn't a part of what this task does.
    pub fn begin(&self, kind: Kind, name: impl Into<Cow<'static, str>>, origin: Origin<'_>) -> Span {
        let Some(inner) = &self.0 else { return Span::none() };
        let (parent, links) = match origin {
            Origin::Caller(said) => (headers::extract(said), Vec::new()),
            Origin::Stranger(said) => (
                None,
                headers::extract(said).map(Link::with_context).into_iter().collect(),
            ),
            Origin::Pod(uid) => (pods::origin(uid, inner.rate), Vec::new()),
        };
        let parent = parent.map_or_else(Context::new, |span| Context::new().with_remote_span_context(span));
        self.start(kind, name.into(), &parent, links)
    }

    /// Tells that a pod came to be, from `began` on, as part of what this task does: the first span of the pod's trace.
    pub fn pod_created(&self, uid: &str, name: impl FnOnce() -> String, began: SystemTime) {
        let Some(inner) = &self.0 else { return };
        let Some((ids, origin)) = pods::ids(uid).zip(pods::origin(uid, inner.rate)) else {
            return;
        };
        let by = Context::map_current(|cx| cx.span().span_context().clone());
        // Who looks at the request finds the pod's trace, and the other way round.
        Context::map_current(|cx| cx.span().add_link(origin.clone(), Vec::new()));
        if !origin.is_sampled() {
            return;
        }
        let builder = SpanBuilder::from_name(bounded(name().into()))
            .with_start_time(began)
            .with_links(by.is_valid().then(|| Link::with_context(by)).into_iter().collect());
        NEXT.set(Some(ids));
        drop(inner.tracer.build_with_context(builder, &Context::new()));
        NEXT.set(None);
    }

    pub(crate) fn start(&self, kind: Kind, name: Cow<'static, str>, parent: &Context, links: Vec<Link>) -> Span {
        let Some(inner) = &self.0 else { return Span::none() };
        let builder = SpanBuilder::from_name(bounded(name)).with_kind(kind).with_links(links);
        let span = inner.tracer.build_with_context(builder, parent);
        Span::of(Context::new().with_span(span).with_value(self.clone()))
    }

    /// Sends what waits, and ends: spans that begin later are told nobody.
    pub async fn end(self) {
        let Some(inner) = self.0 else { return };
        let last = tokio::task::spawn_blocking(move || inner.provider.shutdown_with_timeout(LAST)).await;
        if let Ok(Err(error)) = last {
            tracing::debug!("the last spans are lost: {error}");
        }
    }
}

thread_local! {
    /// Ids of the next span that begins on this thread, where they aren't to be any.
    static NEXT: Cell<Option<(TraceId, SpanId)>> = const { Cell::new(None) };
}

#[derive(Debug, Default)]
struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        NEXT.get().map_or_else(|| self.0.new_trace_id(), |(trace, _)| trace)
    }

    fn new_span_id(&self) -> SpanId {
        NEXT.get().map_or_else(|| self.0.new_span_id(), |(_, span)| span)
    }
}
