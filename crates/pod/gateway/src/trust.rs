//! Who has to show what in TLS: backends to us, and clients.

use keelson_client::ObjectKey;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Of all that is in it: a connection that was made for one is used for no other.
pub type TrustId = [u8; 32];

/// Who may have signed a certificate. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub struct Authorities {
    pub certificates: Arc<[CertificateDer<'static>]>,
    pub id: TrustId,
}

impl From<Vec<CertificateDer<'static>>> for Authorities {
    fn from(certificates: Vec<CertificateDer<'static>>) -> Authorities {
        let mut parts = Parts::default();
        certificates.iter().for_each(|a| parts.add(0, a));
        Authorities {
            certificates: certificates.into(),
            id: parts.id(),
        }
    }
}

/// What a backend has to show in TLS before anything is sent to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Trust {
    /// Said in the hello; and looked for in the certificate, unless there are `names`.
    pub host: String,
    /// One of them has to be in the certificate.
    pub names: Vec<AltName>,
    pub authorities: Authorities,
    /// The secret with the certificate that is shown to it.
    pub shows: Option<ObjectKey>,
    pub id: TrustId,
}

#[derive(Clone, Debug, PartialEq)]
pub enum AltName {
    Host(String),
    Uri(String),
}

impl Trust {
    pub fn new(host: &str, names: Vec<AltName>, authorities: impl Into<Authorities>) -> Trust {
        let authorities = authorities.into();
        let mut parts = Parts::default();
        parts.add(0, host.as_bytes());
        for name in &names {
            match name {
                AltName::Host(name) => parts.add(1, name.as_bytes()),
                AltName::Uri(name) => parts.add(2, name.as_bytes()),
            }
        }
        parts.add(3, &authorities.id);
        Trust {
            host: host.into(),
            names,
            authorities,
            shows: None,
            id: parts.id(),
        }
    }

    /// The same of who is shown a certificate.
    pub fn showing(&self, secret: &ObjectKey) -> Trust {
        let mut parts = Parts::default();
        parts.add(4, &self.id);
        parts.add(5, secret.to_string().as_bytes());
        Trust {
            shows: Some(secret.clone()),
            id: parts.id(),
            ..self.clone()
        }
    }
}

/// What clients have to show.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientTrust {
    pub authorities: Authorities,
    /// Also those come in who show nothing, or what nobody knows.
    pub anybody: bool,
    pub id: TrustId,
}

impl ClientTrust {
    pub fn new(authorities: impl Into<Authorities>, anybody: bool) -> ClientTrust {
        let authorities = authorities.into();
        let mut parts = Parts::default();
        parts.add(u8::from(anybody), &authorities.id);
        ClientTrust {
            authorities,
            anybody,
            id: parts.id(),
        }
    }
}

#[derive(Default)]
struct Parts(Sha256);

impl Parts {
    fn add(&mut self, kind: u8, bytes: &[u8]) {
        self.0.update([kind]);
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }
    fn id(self) -> TrustId {
        self.0.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_differs_is_another_trust() {
        let der = |byte: u8| vec![CertificateDer::from(vec![byte])];
        let plain = Trust::new("a", Vec::new(), der(1));
        let key = |name: &str| ObjectKey::new("n", name);
        let all = [
            plain.id,
            Trust::new("b", Vec::new(), der(1)).id,
            Trust::new("a", vec![AltName::Host("x".into())], der(1)).id,
            Trust::new("a", vec![AltName::Uri("x".into())], der(1)).id,
            Trust::new("a", Vec::new(), der(2)).id,
            plain.showing(&key("x")).id,
            plain.showing(&key("y")).id,
            ClientTrust::new(der(1), false).id,
            ClientTrust::new(der(1), true).id,
            ClientTrust::new(der(2), false).id,
        ];
        let different: std::collections::BTreeSet<TrustId> = all.into_iter().collect();
        assert_eq!(different.len(), all.len());
        assert_eq!(plain.id, Trust::new("a", Vec::new(), der(1)).id);
    }
}
