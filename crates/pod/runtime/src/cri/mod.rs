//! The two gRPC services: translation of requests, errors and lists; the work is elsewhere.

mod image;
mod runtime;

pub use image::import_request;

use std::collections::HashMap;
use std::pin::Pin;

use futures::Stream;
use tonic::Status;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A list in one piece: the streams of CRI only spare the receiver a large message.
fn in_pieces<T: Send + 'static, R: Send + 'static>(items: Vec<T>, wrap: fn(Vec<T>) -> R) -> Answers<R> {
    const PIECE: usize = 100;
    let mut pieces = Vec::new();
    let mut items = items.into_iter().peekable();
    while items.peek().is_some() {
        pieces.push(Ok(wrap(items.by_ref().take(PIECE).collect())));
    }
    Box::pin(futures::stream::iter(pieces))
}

/// An error that has no code of its own, as upstream's runtimes report it.
fn unknown(error: anyhow::Error) -> Status {
    Status::unknown(format!("{error:#}"))
}

fn not_found(kind: &str, id: &str) -> Status {
    Status::not_found(format!("an error occurred when try to find {kind} \"{id}\": not found"))
}

/// Whether all wanted labels are there.
fn matches(wanted: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// A message that must be there.
fn required<T>(message: Option<T>, name: &str) -> Result<T, Status> {
    message.ok_or_else(|| Status::invalid_argument(format!("{name} is required")))
}
