//! Images from registries: which endpoints are asked, and what is made of their answers.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use keelson_oci::client::{Registry, RegistryError};

use super::archives::Wanted;
use super::layers::{Expected, verify};
use super::manifest::{Descriptor, ImageConfig, MAX_DOCUMENT, MAX_MANIFEST, Manifest};
use super::reference::{Reference, is_digest};
use super::registries::{Credentials, Endpoint, Policy};
use super::signatures;
use super::{Busy, Image, Images, Name, digest};

/// Layers downloaded at once.
const CONCURRENT: usize = 3;

#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Unauthorized(String),
    /// Nobody signed it who should have.
    #[error("{0}")]
    Unsigned(String),
    #[error("{0}")]
    Failed(String),
}

impl Images {
    /// Gets an image, from a mirror or from the registry itself. Already present layers are not downloaded.
    pub async fn pull(self: &Arc<Self>, name: &str, given: Credentials) -> Result<Arc<Image>, PullError> {
        let reference = Reference::parse(name).map_err(|e| PullError::Invalid(e.to_string()))?;
        let _busy = Busy::new(self);
        let turn = Turn::new(self, reference.to_string());
        let _turn = turn.lock.lock().await;
        self.pull_from_any(&reference, &given).await
    }

    async fn pull_from_any(
        self: &Arc<Self>,
        reference: &Reference,
        given: &Credentials,
    ) -> Result<Arc<Image>, PullError> {
        let endpoints = self
            .registries
            .endpoints(&reference.registry, &reference.repository)
            .map_err(|e| PullError::Invalid(format!("{e:#}")))?;
        let policy = self.registries.policy(&reference.name());
        let policy = policy.map_err(|e| PullError::Unsigned(format!("SignatureValidationFailed: {e:#}")))?;
        let mut failures: Vec<(String, PullError)> = Vec::new();
        for endpoint in endpoints {
            let host = endpoint.host.clone();
            let pulled = match Attempt::new(endpoint, reference, given) {
                Ok(attempt) => attempt.pull(self, policy.as_ref()).await,
                Err(error) => Err(error),
            };
            match pulled {
                Ok(image) => return Ok(image),
                Err(error) => {
                    tracing::info!(image = %reference, endpoint = host, %error, "pull failed");
                    failures.push((host, error));
                }
            }
        }
        Err(verdict(reference, failures))
    }
}

/// A pull among those of the same image. The last one leaves nothing behind, also if its client has given up.
struct Turn<'a> {
    images: &'a Images,
    key: String,
    lock: Arc<tokio::sync::Mutex<()>>,
}

impl<'a> Turn<'a> {
    fn new(images: &'a Images, key: String) -> Turn<'a> {
        let lock = images.pulling.lock().entry(key.clone()).or_default().clone();
        Turn { images, key, lock }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut pulling = self.images.pulling.lock();
        if pulling.get(&self.key).is_some_and(|t| Arc::strong_count(t) <= 2) {
            pulling.remove(&self.key);
        }
    }
}

/// One error of those of all endpoints. What the last one says decides, for it is the registry itself; but one that
/// only could not be reached leaves it to those before.
fn verdict(reference: &Reference, failures: Vec<(String, PullError)>) -> PullError {
    let text = match failures.as_slice() {
        [] => "no registry to ask".to_owned(),
        [(_, only)] => only.to_string(),
        several => {
            let told: Vec<String> = several.iter().map(|(host, error)| format!("{host}: {error}")).collect();
            told.join("; ")
        }
    };
    let text = format!("failed to pull and unpack image \"{reference}\": {text}");
    let decisive = failures.into_iter().rev().map(|(_, error)| error);
    match decisive.into_iter().find(|e| !matches!(e, PullError::Failed(_))) {
        Some(PullError::NotFound(_)) => PullError::NotFound(text),
        Some(PullError::Unauthorized(_)) => PullError::Unauthorized(text),
        // The kubelet tells by the first word what it is.
        Some(PullError::Unsigned(_)) => PullError::Unsigned(format!("SignatureValidationFailed: {text}")),
        _ => PullError::Failed(text),
    }
}

/// Asking one endpoint.
struct Attempt {
    registry: Registry,
    reference: Reference,
}

impl Attempt {
    fn new(endpoint: Endpoint, reference: &Reference, given: &Credentials) -> Result<Attempt, PullError> {
        // What comes with a pull is meant for the registry that the image names, and nobody who stands for it.
        let credentials = if *given == Credentials::None || endpoint.stands_for.is_some() {
            endpoint.credentials.clone()
        } else {
            given.clone()
        };
        Ok(Attempt {
            registry: Registry::new(endpoint, credentials).map_err(failed)?,
            reference: reference.clone(),
        })
    }

    /// The manifest always comes from the registry, asked with the credentials of the pull: what it lets this node have may then
    /// come from others.
    async fn pull(&self, images: &Arc<Images>, policy: Option<&Policy>) -> Result<Arc<Image>, PullError> {
        let (top, mut manifest) = self.manifest(None).await?;
        if let Some(policy) = policy {
            let checked = signatures::check(&self.registry, &self.reference, &top, policy).await;
            checked.map_err(PullError::Unsigned)?;
        }
        let from = Origin::new(images, &self.reference, &top);
        let mut size = 0;
        if manifest.is_index() {
            let chosen = manifest
                .for_this_machine()
                .cloned()
                .ok_or_else(|| PullError::NotFound("no match for platform in manifest: not found".to_owned()))?;
            size = chosen.size;
            manifest = self.manifest(Some(&chosen.digest)).await?.1;
        }
        let descriptor = manifest
            .config
            .as_ref()
            .ok_or_else(|| PullError::Failed("the manifest names no configuration".into()))?;
        let config = self.config(&from, descriptor).await?;
        let parsed: ImageConfig = serde_json::from_slice(&config).map_err(|e| PullError::Failed(e.to_string()))?;
        parsed
            .check_layers(manifest.layers.len())
            .map_err(|e| PullError::Failed(e.to_string()))?;
        // A manifest may say anything of sizes.
        let sizes = manifest.layers.iter().map(|l| l.size).chain([descriptor.size]);
        size = sizes.fold(size, u64::saturating_add);
        self.layers(&from, &manifest.layers, &parsed).await?;
        from.tell();
        let mut names = vec![Name::Digest(self.reference.with_digest(&top))];
        if self.reference.tag.is_some() {
            names.push(Name::Tag(self.reference.to_string()));
        }
        let images = images.clone();
        blocking(move || images.add(&config, parsed, size, &names)).await
    }

    /// A manifest with its digest, which is verified when it was asked for by digest.
    async fn manifest(&self, digest: Option<&str>) -> Result<(String, Manifest), PullError> {
        let wanted = digest.or(self.reference.digest.as_deref());
        // An index may say anything, and what is asked for is made of it.
        if let Some(bad) = wanted.filter(|wanted| !is_digest(wanted)) {
            return Err(PullError::Failed(format!(
                "the index names {bad:?}, which is no digest"
            )));
        }
        let name = wanted.or(self.reference.tag.as_deref()).unwrap_or("latest");
        let bytes = self.registry.manifest(name, MAX_MANIFEST).await.map_err(failed)?;
        let got = digest::of(&bytes);
        if let Some(wanted) = wanted {
            verify(wanted, &got, "manifest").map_err(|e| PullError::Failed(e.to_string()))?;
        }
        let manifest = serde_json::from_slice(&bytes).map_err(|e| PullError::Failed(format!("manifest: {e}")))?;
        Ok((got, manifest))
    }

    async fn config(&self, from: &Origin<'_>, descriptor: &Descriptor) -> Result<Vec<u8>, PullError> {
        let digest = &descriptor.digest;
        let verified = |bytes: Vec<u8>| verify(digest, &digest::of(&bytes), "image configuration").map(|()| bytes);
        if let Some(bytes) = from.peer_document(digest).await {
            match verified(bytes) {
                Ok(bytes) => {
                    from.keep_document(digest, &bytes).await;
                    return Ok(bytes);
                }
                Err(error) => tracing::warn!(%error, "another node's copy isn't used"),
            }
        }
        let bytes = self.registry.document(digest, MAX_DOCUMENT).await.map_err(failed)?;
        let bytes = verified(bytes).map_err(io_failed)?;
        from.keep_document(digest, &bytes).await;
        Ok(bytes)
    }

    /// Downloads what is missing, several at once, and unpacks in order as soon as possible. Downloads go on meanwhile: a connection that
    /// nobody looks at for a minute counts as silent.
    async fn layers(&self, from: &Origin<'_>, layers: &[Descriptor], config: &ImageConfig) -> Result<(), PullError> {
        let images = from.images;
        let chains = digest::chain(&config.rootfs.diff_ids);
        let missing = layers
            .iter()
            .zip(&chains)
            .filter(|(_, chain)| !images.layers.has(chain));
        let needed = missing.fold(0, |sum: u64, (layer, _)| sum.saturating_add(layer.size));
        images.layers.check_room(needed).map_err(io_failed)?;
        let mut waiting: Vec<BoxFuture<'_, Result<(usize, Download), PullError>>> = Vec::new();
        for (i, layer) in layers.iter().enumerate() {
            if !images.layers.has(&chains[i]) {
                let file = Download(images.layers.ingest_file());
                waiting.push(Box::pin(async move {
                    self.download(from, layer, &file.0).await.map(|()| (i, file))
                }));
            }
        }
        // With room for all: whoever waited here would leave connections alone.
        let (tell, mut told) = tokio::sync::mpsc::channel(waiting.len().max(1));
        let fetched = async move {
            let mut downloads = futures::stream::iter(waiting).buffered(CONCURRENT);
            while let Some(downloaded) = downloads.next().await {
                if tell.send(downloaded?).await.is_err() {
                    break;
                }
            }
            Ok::<_, PullError>(())
        };
        let unpacked = async {
            while let Some((i, file)) = told.recv().await {
                let (images, chains) = (images.clone(), chains[..=i].to_vec());
                let (diff_id, digest) = (config.rootfs.diff_ids[i].clone(), layers[i].digest.clone());
                let repository = from.repository.clone();
                blocking(move || unpack(&images, &chains, &file, &digest, &diff_id, &repository)).await?;
            }
            Ok::<_, PullError>(())
        };
        futures::future::try_join(fetched, unpacked).await.map(drop)
    }

    async fn download(&self, from: &Origin<'_>, layer: &Descriptor, to: &Path) -> Result<(), PullError> {
        if let Some(pieces) = from.peer(&layer.digest).await {
            match written(pieces.map_err(io_failed), layer, to).await {
                Ok(()) => {
                    from.count(Source::Peer, layer.size);
                    return Ok(());
                }
                Err(error) => tracing::warn!(%error, layer = layer.digest, "another node's copy isn't used"),
            }
        }
        let pieces = self.registry.blob(&layer.digest).await.map_err(failed)?;
        written(pieces.map_err(failed), layer, to).await?;
        from.count(Source::Registry, layer.size);
        Ok(())
    }
}

/// Unpacks a layer that has been downloaded, onto those below it; its archive is kept for other nodes, if any is.
fn unpack(
    images: &Images,
    chains: &[String],
    file: &Download,
    digest: &str,
    diff_id: &str,
    repository: &str,
) -> io::Result<()> {
    let expected = Expected {
        digest: Some(digest),
        diff_id,
    };
    let archive = File::open(&file.0)?;
    let length = archive.metadata()?.len();
    images.layers.add(chains, archive, length, &expected)?;
    if let Some(archives) = &images.archives
        && let Err(error) = archives.keep(repository, digest, &file.0)
    {
        tracing::warn!(%error, "an archive isn't kept for other nodes");
    }
    Ok(())
}

/// Writes an archive down, if it is what its manifest says.
async fn written(
    mut pieces: impl Stream<Item = Result<Bytes, PullError>> + Unpin,
    layer: &Descriptor,
    to: &Path,
) -> Result<(), PullError> {
    let mut file = File::create(to).map_err(io_failed)?;
    let (mut hasher, mut length) = (digest::Hasher::default(), 0);
    while let Some(piece) = pieces.try_next().await? {
        length += piece.len() as u64;
        if length > layer.size {
            return Err(PullError::Failed(format!(
                "layer {} is longer than its manifest says",
                layer.digest
            )));
        }
        hasher.update(&piece);
        file.write_all(&piece).map_err(io_failed)?;
    }
    verify(&layer.digest, &hasher.finish(), "layer").map_err(io_failed)
}

#[derive(Clone, Copy)]
enum Source {
    Peer,
    Registry,
}

/// Where what belongs to one image comes from: other nodes, if there are any to ask, or its registry.
struct Origin<'a> {
    images: &'a Arc<Images>,
    image: String,
    repository: String,
    /// Layers and bytes from other nodes, and from the registry.
    counts: [(AtomicU64, AtomicU64); 2],
}

impl<'a> Origin<'a> {
    fn new(images: &'a Arc<Images>, reference: &Reference, top: &str) -> Origin<'a> {
        Origin {
            images,
            image: reference.with_digest(top),
            repository: reference.name(),
            counts: Default::default(),
        }
    }

    async fn peer(&self, digest: &str) -> Option<BoxStream<'static, io::Result<Bytes>>> {
        let wanted = Wanted {
            image: &self.image,
            repository: &self.repository,
            digest,
        };
        self.images.peers.as_ref()?.get(wanted).await
    }

    async fn peer_document(&self, digest: &str) -> Option<Vec<u8>> {
        let mut pieces = self.peer(digest).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece.ok()?);
            if bytes.len() as u64 > MAX_DOCUMENT {
                return None;
            }
        }
        Some(bytes)
    }

    async fn keep_document(&self, digest: &str, bytes: &[u8]) {
        if self.images.archives.is_none() {
            return;
        }
        let (images, repository) = (self.images.clone(), self.repository.clone());
        let (digest, bytes) = (digest.to_owned(), bytes.to_vec());
        let kept = blocking(move || {
            let scratch = Download(images.layers.ingest_file());
            let archives = images.archives.as_ref();
            archives.map_or(Ok(()), |all| all.put(&repository, &digest, &bytes, &scratch.0))
        });
        if let Err(error) = kept.await {
            tracing::warn!(%error, "a configuration isn't kept for other nodes");
        }
    }

    fn count(&self, source: Source, bytes: u64) {
        let (layers, sum) = &self.counts[source as usize];
        layers.fetch_add(1, Ordering::Relaxed);
        sum.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Only where there are others to come from: who has set that up wants to see it.
    fn tell(&self) {
        if self.images.peers.is_some() {
            let [peers, registry] = self
                .counts
                .each_ref()
                .map(|(n, b)| (n.load(Ordering::Relaxed), b.load(Ordering::Relaxed)));
            tracing::info!(
                image = self.image,
                layers_from_nodes = peers.0,
                bytes_from_nodes = peers.1,
                layers_from_registry = registry.0,
                bytes_from_registry = registry.1,
                "pulled"
            );
        }
    }
}

/// A downloaded file, removed when it is no longer needed.
struct Download(std::path::PathBuf);

impl Drop for Download {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "downloaded layer not removed");
            }
            _ => {}
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, PullError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| PullError::Failed(e.to_string()))?
        .map_err(io_failed)
}

fn io_failed(error: io::Error) -> PullError {
    PullError::Failed(error.to_string())
}

fn failed(error: RegistryError) -> PullError {
    match error {
        RegistryError::NotFound(text) => PullError::NotFound(format!("{text}: not found")),
        RegistryError::Unauthorized(text) => PullError::Unauthorized(text),
        RegistryError::Failed(text) => PullError::Failed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_itself_decides() {
        let reference = Reference::parse("quay.io/a/b:1").unwrap();
        let at = |host: &str, error: PullError| (host.to_owned(), error);
        let text = |t: &str| t.to_owned();
        let verdict = |failures| verdict(&reference, failures);
        let found = verdict(vec![
            at("m", PullError::NotFound(text("none"))),
            at("quay.io", PullError::Unauthorized(text("denied"))),
        ]);
        assert!(
            matches!(&found, PullError::Unauthorized(t) if t.contains("m: none; quay.io: denied")),
            "{found}"
        );
        let found = verdict(vec![
            at("m", PullError::NotFound(text("none"))),
            at("quay.io", PullError::Failed(text("away"))),
        ]);
        assert!(matches!(found, PullError::NotFound(_)));
        assert!(matches!(verdict(Vec::new()), PullError::Failed(_)));
    }
}
