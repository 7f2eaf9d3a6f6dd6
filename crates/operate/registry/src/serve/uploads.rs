//! Blobs are received: in one request, in two, or in as many as it takes.

use super::body::{self, Coming};
use super::route::{Query, digest};
use super::{DIGEST, Registry, Reply, blocking, empty, set};
use crate::access::{Right, Who};
use crate::error::{Code, Result, refuse, refused};
use crate::names::{Algorithm, Digest, Repository};
use crate::store::{Store, Upload};
use http::header::{CONTENT_RANGE, LOCATION, RANGE};
use http::{HeaderMap, HeaderName, Request, StatusCode};
use hyper::body::Incoming;
use std::sync::Arc;

const UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

impl Registry {
    /// POST: a blob that is here already, a whole one, or the beginning of one.
    pub(super) async fn begin(
        &self,
        repository: Repository,
        who: &Who,
        query: &Query,
        request: Request<Incoming>,
    ) -> Result<Reply> {
        self.check_own(&repository)?;
        if let Some(wanted) = query.get("mount") {
            let wanted = digest(wanted)?;
            if self.mount(&repository, who, &wanted, query.get("from")).await? {
                return Ok(made(&repository, "blobs", &wanted));
            }
        }
        let whole = query.get("digest").map(digest).transpose()?;
        let algorithm = match (&whole, query.get("digest-algorithm")) {
            (Some(digest), _) => digest.algorithm,
            (None, None | Some("sha256")) => Algorithm::Sha256,
            (None, Some("sha512")) => Algorithm::Sha512,
            (None, Some(_)) => return refuse(Code::Unsupported, "digests are of sha256 or sha512"),
        };
        let (store, into) = (self.store.clone(), repository.clone());
        let id = blocking(move || store.begin(&into, algorithm)).await?.to_string();
        let Some(digest) = whole else {
            // A mount that came to nothing has no body either.
            return Ok(underway(&repository, &id, 0, StatusCode::ACCEPTED));
        };
        let _untold = Untold {
            store: self.store.clone(),
            repository: repository.clone(),
            id: id.clone(),
        };
        let upload = self.store.upload(&repository, &id)?;
        self.take(upload, request, Some(digest.clone())).await?;
        Ok(made(&repository, "blobs", &digest))
    }

    async fn mount(&self, to: &Repository, who: &Who, digest: &Digest, from: Option<&str>) -> Result<bool> {
        let candidates = match from {
            Some(from) => Repository::parse(from).into_iter().collect(),
            None => {
                let (store, digest) = (self.store.clone(), digest.clone());
                blocking(move || store.who_has(&digest)).await?
            }
        };
        for from in candidates {
            if self.access.check(who, Right::Pull, Some(&from)).await.is_err() {
                continue;
            }
            let (store, to, digest) = (self.store.clone(), to.clone(), digest.clone());
            match blocking(move || store.mount(&from, &to, &digest)).await {
                Ok(()) => return Ok(true),
                Err(refused) if refused.code == Code::BlobUnknown => {}
                Err(refused) => return Err(refused),
            }
        }
        Ok(false)
    }

    /// PATCH: a piece.
    pub(super) async fn append(&self, repository: Repository, id: &str, request: Request<Incoming>) -> Result<Reply> {
        let upload = self.store.upload(&repository, id)?;
        check_place(request.headers(), upload.written)?;
        let upload = self.take(upload, request, None).await?;
        let written = upload.map_or(0, |upload| upload.written);
        Ok(underway(&repository, id, written, StatusCode::ACCEPTED))
    }

    /// PUT: the last piece, if there is one, and what all of them are.
    pub(super) async fn finish(
        &self,
        repository: Repository,
        id: &str,
        query: &Query,
        request: Request<Incoming>,
    ) -> Result<Reply> {
        let missing = || refused(Code::DigestInvalid, "the digest of what was sent is missing: ?digest=…");
        let digest = digest(query.get("digest").ok_or_else(missing)?)?;
        let upload = self.store.upload(&repository, id)?;
        check_place(request.headers(), upload.written)?;
        self.take(upload, request, Some(digest.clone())).await?;
        Ok(made(&repository, "blobs", &digest))
    }

    /// Writes what comes; what came before it broke off stays, and the client may go on from there.
    async fn take(
        &self,
        mut upload: Upload,
        request: Request<Incoming>,
        end: Option<Digest>,
    ) -> Result<Option<Upload>> {
        let said = body::length(request.headers());
        let mut coming = Coming::new(request.into_body());
        let mut file = self.store.writer(&upload).await?;
        while let Some(piece) = coming.next().await? {
            self.store.append(&mut upload, &mut file, &piece).await?;
            self.measured.received.inc_by(piece.len() as u64);
        }
        drop(file);
        if said.is_some_and(|said| said != coming.came) {
            return refuse(Code::SizeInvalid, "the body has another length than it says");
        }
        let Some(digest) = end else { return Ok(Some(upload)) };
        let store = self.store.clone();
        blocking(move || store.finish(upload, &digest)).await?;
        Ok(None)
    }

    /// GET: how far it is.
    pub(super) async fn progress(&self, repository: Repository, id: &str) -> Result<Reply> {
        let upload = self.store.upload(&repository, id)?;
        Ok(underway(&repository, id, upload.written, StatusCode::NO_CONTENT))
    }

    pub(super) async fn cancel(&self, repository: Repository, id: &str) -> Result<Reply> {
        let upload = self.store.upload(&repository, id)?;
        let store = self.store.clone();
        blocking(move || store.cancel(upload)).await?;
        Ok(empty(StatusCode::NO_CONTENT))
    }
}

/// An upload that nobody was told of: it ends with its request, also when the client is gone in the middle.
struct Untold {
    store: Arc<Store>,
    repository: Repository,
    id: String,
}

impl Drop for Untold {
    fn drop(&mut self) {
        let (store, repository, id) = (self.store.clone(), self.repository.clone(), self.id.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // If all went well it has ended already.
            runtime.spawn_blocking(move || store.upload(&repository, &id).and_then(|upload| store.cancel(upload)));
        }
    }
}

/// A piece that says where it belongs goes there or nowhere.
fn check_place(headers: &HeaderMap, written: u64) -> Result<()> {
    let Some(range) = headers.get(CONTENT_RANGE) else {
        return Ok(());
    };
    let unread = || refused(Code::BlobUploadInvalid, "Content-Range is <first>-<last>");
    let text = range.to_str().map_err(|_| unread())?;
    let text = text
        .trim()
        .trim_start_matches("bytes ")
        .split('/')
        .next()
        .unwrap_or_default();
    let (first, last) = text.split_once('-').ok_or_else(unread)?;
    let (first, last): (u64, u64) = (
        first.parse().map_err(|_| unread())?,
        last.parse().map_err(|_| unread())?,
    );
    if first != written {
        return refuse(
            Code::RangeInvalid,
            format!("the upload has {written} bytes, and goes on there"),
        );
    }
    let said = body::length(headers);
    if last
        .checked_sub(first)
        .and_then(|n| n.checked_add(1))
        .is_none_or(|n| said.is_some_and(|said| said != n))
    {
        return refuse(Code::SizeInvalid, "the range has another length than the body");
    }
    Ok(())
}

fn underway(repository: &Repository, id: &str, written: u64, status: StatusCode) -> Reply {
    let mut reply = empty(status);
    set(&mut reply, LOCATION, &format!("/v2/{repository}/blobs/uploads/{id}"));
    set(&mut reply, RANGE, &format!("0-{}", written.saturating_sub(1)));
    set(&mut reply, UUID, id);
    reply
}

pub(super) fn made(repository: &Repository, kind: &str, digest: &Digest) -> Reply {
    let mut reply = empty(StatusCode::CREATED);
    set(&mut reply, LOCATION, &format!("/v2/{repository}/{kind}/{digest}"));
    set(&mut reply, DIGEST, &digest.to_string());
    reply
}
