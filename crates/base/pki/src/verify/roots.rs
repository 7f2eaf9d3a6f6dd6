//! Certificates that are trusted, or offered as steps on the way to one that is.

use crate::x509::{self, Certificate, pem};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use tokio::sync::watch;

#[derive(Clone, Debug, Default)]
pub struct Roots(Vec<Certificate>);

impl Roots {
    /// Those of a bundle. What is no certificate in it is passed over; `None` if nothing is left.
    pub fn from_pem(bundle: &[u8]) -> Option<Roots> {
        let read = pem::certificates(bundle).filter_map(|der| Certificate::from_der(&der).ok());
        Some(Roots(read.collect())).filter(|roots| !roots.0.is_empty())
    }

    /// Those of a bundle in which every certificate has to be readable.
    pub fn strictly(bundle: &[u8]) -> Result<Roots, String> {
        let read: x509::Result<Vec<_>> = pem::certificates(bundle)
            .map(|der| Certificate::from_der(&der))
            .collect();
        match read {
            Ok(none) if none.is_empty() => Err("data does not contain any valid RSA or ECDSA certificates".into()),
            Ok(all) => Ok(Roots(all)),
            Err(why) => Err(why.to_string()),
        }
    }

    pub fn of(certificates: Vec<Certificate>) -> Roots {
        Roots(certificates)
    }

    /// The machine's own, read once. A machine without a list trusts nobody: that is found out when somebody is to be trusted.
    pub fn of_machine() -> Arc<Roots> {
        static ROOTS: LazyLock<Arc<Roots>> = LazyLock::new(|| Arc::new(machine()));
        ROOTS.clone()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Certificate> {
        self.0.iter()
    }

    pub fn contains(&self, certificate: &Certificate) -> bool {
        self.0.iter().any(|c| c.raw == certificate.raw)
    }

    /// Those that may have issued a certificate, by name; the likeliest first, by the identifiers of their keys.
    pub fn parents(&self, of: &Certificate) -> Vec<&Certificate> {
        let likely = |parent: &&Certificate| {
            let (own, wanted) = (&parent.says.subject_key_id, &of.says.authority_key_id);
            match (own == wanted, own.is_empty() || wanted.is_empty()) {
                (true, _) => 0,
                (false, true) => 1,
                (false, false) => 2,
            }
        };
        let mut found: Vec<_> = self.0.iter().filter(|c| c.raw_subject == of.raw_issuer).collect();
        found.sort_by_key(likely);
        found
    }
}

/// Roots that are exchanged while they are in use: whoever has a clone judges by the newest.
#[derive(Clone, Debug, Default)]
pub struct Live(Arc<watch::Sender<Arc<Roots>>>);

impl Live {
    pub fn now(&self) -> Arc<Roots> {
        self.0.borrow().clone()
    }
    pub fn replace(&self, roots: Roots) {
        self.0.send_replace(Arc::new(roots));
    }
    /// Told of each exchange from now on.
    pub fn changes(&self) -> watch::Receiver<Arc<Roots>> {
        self.0.subscribe()
    }
}

impl From<Arc<Roots>> for Live {
    fn from(roots: Arc<Roots>) -> Live {
        Live(Arc::new(watch::Sender::new(roots)))
    }
}

impl From<Roots> for Live {
    fn from(roots: Roots) -> Live {
        Arc::new(roots).into()
    }
}

/// Where distributions keep their list: the first that is there counts.
const FILES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
const DIRECTORIES: &[&str] = &["/etc/ssl/certs", "/etc/pki/tls/certs"];

/// `SSL_CERT_FILE` and `SSL_CERT_DIR` (several, between colons) take the place of the usual ones.
fn machine() -> Roots {
    let given = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let file = match given("SSL_CERT_FILE") {
        Some(file) => std::fs::read(file).ok(),
        None => FILES.iter().find_map(|file| std::fs::read(file).ok()),
    };
    if let Some(roots) = file.and_then(|text| Roots::from_pem(&text)) {
        return roots;
    }
    let directories = match given("SSL_CERT_DIR") {
        Some(list) => list.split(':').map(str::to_string).collect(),
        None => DIRECTORIES.iter().map(|d| (*d).to_string()).collect::<Vec<_>>(),
    };
    let mut all: Vec<Certificate> = Vec::new();
    for file in directories.iter().flat_map(|d| files(Path::new(d))) {
        let Some(text) = std::fs::read(file).ok() else { continue };
        for certificate in Roots::from_pem(&text).into_iter().flat_map(|r| r.0) {
            // Names by hash are links to others of the same directory.
            if !all.iter().any(|c| c.raw == certificate.raw) {
                all.push(certificate);
            }
        }
    }
    Roots(all)
}

fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| p.is_file()).collect()
}
