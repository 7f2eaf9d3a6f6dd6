//! Manifests: given out, taken, removed.

use super::blobs::pieces;
use super::body::Coming;
use super::route::Query;
use super::uploads::made;
use super::{DIGEST, Registry, Reply, blocking, empty, set, turn};
use crate::document;
use crate::error::{Code, Result, refuse};
use crate::names::{Algorithm, Digest, Reference, Repository, is_tag};
use http::{HeaderName, Request, StatusCode, header};
use hyper::body::Incoming;

const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const TAG: HeaderName = HeaderName::from_static("oci-tag");
/// Tags that one push may set beside.
const MOST_TAGS: usize = 32;

impl Registry {
    pub(super) async fn get_manifest(&self, repository: Repository, reference: Reference, head: bool) -> Result<Reply> {
        if let Some(upstream) = self.upstreams.of(&repository) {
            let (store, places) = (&self.store, &self.manifests.fetched);
            self.upstreams
                .ensure_manifest(store, upstream, &repository, &reference, places)
                .await?;
        }
        let _turn = turn(&self.manifests.given).await?;
        let store = self.store.clone();
        let manifest = blocking(move || store.manifest(&repository, &reference)).await?;
        let mut reply = empty(StatusCode::OK);
        let length = manifest.facts.size;
        set(&mut reply, header::CONTENT_LENGTH, &length.to_string());
        if !head {
            // As it is read by who asked: those who don't read have nothing in memory.
            *reply.body_mut() = pieces(tokio::fs::File::from_std(manifest.file), length, |_| {});
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
        let _turn = turn(&self.manifests.taken).await?;
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
}
