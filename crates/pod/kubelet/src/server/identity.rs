//! Files that somebody else renews: by what the server is known, and whom it knows. What stands in them anew counts from then on,
//! if it can be used; until then, and after it, what was there before.

use crate::config::ServingTls;
use anyhow::{Context, ensure};
use futures::future::OptionFuture;
use keelson_follow::{Contents, read};
use keelson_pki::verify::{Live, Roots};
use parking_lot::RwLock;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

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
    /// What is in force: of the pair, and of the authorities.
    read: [Vec<Vec<u8>>; 2],
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
    ensure!(!chain.is_empty(), "the kubelet's certificate has none in it");
    let key = PrivateKeyDer::from_pem_slice(key).context("reading the kubelet's key")?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider).context("the kubelet's certificate and key don't fit")
}

fn authorities(text: &[u8], path: &Path) -> anyhow::Result<Roots> {
    let unable = || format!("{}: unable to parse bytes as PEM block", path.display());
    Roots::from_pem(text).with_context(unable)
}

impl ServingTls {
    /// Of files that are followed. What isn't named is as `otherwise` has it.
    pub fn of_files(files: Files, otherwise: Option<ServingTls>) -> anyhow::Result<ServingTls> {
        let mut known = [Vec::new(), Vec::new()];
        let served = match &files.pair {
            Some((cert, key)) => {
                known[0] = vec![read(cert, MOST)?, read(key, MOST)?];
                let pair = certified(&known[0][0], &known[0][1])?;
                Some(Arc::new(Renewed(RwLock::new(Arc::new(pair)))))
            }
            None => None,
        };
        let clients: Live = match &files.client_ca {
            Some(path) => {
                known[1] = vec![read(path, MOST)?];
                authorities(&known[1][0], path)?.into()
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
    /// Takes what is new and good.
    pub(super) async fn follow(self, stop: CancellationToken) {
        let Following {
            files: Files { pair, client_ca },
            served,
            clients,
            read: [own, known],
        } = self;
        let pair = pair.zip(served).map(|((cert, key), served)| {
            let take = move |found: &[Vec<u8>]| {
                *served.0.write() = Arc::new(certified(&found[0], &found[1])?);
                anyhow::Ok(())
            };
            Contents::of([cert, key], MOST).known(own).each(take)
        });
        let authorities = client_ca.map(|path| {
            let from = path.clone();
            let take = move |found: &[Vec<u8>]| {
                clients.replace(authorities(&found[0], &from)?);
                anyhow::Ok(())
            };
            Contents::of([path], MOST).known(known).each(take)
        });
        let following = async {
            tokio::join!(OptionFuture::from(pair), OptionFuture::from(authorities));
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = following => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_pki::authority::{Authority, CertSpec};
    use std::time::Duration;

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
        // The pair is followed by itself.
        let renewed = async {
            while serial() == first {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(wait, renewed).await.unwrap();
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
