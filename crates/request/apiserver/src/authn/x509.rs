//! Client certificates: the common name is the user, the organisations are the groups.

use crate::request::UserInfo;
use crate::serve::tls;
use anyhow::{Context, Result};
use keelson_api::Str;
use keelson_client::revocations::{self, Shows};
use keelson_pki::revocation::Credential;
use keelson_pki::verify::{self, Live, Roots};
use keelson_pki::x509::{Certificate, oid};
use parking_lot::RwLock;
use rustls::pki_types::CertificateDer;
use sha2::Digest;
use std::sync::Arc;

pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Knows the authorities of clients and of front proxies. They are replaced while it is in use.
pub struct CertificateAuthenticator {
    clients: Live,
    front_proxies: Option<Live>,
    /// The first of each, and whether there are others.
    signing: RwLock<Signing>,
    /// The bundles as they were told.
    told: RwLock<(String, Option<String>)>,
}

#[derive(Default)]
struct Signing {
    clients: Roots,
    front_proxies: Roots,
    several: bool,
}

/// What a connection's client certificate was found to be; read once a connection.
#[derive(Debug)]
pub struct PeerCertificate {
    /// The identity, or why the certificate is not accepted.
    pub client: Result<UserInfo, String>,
    /// The common name, when the front-proxy authority signed it.
    pub front_proxy: Option<Str>,
    /// What it is taken back by; of one that nobody vouches for there is nothing to take back.
    own: revocations::Certificate,
    /// Unix seconds; past them it is no longer accepted.
    pub not_after: i64,
}

impl PeerCertificate {
    /// Whether an authority that is known here signed it.
    pub fn is_vouched_for(&self) -> bool {
        self.client.is_ok() || self.front_proxy.is_some()
    }
    /// Whose certificate it is.
    pub fn name(&self) -> &str {
        self.own.credential().name
    }
    /// Whether it is what a user was known by.
    pub fn is_of(&self, user: &UserInfo) -> bool {
        let same =
            |own: &UserInfo| own.name == user.name && own.extra.get(CREDENTIAL_ID) == user.extra.get(CREDENTIAL_ID);
        self.client.as_ref().is_ok_and(same)
    }
}

impl Shows for PeerCertificate {
    fn credential(&self) -> Credential<'_> {
        self.own.credential()
    }
}

impl CertificateAuthenticator {
    pub fn new(client_ca_pem: &str, front_proxy_ca_pem: Option<&str>) -> Result<Self> {
        let made = CertificateAuthenticator {
            front_proxies: front_proxy_ca_pem.map(|_| Live::default()),
            ..CertificateAuthenticator::nobodys()
        };
        made.replace(client_ca_pem, front_proxy_ca_pem)?;
        Ok(made)
    }

    /// One that knows no authority.
    pub fn nobodys() -> Self {
        CertificateAuthenticator {
            clients: Live::default(),
            front_proxies: None,
            signing: RwLock::default(),
            told: RwLock::default(),
        }
    }

    /// Others from now on; whether they are others.
    pub fn replace(&self, client_ca_pem: &str, front_proxy_ca_pem: Option<&str>) -> Result<bool> {
        let front_proxy_ca_pem = front_proxy_ca_pem.filter(|_| self.front_proxies.is_some());
        let told = (client_ca_pem.to_string(), front_proxy_ca_pem.map(str::to_string));
        if *self.told.read() == told {
            return Ok(false);
        }
        let clients = tls::roots(client_ca_pem).context("the client authority")?;
        let front_proxies = front_proxy_ca_pem
            .map(|pem| tls::roots(pem).context("the front-proxy authority"))
            .transpose()?
            .unwrap_or_default();
        let first = |roots: &Roots| Roots::of(roots.iter().take(1).cloned().collect());
        let several = clients.iter().count() > 1 || front_proxies.iter().count() > 1;
        *self.signing.write() = Signing {
            clients: first(&clients),
            front_proxies: first(&front_proxies),
            several,
        };
        self.clients.replace(clients);
        if let Some(live) = &self.front_proxies {
            live.replace(front_proxies);
        }
        *self.told.write() = told;
        Ok(true)
    }

    pub fn roots(&self) -> Arc<Roots> {
        self.clients.now()
    }

    /// The certificate of the authority that signs clients'.
    pub fn signs(&self) -> Option<Vec<u8>> {
        self.signing.read().clients.iter().next().map(|c| c.raw.clone())
    }

    /// Whether more than one authority of a kind is trusted.
    pub fn has_formers(&self) -> bool {
        self.signing.read().several
    }

    /// Whether a chain that is good is so only by another authority than the one that signs.
    pub fn is_of_former(&self, chain: &[CertificateDer<'_>]) -> bool {
        let signing = self.signing.read();
        signing.several
            && verify::tls::client(chain, &signing.clients).is_err()
            && verify::tls::client(chain, &signing.front_proxies).is_err()
    }

    /// Reads the chain that a client presented.
    pub fn read(&self, chain: &[CertificateDer<'_>]) -> PeerCertificate {
        let judged = |roots: &Live| verify::tls::client(chain, &roots.now());
        let client = judged(&self.clients);
        let front_proxy = self.front_proxies.as_ref().and_then(|roots| judged(roots).ok());
        let known = client.as_ref().ok().or(front_proxy.as_ref());
        let not_after = known.map(|c| c.not_after.as_second());
        let own = known.map(revocations::Certificate::of).unwrap_or_default();
        PeerCertificate {
            client: client.map_err(|e| e.to_string()).and_then(|cert| user_of(&cert)),
            front_proxy: front_proxy.map(|cert| cert.subject.common_name.as_str().into()),
            own,
            not_after: not_after.unwrap_or(i64::MAX),
        }
    }
}

fn user_of(cert: &Certificate) -> Result<UserInfo, String> {
    let subject = &cert.subject;
    if subject.common_name.is_empty() {
        return Err("the certificate has no common name".into());
    }
    let uids = subject
        .attributes
        .iter()
        .filter(|(kind, _)| kind == oid::KUBERNETES_UID);
    let uids: Vec<&str> = uids.map(|(_, uid)| uid.as_str()).collect();
    let uid = match uids[..] {
        [] => "",
        [""] => return Err("UID cannot be an empty string".into()),
        [uid] => uid,
        _ => return Err(format!("expected 1 UID, but found multiple: [{}]", uids.join(" "))),
    };
    let mut user = UserInfo {
        name: subject.common_name.as_str().into(),
        uid: uid.into(),
        groups: subject.organization.iter().map(|g| g.as_str().into()).collect(),
        ..UserInfo::default()
    };
    let id = format!("X509SHA256={}", hex::encode(sha2::Sha256::digest(&cert.raw)));
    user.extra.insert(CREDENTIAL_ID.into(), vec![id.into()]);
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_pki::{Authority, CertSpec};

    #[test]
    fn a_certificate_of_a_known_authority_is_its_user() {
        let (ca, other) = (
            Authority::generate("kubernetes").unwrap(),
            Authority::generate("other").unwrap(),
        );
        let authenticator = CertificateAuthenticator::new(ca.cert_pem(), Some(other.cert_pem())).unwrap();
        let read = |ca: &Authority, spec: &CertSpec| {
            authenticator.read(&tls::certificates(&ca.issue(spec).unwrap().cert_pem).unwrap())
        };
        let spec = CertSpec::client("system:node:n1", Some("system:nodes"));
        let peer = read(&ca, &spec);
        let user = peer.client.clone().unwrap();
        assert_eq!((user.name.as_str(), user.node_name()), ("system:node:n1", Some("n1")));
        assert!(user.extra[CREDENTIAL_ID][0].starts_with("X509SHA256="));
        assert!(peer.is_of(&user));
        let by_token = UserInfo::new("system:node:n1", &[]);
        assert!(!peer.is_of(&by_token));
        let proxy = read(&other, &CertSpec::client("front-proxy-client", None));
        assert!(proxy.client.is_err() && proxy.front_proxy.as_deref() == Some("front-proxy-client"));
        let server = read(&ca, &CertSpec::server("kube-apiserver", vec![]));
        assert!(server.client.is_err(), "a server's certificate is no client's");
    }
}
