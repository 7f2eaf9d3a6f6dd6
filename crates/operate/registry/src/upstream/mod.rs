//! Registries behind this one: what is asked for under their names is fetched, kept, and given out from then on.
//!
//! Content is taken if it is what its digest says. A tag is believed for [`FRESH`]; then its registry is asked again, and what is
//! here serves only if that can't be reached. Who they are asked as is the file of registries' to say; what a client shows
//! here goes no further.

mod fetch;

use crate::document;
use crate::error::{Code, Refused, Result, refuse, refused};
use crate::measured::Measured;
use crate::names::{Digest, Reference, Repository};
use crate::serve::{blocking, turn};
use crate::store::Store;
pub use fetch::Fetch;
use fetch::Fetches;
use keelson_oci::client::{Registry, RegistryError};
use keelson_oci::registries::Registries;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// For how long a tag isn't asked about again.
const FRESH: Duration = Duration::from_secs(60);
/// An answer of a registry behind takes no longer than this, but for blobs.
const WITHIN: Duration = Duration::from_secs(30);
/// And who wants a manifest that somebody else asks for already waits no longer than this.
const WAITING: Duration = Duration::from_secs(60);
/// Repositories whose clients are kept, with the tokens that they have.
const CLIENTS: usize = 256;

/// A registry behind: what its repositories stand under, and how it is called by images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub name: String,
    pub registry: String,
}

impl Upstream {
    /// `docker.io`, or `name=registry.example:5000` for what is no name here.
    pub fn parse(text: &str) -> anyhow::Result<Upstream> {
        let (name, registry) = text.split_once('=').unwrap_or((text, text));
        anyhow::ensure!(
            Repository::parse(name).is_some() && !name.contains('/'),
            "{name:?} can't be the first part of a repository's name: give NAME={registry}"
        );
        anyhow::ensure!(
            !registry.is_empty() && !registry.contains(['/', '@', '?', '#', ' ']),
            "{registry:?} is no registry: a host, with :port if need be"
        );
        Ok(Upstream {
            name: name.to_owned(),
            registry: registry.to_owned(),
        })
    }
}

type Asking = Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>;

/// Who waits for the same manifest as others. The last one leaves nothing behind, also if his client has given up.
struct Turn<'a> {
    asking: &'a Asking,
    key: String,
    lock: Arc<tokio::sync::Mutex<()>>,
}

impl<'a> Turn<'a> {
    fn new(asking: &'a Asking, key: String) -> Turn<'a> {
        let lock = asking.lock().entry(key.clone()).or_default().clone();
        Turn { asking, key, lock }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut asking = self.asking.lock();
        if asking.get(&self.key).is_some_and(|t| Arc::strong_count(t) <= 2) {
            asking.remove(&self.key);
        }
    }
}

pub struct Upstreams {
    all: Vec<Upstream>,
    registries: Registries,
    clients: Mutex<HashMap<Repository, Arc<Vec<Registry>>>>,
    /// Manifests that are being asked for: whoever wants the same waits.
    asking: Asking,
    fetches: Fetches,
    measured: Measured,
}

impl Upstreams {
    pub fn new(all: Vec<Upstream>, registries: Registries, measured: Measured) -> Upstreams {
        Upstreams {
            all,
            registries,
            clients: Mutex::default(),
            asking: Mutex::default(),
            fetches: Fetches::default(),
            measured,
        }
    }

    /// Under which name the repositories stand of a registry that images name.
    pub fn name_of(&self, registry: &str) -> Option<&str> {
        self.all
            .iter()
            .find(|u| u.registry == registry)
            .map(|u| u.name.as_str())
    }

    /// The registry behind a repository.
    pub fn of(&self, repository: &Repository) -> Option<&Upstream> {
        let (first, _) = repository.namespace()?;
        self.all.iter().find(|u| u.name == first)
    }

    fn clients(&self, upstream: &Upstream, repository: &Repository) -> Result<Arc<Vec<Registry>>> {
        if let Some(known) = self.clients.lock().get(repository) {
            return Ok(known.clone());
        }
        let there = repository.namespace().map(|(_, rest)| rest).unwrap_or_default();
        let failed = |error: String| {
            tracing::warn!(registry = upstream.registry, error, "a registry behind can't be asked");
            refused(
                Code::Unavailable,
                format!("{} can't be asked: see this registry's log", upstream.registry),
            )
        };
        let endpoints = self
            .registries
            .endpoints(&upstream.registry, there)
            .map_err(|e| failed(format!("{e:#}")))?;
        let made = endpoints.into_iter().map(|endpoint| {
            let credentials = endpoint.credentials.clone();
            Registry::new(endpoint, credentials).map_err(|e| failed(e.to_string()))
        });
        let made = Arc::new(made.collect::<Result<Vec<_>>>()?);
        let mut clients = self.clients.lock();
        if clients.len() >= CLIENTS {
            clients.clear();
        }
        clients.insert(repository.clone(), made.clone());
        Ok(made)
    }

    /// Sees to it that a manifest is here, as it is now. A place is waited for before a registry behind is asked.
    pub async fn ensure_manifest(
        &self,
        store: &Arc<Store>,
        upstream: &Upstream,
        repository: &Repository,
        reference: &Reference,
        places: &Semaphore,
    ) -> Result<()> {
        if is_here(store, repository, reference).await? {
            return Ok(());
        }
        let mine = Turn::new(&self.asking, format!("{repository} {reference:?}"));
        let Ok(_turn) = tokio::time::timeout(WAITING, mine.lock.lock()).await else {
            // As when this one had asked, and got no answer: what is here serves.
            return match known(store, repository, reference).await? {
                Some(_) => Ok(()),
                None => refuse(
                    Code::Unavailable,
                    format!("{} doesn't answer in time", upstream.registry),
                ),
            };
        };
        if is_here(store, repository, reference).await? {
            return Ok(());
        }
        let _place = turn(places).await?;
        self.ask(store, upstream, repository, reference).await
    }

    async fn ask(
        &self,
        store: &Arc<Store>,
        upstream: &Upstream,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<()> {
        let known = match reference {
            Reference::Tag(_) => known(store, repository, reference).await?,
            Reference::Digest(_) => None,
        };
        let mut last = None;
        for client in self.clients(upstream, repository)?.iter() {
            let asked = tokio::time::timeout(
                WITHIN,
                self.ask_one(client, store, upstream, repository, reference, known.as_ref()),
            );
            let error = match asked.await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(Asked::Here(refused))) => return Err(refused),
                Ok(Err(Asked::There(error))) => error,
                Err(_) => RegistryError::Failed(format!("{} doesn't answer in time", upstream.registry)),
            };
            tracing::info!(%repository, registry = upstream.registry, %error, "a registry behind");
            last = Some(error);
        }
        match (last, reference, known) {
            (Some(RegistryError::NotFound(_)), Reference::Tag(_), Some(_)) => {
                let (store, name, tag) = (store.clone(), repository.clone(), reference.clone());
                blocking(move || store.delete(&name, &tag)).await?;
                Err(not_there(upstream))
            }
            (Some(RegistryError::NotFound(_)), ..) => Err(not_there(upstream)),
            (Some(RegistryError::Unauthorized(_)), ..) => refuse(
                Code::Denied,
                format!("{} doesn't give this to the registry here", upstream.registry),
            ),
            (_, _, Some(_)) => {
                tracing::warn!(%repository, registry = upstream.registry, "what is here of a tag is given out, its registry can't be reached");
                Ok(())
            }
            _ => refuse(Code::Unavailable, format!("{} can't be reached", upstream.registry)),
        }
    }

    async fn ask_one(
        &self,
        client: &Registry,
        store: &Arc<Store>,
        upstream: &Upstream,
        repository: &Repository,
        reference: &Reference,
        known: Option<&Digest>,
    ) -> std::result::Result<(), Asked> {
        let name = match reference {
            Reference::Tag(tag) => tag.clone(),
            Reference::Digest(digest) => digest.to_string(),
        };
        if let (Reference::Tag(tag), Some(known)) = (reference, known) {
            self.count(upstream, "tag");
            let told = client.manifest_digest(&name).await.map_err(Asked::There)?;
            if told.as_deref() == Some(known.to_string().as_str()) {
                let (store, name, tag) = (store.clone(), repository.clone(), tag.clone());
                return blocking(move || store.confirm_tag(&name, &tag))
                    .await
                    .map_err(Asked::Here);
            }
        }
        self.count(upstream, "manifest");
        let (kind, bytes) = client
            .manifest_as_it_came(&name, document::LONGEST as u64)
            .await
            .map_err(Asked::There)?;
        let (digest, tag) = match reference {
            Reference::Digest(digest) => (digest.clone(), None),
            Reference::Tag(tag) => (Digest::of(crate::names::Algorithm::Sha256, &bytes), Some(tag.clone())),
        };
        if Digest::of(digest.algorithm, &bytes) != digest {
            return Err(Asked::There(RegistryError::Failed(format!(
                "{digest} isn't what was sent for it"
            ))));
        }
        let facts = document::read(kind.as_deref(), &bytes)
            .map_err(|refused| Asked::There(RegistryError::Failed(refused.message)))?;
        let (store, name) = (store.clone(), repository.clone());
        blocking(move || {
            let tags: Vec<&str> = tag.as_deref().into_iter().collect();
            store.put(&name, &digest, &bytes, &facts, &tags, true)
        })
        .await
        .map_err(Asked::Here)
    }

    /// A blob that isn't here on its way, shared by all who want it; None: it is here.
    pub async fn blob(
        &self,
        store: &Arc<Store>,
        upstream: &Upstream,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Fetch>> {
        let (here, name, wanted) = (store.clone(), repository.clone(), digest.clone());
        if blocking(move || Ok(here.has_blob(&name, &wanted))).await? {
            return Ok(None);
        }
        let clients = self.clients(upstream, repository)?;
        let counted = || self.count(upstream, "blob");
        self.fetches
            .share(clients, store, upstream, repository, digest, counted)
            .await
    }

    fn count(&self, upstream: &Upstream, what: &str) {
        self.measured
            .fetched
            .with_label_values(&[&upstream.registry, what])
            .inc();
    }
}

/// Why asking came to nothing: by what is there, or by what is here.
enum Asked {
    There(RegistryError),
    Here(Refused),
}

fn not_there(upstream: &Upstream) -> Refused {
    refused(
        Code::ManifestUnknown,
        format!("{} has no such manifest", upstream.registry),
    )
}

async fn is_here(store: &Arc<Store>, repository: &Repository, reference: &Reference) -> Result<bool> {
    let (here, name, wanted) = (store.clone(), repository.clone(), reference.clone());
    let fresh = blocking(move || {
        Ok(match &wanted {
            Reference::Digest(_) => true,
            Reference::Tag(tag) => here.tag_age(&name, tag).is_some_and(|age| age < FRESH),
        })
    });
    Ok(fresh.await? && known(store, repository, reference).await?.is_some())
}

/// Which manifest that is here is meant, however old what is said of it.
async fn known(store: &Arc<Store>, repository: &Repository, reference: &Reference) -> Result<Option<Digest>> {
    let (store, name, reference) = (store.clone(), repository.clone(), reference.clone());
    blocking(move || match store.resolve(&name, &reference) {
        Ok(digest) => Ok(Some(digest)),
        Err(refused) if refused.code == Code::ManifestUnknown => Ok(None),
        Err(refused) => Err(refused),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_behind_has_a_name_here() {
        let of = |text: &str| Upstream::parse(text).map(|u| (u.name, u.registry)).ok();
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(of("docker.io"), pair("docker.io", "docker.io"));
        assert_eq!(of("corp=registry.example:5000"), pair("corp", "registry.example:5000"));
        for bad in ["", "a/b", "registry.example:5000", "a=", "a=b/c", "../x=y", "a=u@h"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
