//! A file's way into a bucket: in one request if it is small, in parts otherwise. What was there before stays until the last part is.

use super::super::Result;
use super::{Answer, COUNTS, Outcome, S3, SAID, why};
use bytes::Bytes;
use reqwest::Method;
use reqwest::header::ETAG;
use rusty_s3::S3Action;
use rusty_s3::actions::CreateMultipartUpload;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// S3 takes no part but the last that is smaller than 5 MiB.
const PART: u64 = 8 << 20;
/// And no more parts than this.
const PARTS: u64 = 10_000;

/// How large parts are, for a file of this size.
fn part(bytes: u64) -> u64 {
    PART.max(bytes.div_ceil(PARTS).next_multiple_of(1 << 20))
}

pub(super) async fn file(to: &S3, name: &str, from: &Path) -> Result<()> {
    let key = to.key(name)?;
    let failed = |e: std::io::Error| to.failed(name, &format!("{}: {e}", from.display()));
    let file = Arc::new(File::open(from).map_err(failed)?);
    let bytes = file.metadata().map_err(failed)?.len();
    if bytes <= PART {
        let all = read(&file, 0, bytes).await.map_err(failed)?;
        let sign = || to.bucket.put_object(to.signed(), &key).sign(COUNTS);
        return to.done(name, Method::PUT, sign, Some(all)).await.map(drop);
    }
    let sign = || to.bucket.create_multipart_upload(to.signed(), &key).sign(COUNTS);
    let begun = to.done(name, Method::POST, sign, Some(Bytes::new())).await?;
    let begun = CreateMultipartUpload::parse_response(&begun).map_err(|e| to.failed(name, &e.to_string()))?;
    let upload = begun.upload_id();
    let sent = parts(to, name, &key, upload, &file, bytes).await;
    if sent.is_err() {
        let sign = || to.bucket.abort_multipart_upload(to.signed(), &key, upload).sign(COUNTS);
        // What can't be given up is the bucket's to remove (a lifecycle rule); it has no name.
        if let Err(error) = to.ask(name, Method::DELETE, sign, None, SAID).await {
            tracing::warn!(name, %error, "parts of an upload stay in the bucket");
        }
    }
    sent
}

async fn parts(to: &S3, name: &str, key: &str, upload: &str, file: &Arc<File>, bytes: u64) -> Result<()> {
    let failed = |e: std::io::Error| to.failed(name, &e.to_string());
    let size = part(bytes);
    let mut tags = Vec::new();
    for (number, at) in (1u16..).zip((0..bytes).step_by(size as usize)) {
        let piece = read(file, at, size.min(bytes - at)).await.map_err(failed)?;
        tags.push(send(to, name, key, upload, number, piece).await?);
    }
    let action = || {
        to.bucket
            .complete_multipart_upload(to.signed(), key, upload, tags.iter().map(String::as_str))
    };
    let body = Bytes::from(action().body());
    to.done(name, Method::POST, || action().sign(COUNTS), Some(body))
        .await?;
    // Whether all of it has arrived is for the bucket to say.
    let sign = || to.bucket.list_objects_v2(to.signed());
    let listed = || {
        let mut list = sign();
        list.with_prefix(key);
        list.sign(COUNTS)
    };
    let Answer::Whole(page) = to.ask(name, Method::GET, listed, None, super::PAGE).await? else {
        return Err(to.failed(name, "it isn't there after it was sent"));
    };
    let page = rusty_s3::actions::ListObjectsV2::parse_response(&page).map_err(|e| to.failed(name, &e.to_string()))?;
    let found = page.contents.iter().find(|o| o.key.replace("%2F", "/") == key);
    match found.map(|o| o.size) {
        Some(size) if size == bytes => Ok(()),
        Some(size) => Err(to.failed(name, &format!("{size} bytes of {bytes} are there after it was sent"))),
        None => Err(to.failed(name, "it isn't there after it was sent")),
    }
}

/// Gives the part's tag, by which it is named when all are put together.
async fn send(to: &S3, name: &str, key: &str, upload: &str, number: u16, piece: Bytes) -> Result<String> {
    let within = super::SILENCE + Duration::from_secs(piece.len() as u64 / super::SLOWEST);
    let mut tried = 0;
    loop {
        tried += 1;
        let url = to.bucket.upload_part(to.signed(), key, number, upload).sign(COUNTS);
        let sent = to.client.put(url).timeout(within).body(piece.clone()).send().await;
        let outcome = match sent {
            Err(error) => Outcome::Broken(why(&error)),
            Ok(response) => {
                let tag = response.headers().get(ETAG).and_then(|tag| tag.to_str().ok());
                match tag.map(str::to_string).filter(|_| response.status().is_success()) {
                    Some(tag) => return Ok(tag),
                    None if response.status().is_success() => return Err(to.failed(name, "a part got no ETag")),
                    None => to.read(name, response, SAID).await?.0,
                }
            }
        };
        if to.next(name, &outcome, tried).await? == super::Next::Missing {
            return Err(to.failed(name, "the upload isn't there any more"));
        }
    }
}

async fn read(file: &Arc<File>, at: u64, bytes: u64) -> std::io::Result<Bytes> {
    let file = file.clone();
    let read = tokio::task::spawn_blocking(move || {
        let mut piece = vec![0; usize::try_from(bytes).map_err(std::io::Error::other)?];
        file.read_exact_at(&mut piece, at)?;
        Ok(piece.into())
    });
    read.await.unwrap_or_else(|e| Err(std::io::Error::other(e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_file_has_too_many_parts() {
        for bytes in [1, PART + 1, 100 << 30, 4 << 40] {
            assert!(bytes.div_ceil(part(bytes)) <= PARTS, "{bytes}");
        }
        assert_eq!(part(1 << 30), PART);
    }
}
