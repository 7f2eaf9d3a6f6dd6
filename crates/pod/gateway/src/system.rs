//! The authorities that the machine knows: those of its packages, or of `SSL_CERT_FILE` and `SSL_CERT_DIR`.

use crate::table::Authorities;
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls_native_certs::CertificateResult;
use std::time::Duration;
use tokio::time::Instant;

/// They are read again when they are asked for after so long: packages are renewed while programs run.
const AGAIN: Duration = Duration::from_secs(3600);

#[derive(Default)]
pub struct System(Mutex<Option<(Instant, Option<Authorities>)>>);

impl System {
    /// `None`: there are none.
    pub fn authorities(&self) -> Option<Authorities> {
        let mut known = self.0.lock();
        if let Some((at, found)) = &*known
            && at.elapsed() < AGAIN
        {
            return found.clone();
        }
        let found = usable(rustls_native_certs::load_native_certs());
        *known = Some((Instant::now(), found.clone()));
        found
    }
}

/// One that can't be read leaves the others in force.
fn usable(found: CertificateResult) -> Option<Authorities> {
    let mut roots = RootCertStore::empty();
    for error in &found.errors {
        tracing::warn!(%error, "authorities of the system can't be read");
    }
    let mut all = found.certs;
    all.retain(|one| roots.add(one.clone()).is_ok());
    (!all.is_empty()).then(|| all.into())
}

#[cfg(test)]
mod tests {
    use super::usable;

    #[test]
    fn what_is_no_authority_leaves_the_others() {
        let good = rcgen::generate_simple_self_signed(["x".to_string()]).unwrap();
        let mut found = rustls_native_certs::CertificateResult::default();
        found.certs = vec![good.cert.der().clone(), vec![1, 2, 3].into()];
        assert_eq!(usable(found).unwrap().certificates.len(), 1);
        assert!(usable(rustls_native_certs::CertificateResult::default()).is_none());
    }
}
