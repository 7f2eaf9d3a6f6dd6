//! Blobs are sent: whole or in part, from the disk piece by piece.

use super::route::{Part, part};
use super::{Body, DIGEST, Registry, Reply, blocking, empty, set};
use crate::error::{Code, Result, refuse};
use crate::names::{Digest, Repository};
use crate::upstream::Fetch;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use std::io::SeekFrom;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

/// Bytes read at a time.
const PIECE: usize = 128 << 10;

impl Registry {
    pub(super) async fn get_blob(
        &self,
        repository: Repository,
        digest: Digest,
        head: bool,
        headers: &HeaderMap,
    ) -> Result<Reply> {
        let range = headers.get(header::RANGE).and_then(|v| v.to_str().ok());
        if let Some(upstream) = self.upstreams.of(&repository)
            && let Some(fetch) = self.upstreams.blob(&self.store, upstream, &repository, &digest).await?
        {
            // A part of it, or what has no length yet, comes when all is here.
            match fetch.length().await? {
                Some(length) if range.is_none() => match self.growing(&fetch, length, &digest, head).await? {
                    Some(reply) => return Ok(reply),
                    // It has come into its place meanwhile.
                    None => fetch.whole().await?,
                },
                _ => fetch.whole().await?,
            }
        }
        let (store, wanted) = (self.store.clone(), digest.clone());
        let (file, length) = blocking(move || store.blob(&repository, &wanted)).await?;
        let (status, first, count) = match part(range, length) {
            Part::Whole => (StatusCode::OK, 0, length),
            Part::Some(first, count) => (StatusCode::PARTIAL_CONTENT, first, count),
            Part::None => return refuse(Code::RangeInvalid, format!("the blob has {length} bytes")),
        };
        let mut reply = empty(status);
        describe(&mut reply, &digest, count);
        if !head {
            let mut file = tokio::fs::File::from_std(file);
            file.seek(SeekFrom::Start(first)).await?;
            let sent = self.measured.sent.clone();
            *reply.body_mut() = pieces(file, count, move |length| {
                sent.inc_by(length);
            });
        }
        if status == StatusCode::PARTIAL_CONTENT {
            let range = format!("bytes {first}-{}/{length}", first + count - 1);
            set(&mut reply, header::CONTENT_RANGE, &range);
        }
        Ok(reply)
    }

    /// A blob that is on its way from a registry behind.
    async fn growing(&self, fetch: &Fetch, length: u64, digest: &Digest, head: bool) -> Result<Option<Reply>> {
        let mut reply = empty(StatusCode::OK);
        describe(&mut reply, digest, length);
        if !head {
            let sent = self.measured.sent.clone();
            let Some(pieces) = fetch.clone().bytes(length).await? else {
                return Ok(None);
            };
            let pieces = pieces.map(move |piece| {
                let piece = piece?;
                sent.inc_by(piece.len() as u64);
                Ok(Frame::data(piece))
            });
            *reply.body_mut() = StreamBody::new(pieces).boxed_unsync();
        }
        Ok(Some(reply))
    }

    pub(super) async fn delete_blob(&self, repository: Repository, digest: Digest) -> Result<Reply> {
        let store = self.store.clone();
        blocking(move || store.delete_blob(&repository, &digest)).await?;
        Ok(empty(StatusCode::ACCEPTED))
    }
}

/// So many bytes of a file from where it stands, read as they are sent; `sent` hears of each piece.
pub(super) fn pieces(file: tokio::fs::File, count: u64, sent: impl Fn(u64) + Send + 'static) -> Body {
    let pieces = ReaderStream::with_capacity(file.take(count), PIECE);
    let pieces = pieces.map(move |piece| {
        let piece = piece?;
        sent(piece.len() as u64);
        Ok(Frame::data(piece))
    });
    StreamBody::new(pieces).boxed_unsync()
}

fn describe(reply: &mut Reply, digest: &Digest, length: u64) {
    set(reply, header::CONTENT_LENGTH, &length.to_string());
    set(reply, DIGEST, &digest.to_string());
    set(reply, header::ETAG, &format!("\"{digest}\""));
    let headers = reply.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
}
