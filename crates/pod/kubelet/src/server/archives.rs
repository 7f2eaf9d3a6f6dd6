//! Archives of images' layers, for other nodes and nobody else.
//!
//! Which node asks is known by its certificate or token, as the API server knows nodes. It names repository and digest of what a
//! registry lets it have; what was pulled here from another repository isn't given ([`crate::config::Archives`]). A few at a time
//! are sent, none for longer than [`LONGEST`]: a node that is sent away asks another, or the registry.

use super::routes::{Query, first};
use super::{Body, Reply, text};
use crate::kubelet::Kubelet;
use futures::StreamExt;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use keelson_client::reviews::User;
use keelson_listen::WriteBy;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::io::ReaderStream;

pub const PATH: &str = "/imageArchives";

/// Sent at a time.
const AT_A_TIME: usize = 8;
const LONGEST: Duration = Duration::from_secs(15 * 60);
const PIECE: usize = 128 << 10;

static PLACES: Semaphore = Semaphore::const_new(AT_A_TIME);

/// As the API server's node authorizer tells them.
fn is_node(user: &User) -> bool {
    user.name
        .strip_prefix("system:node:")
        .is_some_and(|name| !name.is_empty())
        && user.groups.iter().any(|group| group == "system:nodes")
}

pub async fn serve(kl: &Arc<Kubelet>, user: &User, method: &Method, query: &Query) -> Reply {
    if !is_node(user) {
        return text(StatusCode::FORBIDDEN, "Forbidden: archives of images are for nodes\n");
    }
    if *method != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
    }
    let (Some(repository), Some(digest), Some(archives)) = (
        first(query, "repository"),
        first(query, "digest"),
        kl.cfg.archives.clone(),
    ) else {
        return text(StatusCode::BAD_REQUEST, "repository and digest have to be named\n");
    };
    let Ok(place) = PLACES.try_acquire() else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "too many are being sent\n");
    };
    let (repository, digest) = (repository.to_owned(), digest.to_owned());
    let opened = tokio::task::spawn_blocking(move || {
        let file = archives.open(&repository, &digest)?;
        file.map(|file| Ok((file.metadata()?.len(), file))).transpose()
    });
    let (length, file) = match opened.await.map_err(std::io::Error::other).flatten() {
        Ok(Some(found)) => found,
        Ok(None) => return text(StatusCode::NOT_FOUND, "not here\n"),
        Err(error) => {
            tracing::warn!(%error, "an archive of an image can't be read");
            return text(StatusCode::INTERNAL_SERVER_ERROR, "it can't be read\n");
        }
    };
    let pieces = ReaderStream::with_capacity(tokio::fs::File::from_std(file), PIECE);
    let pieces = pieces.map(move |piece| {
        // Held until the last piece has gone.
        let _place = &place;
        piece.map(Frame::data)
    });
    let body: Body = StreamBody::new(pieces).boxed_unsync();
    let mut reply = Response::new(body);
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    reply
        .extensions_mut()
        .insert(WriteBy(tokio::time::Instant::now() + LONGEST));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nodes_are_nodes() {
        let user = |name: &str, groups: &[&str]| User {
            name: name.into(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        };
        assert!(is_node(&user(
            "system:node:a",
            &["system:nodes", "system:authenticated"]
        )));
        assert!(!is_node(&user("system:node:a", &["system:authenticated"])));
        assert!(!is_node(&user("system:node:", &["system:nodes"])));
        assert!(!is_node(&user("ana", &["system:nodes", "system:masters"])));
    }
}
