//! What is done for a request or a pod, step by step and timed, told to a collector of OpenTelemetry.
//!
//! ```text
//! a request ─→ span of the server (`Tracer::begin`) ─→ within(span, work) ─→ child("Create") ─→ its calls to others carry `traceparent`
//! a pod     ─→ created, scheduled, started: spans of several components in one trace, whose id is the pod's UID
//! ```
//!
//! A component has a [`Tracer`], given to it; [`Tracer::none`] is one that is switched off and costs nothing. What is under way in a task
//! is its *current* span: whoever works deeper down asks for a [`child`] of it and needs no tracer of its own. Whether a trace is taken
//! is decided once for all of it ([`sampling`]).
//!
//! Spans wait in a queue of 2048 and are sent in lots of 512, each with a deadline; what has no room is dropped. Nobody waits for a collector.
//! Of a text 512 bytes are told.

mod current;
mod export;
pub mod headers;
pub mod pods;
pub mod rpc;
pub mod sampling;
pub mod settings;
mod span;
mod tracer;

pub use current::{Within, carried, child, step, within};
pub use opentelemetry::trace::SpanKind as Kind;
pub use settings::Settings;
pub use span::Span;
pub use tracer::{Origin, Tracer};
