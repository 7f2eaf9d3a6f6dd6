//! Copies of requests for other backends, whose answers are nobody's. A copy never delays the request: one that is slow is broken off.

use super::body::{Copying, Outgoing};
use super::clients::{Clients, To};
use bytes::Bytes;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use keelson_listen::BoxError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Copies under way on a node; further ones aren't made.
pub const MOST: usize = 256;
/// Pieces of a body that wait for a copy's backend.
const PIECES: usize = 16;
const WITHIN: Duration = Duration::from_secs(60);

/// A copy's body, and by what it is fed.
pub fn body(empty: bool) -> (Outgoing, Option<Copying>) {
    if empty {
        return (Empty::new().map_err(|never| match never {}).boxed_unsync(), None);
    }
    let (to, pieces) = mpsc::channel::<Bytes>(PIECES);
    let whole = Arc::new(AtomicBool::new(false));
    let copying = Copying {
        to,
        whole: whole.clone(),
    };
    let stream = futures::stream::unfold(Some((pieces, whole)), |state| async move {
        let (mut pieces, whole) = state?;
        match pieces.recv().await {
            Some(piece) => Some((Ok(Frame::data(piece)), Some((pieces, whole)))),
            None if whole.load(Ordering::Acquire) => None,
            None => Some((Err(BoxError::from("the copy was broken off")), None)),
        }
    });
    (StreamBody::new(stream).boxed_unsync(), Some(copying))
}

pub fn send(clients: Clients, to: To, request: Request<Outgoing>, place: OwnedSemaphorePermit) {
    tokio::spawn(async move {
        let sent = clients.request(&to, request);
        if tokio::time::timeout(WITHIN, sent).await.is_err() {
            tracing::debug!(address = %to.address, "a mirror took too long");
        }
        drop(place);
    });
}
