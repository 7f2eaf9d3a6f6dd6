//! Manifests: given out, taken, removed.

use super::body::Coming;
use super::route::Query;
use super::uploads::made;
use super::{DIGEST, Registry, Reply, blocking, empty, set, whole};
use crate::document;
use crate::error::{Code, Result, refuse, refused};
use crate::names::{Algorithm, Digest, Reference, Repository, is_tag};
use http::{HeaderName, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;

const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const TAG: HeaderName = HeaderName::from_static("oci-tag");
/// Tags that one push may set beside.
const MOST_TAGS: usize = 32;

impl Registry {
    pub(super) async fn get_manifest(&self, repository: Repository, reference: Reference, head: bool) -> Result<Reply> {
        let _turn = self.turn().await?;
        if let Some(upstream) = self.upstreams.of(&repository) {
            let store = &self.store;
            self.upstreams
                .ensure_manifest(store, upstream, &repository, &reference)
                .await?;
        }
        let store = self.store.clone();
        let manifest = blocking(move || store.manifest(&repository, &reference)).await?;
        let mut reply = whole(StatusCode::OK, manifest.bytes);
        set(&mut reply, header::CONTENT_LENGTH, &manifest.facts.size.to_string());
        if head {
            *reply.body_mut() = Empty::new().map_err(|e| match e {}).boxed_unsync();
        }
        set(&mut reply, header::CONTENT_TYPE, &manifest.facts.media_type);
        set(&mut reply, DIGEST, &manifest.digest.to_string());
        set(&mut reply, header::ETAG, &format!("\"{}\"", manifest.digest));
        Ok(reply)
    }

    pub(super) async fn put_manifest(
        &self,
        repository: Repository,
        reference: Reference,
        query: &Query,
        request: Request<Incoming>,
    ) -> Result<Reply> {
        self.check_own(&repository)?;
        let _turn = self.turn().await?;
        let kind = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .map(str::to_owned);
        let bytes = Coming::new(request.into_body())
            .short(document::LONGEST, "a manifest")
            .await?;
        let facts = document::read(kind.as_deref(), &bytes)?;
        let (digest, mut tags) = match reference {
            Reference::Tag(tag) => (Digest::of(Algorithm::Sha256, &bytes), vec![tag]),
            Reference::Digest(digest) => (digest, Vec::new()),
        };
        if Digest::of(digest.algorithm, &bytes) != digest {
            return refuse(Code::DigestInvalid, format!("the manifest's digest isn't {digest}"));
        }
        let also = query.all("tag");
        if also.len() > MOST_TAGS || !also.iter().all(|tag| is_tag(tag)) {
            return refuse(
                Code::ManifestInvalid,
                format!("?tag= is a tag, up to {MOST_TAGS} times"),
            );
        }
        tags.extend_from_slice(also);
        let mut reply = made(&repository, "manifests", &digest);
        if let Some(subject) = &facts.subject {
            set(&mut reply, SUBJECT, subject);
        }
        also.iter().for_each(|tag| set(&mut reply, TAG, tag));
        let store = self.store.clone();
        blocking(move || {
            let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
            store.put(&repository, &digest, &bytes, &facts, &tags, false)
        })
        .await?;
        Ok(reply)
    }

    pub(super) async fn delete_manifest(&self, repository: Repository, reference: Reference) -> Result<Reply> {
        let store = self.store.clone();
        blocking(move || store.delete(&repository, &reference)).await?;
        Ok(empty(StatusCode::ACCEPTED))
    }

    /// A place among those who have a manifest in memory.
    async fn turn(&self) -> Result<tokio::sync::SemaphorePermit<'_>> {
        let wait = tokio::time::timeout(super::body::SILENCE, self.manifests.acquire());
        let busy = || refused(Code::TooManyRequests, "too many manifests at a time");
        wait.await.map_err(|_| busy())?.map_err(|_| busy())
    }
}
