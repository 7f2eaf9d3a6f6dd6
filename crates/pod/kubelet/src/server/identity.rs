//! Files that somebody else renews: by what the server is known, and whom it knows. What stands in them anew counts from then on,
//! if it can be used; until then, and after it, what was there before.

use crate::config::ServingTls;
use anyhow::{Context, ensure};
use keelson_pki::verify::{Live, Roots};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::RwLock;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How long writers are left to write both files.
const SETTLED: Duration = Duration::from_millis(200);
/// How often files are looked at that nobody tells of: upstream's period.
const LOOK: Duration = Duration::from_secs(60);
/// No certificate or bundle is larger.
const MOST: u64 = 16 << 20;

/// Where they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Certificate and key.
    pub pair: Option<(PathBuf, PathBuf)>,
    /// Authorities of clients.
    pub client_ca: Option<PathBuf>,
}

/// A certificate that is exchanged while it is in use.
#[derive(Debug)]
pub struct Renewed(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Renewed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }
}

/// What follows files.
#[derive(Clone)]
pub struct Following {
    files: Files,
    served: Option<Arc<Renewed>>,
    clients: Live,
    /// What is in force of each.
    read: [Vec<u8>; 3],
}

impl std::fmt::Debug for Following {
    /// Without what stands in them: one is a key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Following").field(&self.files).finish()
    }
}

fn certified(cert: &[u8], key: &[u8]) -> anyhow::Result<CertifiedKey> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(cert)
        .collect::<Result<_, _>>()
        .context("reading the kubelet's certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key).context("reading the kubelet's key")?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider).context("the kubelet's certificate and key don't fit")
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    let file = std::fs::File::open(path).with_context(|| format!("reading {}", path.display()))?;
    std::io::Read::read_to_end(&mut std::io::Read::take(file, MOST + 1), &mut text)
        .with_context(|| format!("reading {}", path.display()))?;
    // Half of a bundle would be other authorities.
    ensure!(text.len() as u64 <= MOST, "{} is too large", path.display());
    Ok(text)
}

fn authorities(text: &[u8], path: &Path) -> anyhow::Result<Roots> {
    let unable = || format!("{}: unable to parse bytes as PEM block", path.display());
    Roots::from_pem(text).with_context(unable)
}

impl ServingTls {
    /// Of files that are followed. What isn't named is as `otherwise` has it.
    pub fn of_files(files: Files, otherwise: Option<ServingTls>) -> anyhow::Result<ServingTls> {
        let mut known = [Vec::new(), Vec::new(), Vec::new()];
        let served = match &files.pair {
            Some((cert, key)) => {
                (known[0], known[1]) = (read(cert)?, read(key)?);
                let pair = certified(&known[0], &known[1])?;
                Some(Arc::new(Renewed(RwLock::new(Arc::new(pair)))))
            }
            None => None,
        };
        let clients: Live = match &files.client_ca {
            Some(path) => {
                known[2] = read(path)?;
                authorities(&known[2], path)?.into()
            }
            None => otherwise.as_ref().map(|o| o.client_ca.clone()).unwrap_or_default(),
        };
        let identity: Arc<dyn ResolvesServerCert> = match (&served, otherwise) {
            (Some(served), _) => served.clone(),
            (None, Some(otherwise)) => otherwise.identity,
            (None, None) => anyhow::bail!("the kubelet's server needs a certificate and a key"),
        };
        let following = Following {
            files,
            served,
            clients: clients.clone(),
            read: known,
        };
        Ok(ServingTls {
            identity,
            client_ca: clients,
            following: Some(following),
        })
    }
}

impl Following {
    /// Looks at the files whenever something happens where they are.
    pub(super) async fn follow(mut self, stop: CancellationToken) {
        let changed = Arc::new(Notify::new());
        // Where the kernel can't tell, they are looked at from time to time.
        let _watcher = self.watch(changed.clone()).inspect_err(|e| {
            tracing::warn!("changes of the kubelet's certificates are seen within a minute only: {e}");
        });
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = changed.notified() => tokio::time::sleep(SETTLED).await,
                () = tokio::time::sleep(LOOK) => {}
            }
            let looking = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            match looking.await {
                Ok(back) => self = back,
                Err(e) => return tracing::error!("the kubelet's certificates aren't followed any more: {e}"),
            }
        }
    }

    fn watch(&self, changed: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if !matches!(&event, Ok(e) if e.kind.is_access()) {
                changed.notify_one();
            }
        })?;
        let pair = self.files.pair.iter().flat_map(|(cert, key)| [cert, key]);
        let mut dirs = BTreeSet::new();
        for file in pair.chain(&self.files.client_ca) {
            // Where links lead, too. A file that is replaced can't be watched itself.
            let real = std::fs::canonicalize(file).unwrap_or_else(|_| file.clone());
            dirs.extend([file.parent(), real.parent()].into_iter().flatten().map(Path::to_owned));
        }
        for dir in dirs {
            let dir = match dir.as_os_str().is_empty() {
                true => Path::new("."),
                false => dir.as_path(),
            };
            watcher.watch(dir, RecursiveMode::NonRecursive)?;
        }
        Ok(watcher)
    }

    /// Takes what is new and good.
    fn look(&mut self) {
        if let Err(e) = self.look_at_pair() {
            tracing::warn!("the kubelet goes on with the certificate that it had: {e:#}");
        }
        if let Err(e) = self.look_at_clients() {
            tracing::warn!("the kubelet goes on with the authorities of clients that it had: {e:#}");
        }
    }

    fn look_at_pair(&mut self) -> anyhow::Result<()> {
        let (Some((cert, key)), Some(served)) = (&self.files.pair, &self.served) else {
            return Ok(());
        };
        let now = (read(cert)?, read(key)?);
        if (&now.0, &now.1) == (&self.read[0], &self.read[1]) {
            return Ok(());
        }
        let pair = certified(&now.0, &now.1)?;
        ensure!(!pair.cert.is_empty(), "{} has no certificate", cert.display());
        *served.0.write() = Arc::new(pair);
        (self.read[0], self.read[1]) = now;
        tracing::info!(file = %cert.display(), "the kubelet is known by a new certificate");
        Ok(())
    }

    fn look_at_clients(&mut self) -> anyhow::Result<()> {
        let Some(path) = &self.files.client_ca else {
            return Ok(());
        };
        let now = read(path)?;
        if now != self.read[2] {
            self.clients.replace(authorities(&now, path)?);
            self.read[2] = now;
            tracing::info!(file = %path.display(), "the kubelet knows clients by new authorities");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_pki::authority::{Authority, CertSpec};

    /// A directory with an authority and what it has issued.
    fn write(dir: &Path, name: &str) -> Authority {
        let ca = Authority::generate(name).unwrap();
        let issued = ca.issue(&CertSpec::server(name, Vec::new())).unwrap();
        std::fs::write(dir.join("tls.crt"), &issued.cert_pem).unwrap();
        std::fs::write(dir.join("tls.key"), &issued.key_pem).unwrap();
        std::fs::write(dir.join("ca.crt"), ca.cert_pem()).unwrap();
        ca
    }

    #[tokio::test]
    async fn what_is_renewed_counts_and_what_is_broken_does_not() {
        let home = std::env::temp_dir().join(format!("keelson-identity-{}", std::process::id()));
        // Known by links, as many an issuer has it.
        let (dir, links) = (home.join("real"), home.join("links"));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::create_dir_all(&links).unwrap();
        write(&dir, "one");
        let link = |name: &str| {
            std::os::unix::fs::symlink(dir.join(name), links.join(name)).unwrap();
            links.join(name)
        };
        let files = Files {
            pair: Some((link("tls.crt"), link("tls.key"))),
            client_ca: Some(link("ca.crt")),
        };
        let tls = ServingTls::of_files(files, None).unwrap();
        let following = tls.following.clone().unwrap();
        let served = following.served.clone().unwrap();
        let serial = || served.0.read().cert[0].clone();
        let (first, mut clients) = (serial(), tls.client_ca.changes());
        let stop = CancellationToken::new();
        let task = tokio::spawn(following.follow(stop.clone()));
        tokio::time::sleep(Duration::from_millis(300)).await;

        // Half of a pair, a key that doesn't fit, and no certificate at all: the old one stays.
        std::fs::write(dir.join("tls.crt"), "-----BEGIN CERTIFICATE-----\n").unwrap();
        std::fs::write(dir.join("ca.crt"), "nothing").unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(serial(), first);
        assert!(!clients.has_changed().unwrap());

        write(&dir, "two");
        let wait = Duration::from_secs(20);
        tokio::time::timeout(wait, clients.changed()).await.unwrap().unwrap();
        assert_ne!(serial(), first);
        stop.cancel();
        task.await.unwrap();
        std::fs::remove_dir_all(&home).unwrap();
    }

    #[test]
    fn files_that_are_not_there_are_named() {
        let files = Files {
            pair: Some(("/nonexistent/tls.crt".into(), "/nonexistent/tls.key".into())),
            client_ca: None,
        };
        let refused = ServingTls::of_files(files, None).unwrap_err();
        assert!(format!("{refused:#}").contains("/nonexistent/tls.crt"), "{refused:#}");
    }
}
