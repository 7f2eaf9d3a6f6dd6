//! Lists, in pieces: repositories, tags, and what says something of a manifest.

use super::route::Query;
use super::{Registry, Reply, blocking, json, set};
use crate::document::OCI_INDEX;
use crate::error::Result;
use crate::names::{Digest, Repository};
use http::{HeaderName, StatusCode, header};
use serde_json::{Value, json};

/// Names in an answer that doesn't say how many it wants, and at most.
const USUAL: usize = 1000;
const MOST: usize = 10_000;
/// Descriptors in an answer, and bytes that they may take together.
const REFERRERS: usize = 500;
const REFERRERS_BYTES: usize = 4 << 20;
const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

impl Registry {
    pub(super) async fn catalog(&self, query: &Query) -> Result<Reply> {
        let most = query.number(USUAL, MOST)?;
        let (store, last) = (self.store.clone(), query.get("last").unwrap_or_default().to_owned());
        let page = blocking(move || store.repositories(&last, most)).await?;
        let mut reply = json(
            StatusCode::OK,
            "application/json",
            json!({"repositories": page.names}).to_string(),
        );
        if let Some(last) = page.names.last().filter(|_| !page.is_last) {
            more(&mut reply, &format!("/v2/_catalog?n={most}&last={}", encoded(last)));
        }
        Ok(reply)
    }

    pub(super) async fn tags(&self, repository: Repository, query: &Query) -> Result<Reply> {
        let most = query.number(USUAL, MOST)?;
        let (store, name) = (self.store.clone(), repository.clone());
        let last = query.get("last").unwrap_or_default().to_owned();
        let page = blocking(move || store.tags(&name, &last, most)).await?;
        let body = json!({"name": repository.as_str(), "tags": page.names}).to_string();
        let mut reply = json(StatusCode::OK, "application/json", body);
        if let Some(last) = page.names.last().filter(|_| !page.is_last) {
            more(
                &mut reply,
                &format!("/v2/{repository}/tags/list?n={most}&last={}", encoded(last)),
            );
        }
        Ok(reply)
    }

    pub(super) async fn referrers(&self, repository: Repository, of: Digest, query: &Query) -> Result<Reply> {
        let kind = query.get("artifactType").map(str::to_owned);
        let last = query.get("last").unwrap_or_default().to_owned();
        let (store, name, subject, wanted) = (self.store.clone(), repository.clone(), of.clone(), kind.clone());
        let (descriptors, last) = blocking(move || {
            let page = store.referrers(&name, &subject, &last, REFERRERS)?;
            let (mut found, mut bytes) = (Vec::new(), 0);
            let mut is_last = page.is_last;
            let mut seen = None;
            for digest in page.names {
                if bytes > REFERRERS_BYTES {
                    is_last = false;
                    break;
                }
                if let Some(facts) = store.descriptor(&name, &digest)?
                    && wanted
                        .as_ref()
                        .is_none_or(|wanted| facts.artifact_type.as_ref() == Some(wanted))
                {
                    let mut one = json!({"mediaType": facts.media_type, "digest": digest, "size": facts.size});
                    if let Some(kind) = facts.artifact_type {
                        one["artifactType"] = kind.into();
                    }
                    if !facts.annotations.is_empty() {
                        one["annotations"] = json!(facts.annotations);
                    }
                    bytes += one.to_string().len();
                    found.push(one);
                }
                seen = Some(digest);
            }
            Ok((found, seen.filter(|_| !is_last)))
        })
        .await?;
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": Value::Array(descriptors)});
        let mut reply = json(StatusCode::OK, OCI_INDEX, index.to_string());
        if kind.is_some() {
            set(&mut reply, FILTERS, "artifactType");
        }
        if let Some(last) = last {
            let filter = kind
                .map(|k| format!("&artifactType={}", encoded(&k)))
                .unwrap_or_default();
            more(
                &mut reply,
                &format!("/v2/{repository}/referrers/{of}?last={}{filter}", encoded(&last)),
            );
        }
        Ok(reply)
    }
}

/// Where the rest of a list is.
fn more(reply: &mut Reply, next: &str) {
    set(reply, header::LINK, &format!("<{next}>; rel=\"next\""));
}

fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
