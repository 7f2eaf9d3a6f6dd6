//! A node's two certificates: by which it is known to the API, and by which its kubelet is known to others. Each stands
//! with its key in one file that is replaced whole, is requested from the cluster when it nears its end, and is swapped
//! while all goes on.

use super::told::Told;
use super::trust::Trusted;
use crate::issue;
use anyhow::{Context, bail};
use keelson_apiserver::serve::tls;
use keelson_client::rest::Rest;
use keelson_pki::authority::{self, CertFacts};
use keelson_pki::{San, files};
use parking_lot::RwLock;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long the cluster may take to decide about a request: as long as upstream's kubelets wait, so that a person can.
const DECISION: Duration = Duration::from_secs(15 * 60);

/// After so many seconds a certificate is asked for again that was signed by the authority before: by a server that had yet to take a step.
const SIGNED_ANEW: i64 = 30;

/// What a certificate of a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Client,
    Serving,
}

impl Purpose {
    fn signer(self) -> &'static str {
        match self {
            Purpose::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Purpose::Serving => "kubernetes.io/kubelet-serving",
        }
    }
    fn usages(self) -> [&'static str; 2] {
        match self {
            Purpose::Client => ["digital signature", "client auth"],
            Purpose::Serving => ["digital signature", "server auth"],
        }
    }
}

/// A certificate in its file, and in use.
#[derive(Debug)]
pub struct Slot {
    file: PathBuf,
    used: RwLock<Option<Used>>,
}

#[derive(Debug)]
struct Used {
    key: Arc<CertifiedKey>,
    facts: CertFacts,
}

impl ResolvesServerCert for Slot {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.used.read().as_ref().map(|used| used.key.clone())
    }
}

impl ResolvesClientCert for Slot {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.used.read().as_ref().map(|used| used.key.clone())
    }
    fn has_certs(&self) -> bool {
        self.used.read().is_some()
    }
}

/// What a certificate has to say.
#[derive(Clone)]
pub struct Wanted {
    pub node: String,
    pub sans: Vec<San>,
    /// Who vouches for it: the one that signs, and for as long as it isn't there yet whoever else is trusted.
    pub trusted: Arc<Trusted>,
}

impl Wanted {
    fn common_name(&self) -> String {
        format!("system:node:{}", self.node)
    }
    fn is(&self, facts: &CertFacts, pem: &str) -> bool {
        let sorted = |sans: &[San]| {
            let mut all = sans.to_vec();
            all.sort();
            all
        };
        facts.common_name == self.common_name()
            && sorted(&facts.sans) == sorted(&self.sans)
            && self.trusted.vouches_for(pem)
    }
    fn is_of_present(&self, pem: &str) -> bool {
        authority::signed_by(pem, &self.trusted.pem())
    }
    /// When to ask for another one that has just been issued.
    fn renew_at(&self, facts: &CertFacts, pem: &str) -> i64 {
        match self.is_of_present(pem) {
            true => facts.renew_at(),
            false => facts.renew_at().min(keelson_clock::now().as_second() + SIGNED_ANEW),
        }
    }
}

impl Slot {
    pub fn new(file: PathBuf) -> Arc<Slot> {
        Arc::new(Slot {
            file,
            used: RwLock::default(),
        })
    }

    /// Takes the file into use, if its certificate is what is wanted and still good; tells when to renew it.
    pub fn load(&self, wanted: &Wanted) -> anyhow::Result<Option<i64>> {
        let Some(pem) = files::read(&self.file)? else {
            return Ok(None);
        };
        let Ok(facts) = authority::read_certificate(&pem) else {
            return Ok(None);
        };
        if facts.not_after <= keelson_clock::now().as_second() || !wanted.is(&facts, &pem) {
            return Ok(None);
        }
        self.put_to_use(&pem)?;
        // One of the authority before is good, and is replaced at once.
        match wanted.is_of_present(&pem) {
            true => Ok(Some(facts.renew_at())),
            false => Ok(Some(0)),
        }
    }

    fn put_to_use(&self, pem: &str) -> anyhow::Result<()> {
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| anyhow::anyhow!("no PEM key: {e}"))?;
        let provider = tls::provider();
        let pair = CertifiedKey::from_der(tls::certificates(pem)?, key, &provider);
        let key = Arc::new(pair.with_context(|| format!("using {}", self.file.display()))?);
        let facts = authority::read_certificate(pem)?;
        *self.used.write() = Some(Used { key, facts });
        Ok(())
    }

    /// What the certificate says that is in use.
    pub fn facts(&self) -> Option<CertFacts> {
        self.used.read().as_ref().map(|used| used.facts.clone())
    }

    /// Gets a new certificate from the cluster, keeps it and takes it into use; tells when to renew it.
    pub async fn request(&self, rest: &Rest, purpose: Purpose, wanted: &Wanted) -> anyhow::Result<i64> {
        let made =
            keelson_pki::request::request(&wanted.common_name(), &[keelson_pki::layout::NODES_GROUP], &wanted.sans)?;
        let asked = issue::Asked {
            prefix: "node-csr-",
            signer: purpose.signer(),
            usages: purpose.usages(),
            seconds: None,
        };
        let name = issue::submit(rest, &asked, made.request_pem).await?;
        let cert = issue::decided(rest, &name, DECISION).await?;
        let facts = authority::read_certificate(&cert)?;
        if !wanted.is(&facts, &cert) || !authority::pairs(&cert, &made.key_pem) {
            bail!("the cluster issued another certificate than the one that was requested: {facts:?}");
        }
        let pem = format!("{}\n{}", cert.trim_end(), made.key_pem);
        files::write_secret(&self.file, pem.as_bytes())?;
        self.put_to_use(&pem)?;
        Ok(wanted.renew_at(&facts, &cert))
    }

    /// Keeps the certificate good until `stop` fires. `renewed` is called after each new one, `told` counts.
    pub async fn keep(
        &self,
        rest: &Rest,
        purpose: Purpose,
        wanted: &Wanted,
        told: &Told,
        renewed: impl Fn(),
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut trusted = wanted.trusted.changes();
        loop {
            trusted.mark_unchanged();
            let due = match self.load(wanted)? {
                Some(due) if due > keelson_clock::now().as_second() => due,
                _ => {
                    let before = self.facts();
                    let due = tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        due = self.request(rest, purpose, wanted) => due.inspect_err(|_| told.failed()),
                    };
                    let due = due.with_context(|| format!("the {purpose:?} certificate"))?;
                    told.replaced(before);
                    tracing::info!(file = %self.file.display(), "got a new certificate");
                    renewed();
                    due
                }
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = keelson_pki::due(due) => {}
                // Perhaps another authority signs.
                _ = trusted.changed() => {}
            }
        }
    }
}

/// A directory's two slots.
pub fn slots(pki: &Path) -> (Arc<Slot>, Arc<Slot>) {
    (
        Slot::new(pki.join("kubelet-client.pem")),
        Slot::new(pki.join("kubelet-server.pem")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_pki::{Authority, CertSpec};

    #[test]
    fn who_got_one_of_the_authority_before_asks_again_soon() {
        let old = Authority::generate("kubernetes").unwrap();
        let new = old.successor().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let bundle = format!("{}{}", new.cert_pem(), old.cert_pem());
        let wanted = Wanted {
            node: "n".into(),
            sans: Vec::new(),
            trusted: Trusted::new(&dir.path().join("ca.crt"), bundle).unwrap(),
        };
        let soon = keelson_clock::now().as_second() + 2 * SIGNED_ANEW;
        for (ca, asks_soon) in [(&old, true), (&new, false)] {
            let pem = ca.issue(&CertSpec::client("system:node:n", None)).unwrap().cert_pem;
            let facts = authority::read_certificate(&pem).unwrap();
            assert!(wanted.is(&facts, &pem));
            assert_eq!(wanted.renew_at(&facts, &pem) < soon, asks_soon);
        }
    }
}
