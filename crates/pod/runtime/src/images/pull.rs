//! Images from registries.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use oci_client::client::{Certificate, CertificateEncoding, Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference as OciReference, RegistryOperation};

use super::layers::{Expected, verify};
use super::manifest::{Descriptor, ImageConfig, Manifest};
use super::reference::Reference;
use super::registries::{Credentials, Endpoint};
use super::{Busy, Image, Images, Name, digest};

/// Layers downloaded at once.
const CONCURRENT: usize = 3;
/// A registry that sends nothing for this long is given up.
const SILENCE: Duration = Duration::from_secs(60);
const MAX_DOCUMENT: usize = 16 << 20;

const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Unauthorized(String),
    #[error("{0}")]
    Failed(String),
}

impl Images {
    /// Gets an image, from a mirror or from the registry itself. Already present layers are not downloaded.
    pub async fn pull(self: &Arc<Self>, name: &str, given: Credentials) -> Result<Arc<Image>, PullError> {
        let reference = Reference::parse(name).map_err(|e| PullError::Invalid(e.to_string()))?;
        let _busy = Busy::new(self);
        let key = reference.to_string();
        let turn = self.pulling.lock().entry(key.clone()).or_default().clone();
        let result = {
            let _turn = turn.lock().await;
            self.pull_from_any(&reference, &given).await
        };
        let mut pulling = self.pulling.lock();
        if pulling.get(&key).is_some_and(|t| Arc::strong_count(t) <= 2) {
            pulling.remove(&key);
        }
        result
    }

    async fn pull_from_any(
        self: &Arc<Self>,
        reference: &Reference,
        given: &Credentials,
    ) -> Result<Arc<Image>, PullError> {
        let endpoints = self
            .registries
            .endpoints(&reference.registry)
            .map_err(|e| PullError::Invalid(format!("{e:#}")))?;
        let mut failure = None;
        for endpoint in endpoints {
            let attempt = Attempt::new(endpoint, reference, given)?;
            match attempt.pull(self).await {
                Ok(image) => return Ok(image),
                Err(error) => {
                    tracing::info!(image = %reference, endpoint = attempt.endpoint.host, %error, "pull failed");
                    // The registry itself comes last and decides, unless a mirror knows that we may not.
                    failure = match (failure, error) {
                        (Some(PullError::Unauthorized(m)), PullError::Failed(_)) => Some(PullError::Unauthorized(m)),
                        (Some(PullError::NotFound(m)), PullError::Failed(_)) => Some(PullError::NotFound(m)),
                        (_, error) => Some(error),
                    };
                }
            }
        }
        let prefix = format!("failed to pull and unpack image \"{reference}\"");
        Err(match failure {
            Some(PullError::NotFound(m)) => PullError::NotFound(format!("{prefix}: {m}")),
            Some(PullError::Unauthorized(m)) => PullError::Unauthorized(format!("{prefix}: {m}")),
            Some(PullError::Invalid(m) | PullError::Failed(m)) => PullError::Failed(format!("{prefix}: {m}")),
            None => PullError::Failed(format!("{prefix}: no registry to ask")),
        })
    }
}

/// Asking one endpoint.
struct Attempt {
    endpoint: Endpoint,
    client: Client,
    auth: RegistryAuth,
    reference: Reference,
}

impl Attempt {
    fn new(endpoint: Endpoint, reference: &Reference, given: &Credentials) -> Result<Attempt, PullError> {
        // The HTTP client takes the process's provider; a program that has chosen one keeps it.
        let _already_chosen = rustls::crypto::ring::default_provider().install_default();
        let config = ClientConfig {
            protocol: if endpoint.plain_http {
                ClientProtocol::Http
            } else {
                ClientProtocol::Https
            },
            accept_invalid_certificates: endpoint.skip_verify,
            extra_root_certificates: endpoint
                .ca
                .iter()
                .map(|pem| Certificate {
                    encoding: CertificateEncoding::Pem,
                    data: pem.clone(),
                })
                .collect(),
            connect_timeout: Some(Duration::from_secs(15)),
            read_timeout: Some(SILENCE),
            user_agent: concat!("keelson/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client = Client::try_from(config).map_err(|e| PullError::Failed(e.to_string()))?;
        // A pull secret is for the registry that the image names, and for mirrors of it that have none of their own.
        let credentials = if *given == Credentials::None {
            &endpoint.credentials
        } else {
            given
        };
        let auth = match credentials {
            Credentials::None => RegistryAuth::Anonymous,
            Credentials::Basic(user, password) => RegistryAuth::Basic(user.clone(), password.clone()),
            Credentials::Bearer(token) => RegistryAuth::Bearer(token.clone()),
        };
        Ok(Attempt {
            client,
            auth,
            reference: reference.clone(),
            endpoint,
        })
    }

    fn at(&self, digest: Option<&str>) -> OciReference {
        let (host, repository) = (self.endpoint.host.clone(), self.reference.repository.clone());
        match digest.or(self.reference.digest.as_deref()) {
            Some(digest) => OciReference::with_digest(host, repository, digest.to_owned()),
            None => {
                let tag = self.reference.tag.clone().unwrap_or_else(|| "latest".to_owned());
                OciReference::with_tag(host, repository, tag)
            }
        }
    }

    async fn pull(&self, images: &Arc<Images>) -> Result<Arc<Image>, PullError> {
        self.client
            .auth(&self.at(None), &self.auth, RegistryOperation::Pull)
            .await
            .map_err(failed)?;
        let (top, mut manifest) = self.manifest(None).await?;
        let mut size = 0;
        if manifest.is_index() {
            let chosen = manifest
                .for_this_machine()
                .cloned()
                .ok_or_else(|| PullError::NotFound("no match for platform in manifest: not found".to_owned()))?;
            size += chosen.size;
            manifest = self.manifest(Some(&chosen.digest)).await?.1;
        }
        let descriptor = manifest
            .config
            .as_ref()
            .ok_or_else(|| PullError::Failed("the manifest names no configuration".into()))?;
        let config = self.config(descriptor).await?;
        let parsed: ImageConfig = serde_json::from_slice(&config).map_err(|e| PullError::Failed(e.to_string()))?;
        if parsed.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(PullError::Failed("the image has not as many layers as diff_ids".into()));
        }
        size += descriptor.size + manifest.layers.iter().map(|l| l.size).sum::<u64>();
        self.layers(images, &manifest.layers, &parsed).await?;
        let mut names = vec![Name::Digest(self.reference.with_digest(&top))];
        if self.reference.tag.is_some() {
            names.push(Name::Tag(self.reference.to_string()));
        }
        let images = images.clone();
        blocking(move || images.add(&config, parsed, size, &names)).await
    }

    /// A manifest with its digest, which is verified when it was asked for by digest.
    async fn manifest(&self, digest: Option<&str>) -> Result<(String, Manifest), PullError> {
        let at = self.at(digest);
        let (bytes, _) = self
            .client
            .pull_manifest_raw(&at, &self.auth, &ACCEPTED)
            .await
            .map_err(failed)?;
        let got = digest::of(&bytes);
        if let Some(wanted) = at.digest() {
            verify(wanted, &got, "manifest").map_err(|e| PullError::Failed(e.to_string()))?;
        }
        let manifest = serde_json::from_slice(&bytes).map_err(|e| PullError::Failed(format!("manifest: {e}")))?;
        Ok((got, manifest))
    }

    async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, PullError> {
        let mut stream = self
            .client
            .pull_blob_stream(&self.at(None), descriptor.digest.as_str())
            .await
            .map_err(failed)?;
        let mut bytes = Vec::new();
        while let Some(piece) = stream.stream.try_next().await.map_err(io_failed)? {
            bytes.extend_from_slice(&piece);
            if bytes.len() > MAX_DOCUMENT {
                return Err(PullError::Failed("the image's configuration is too long".into()));
            }
        }
        verify(&descriptor.digest, &digest::of(&bytes), "image configuration").map_err(io_failed)?;
        Ok(bytes)
    }

    /// Downloads what is missing, several at once, and unpacks in order as soon as possible.
    async fn layers(&self, images: &Arc<Images>, layers: &[Descriptor], config: &ImageConfig) -> Result<(), PullError> {
        let chains = digest::chain(&config.rootfs.diff_ids);
        let mut waiting: Vec<BoxFuture<'_, Result<(usize, Download), PullError>>> = Vec::new();
        for (i, layer) in layers.iter().enumerate() {
            if !images.layers.has(&chains[i]) {
                let file = Download(images.layers.ingest_file());
                waiting.push(Box::pin(async move {
                    self.download(layer, &file.0).await.map(|()| (i, file))
                }));
            }
        }
        let mut downloads = futures::stream::iter(waiting).buffered(CONCURRENT);
        while let Some(downloaded) = downloads.next().await {
            let (i, file) = downloaded?;
            let (images, chains) = (images.clone(), chains[..=i].to_vec());
            let (diff_id, digest) = (config.rootfs.diff_ids[i].clone(), layers[i].digest.clone());
            blocking(move || {
                let expected = Expected {
                    digest: Some(&digest),
                    diff_id: &diff_id,
                };
                images.layers.add(&chains, File::open(&file.0)?, &expected)
            })
            .await?;
        }
        Ok(())
    }

    async fn download(&self, layer: &Descriptor, to: &std::path::Path) -> Result<(), PullError> {
        let mut stream = self
            .client
            .pull_blob_stream(&self.at(None), layer.digest.as_str())
            .await
            .map_err(failed)?;
        let mut file = File::create(to).map_err(io_failed)?;
        let (mut hasher, mut length) = (digest::Hasher::default(), 0);
        while let Some(piece) = stream.stream.try_next().await.map_err(io_failed)? {
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

fn failed(error: OciDistributionError) -> PullError {
    match &error {
        OciDistributionError::ImageManifestNotFoundError(_) => PullError::NotFound(format!("{error}: not found")),
        OciDistributionError::ServerError { code: 404, .. } => PullError::NotFound(format!("{error}: not found")),
        OciDistributionError::RegistryError { envelope, .. }
            if envelope
                .errors
                .iter()
                .any(|e| format!("{:?}", e.code).contains("Unknown")) =>
        {
            PullError::NotFound(format!("{error}: not found"))
        }
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            PullError::Unauthorized(error.to_string())
        }
        OciDistributionError::RequestError(request) => {
            // The outermost words name only the address; the cause says what is wrong with it.
            let mut message = request.to_string();
            let mut cause = std::error::Error::source(request);
            while let Some(error) = cause {
                message = format!("{message}: {error}");
                cause = error.source();
            }
            PullError::Failed(message)
        }
        _ => PullError::Failed(error.to_string()),
    }
}
