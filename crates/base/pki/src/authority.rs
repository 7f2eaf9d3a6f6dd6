//! A certificate authority: issues certificates, signs requests.

use crate::files;
use anyhow::{Context, Result, bail};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long an authority lives.
pub const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// How long a certificate lives.
pub const CERT_LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Clocks of other machines may run behind.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Server,
    Client,
}

/// A subject alternative name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum San {
    Dns(String),
    Ip(IpAddr),
}

impl San {
    /// An address where it parses as one, else a name.
    pub fn parse(s: &str) -> San {
        s.parse().map_or_else(|_| San::Dns(s.to_string()), San::Ip)
    }
}

/// What a certificate says.
#[derive(Clone, Debug)]
pub struct CertSpec {
    pub common_name: String,
    /// The group, for a client. (One: a name of several organisations can't be written by rcgen.)
    pub organization: Option<String>,
    pub sans: Vec<San>,
    pub usages: Vec<Usage>,
    pub lifetime: Duration,
}

impl CertSpec {
    pub fn client(common_name: &str, organization: Option<&str>) -> Self {
        CertSpec {
            common_name: common_name.into(),
            organization: organization.map(str::to_string),
            sans: Vec::new(),
            usages: vec![Usage::Client],
            lifetime: CERT_LIFETIME,
        }
    }
    pub fn server(common_name: &str, sans: Vec<San>) -> Self {
        CertSpec {
            common_name: common_name.into(),
            organization: None,
            sans,
            usages: vec![Usage::Server],
            lifetime: CERT_LIFETIME,
        }
    }
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Issued {
    pub cert_pem: String,
    pub key_pem: String,
}

/// A certificate authority with its key.
pub struct Authority {
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The authority in `<dir>/<name>.crt` and `.key`, made when there is none.
    pub fn open(dir: &Path, name: &str, common_name: &str) -> Result<Self> {
        let (cert, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        match (files::read(&cert)?, files::read(&key)?) {
            (Some(c), Some(k)) => Self::from_pem(&c, &k)
                .with_context(|| format!("loading the authority {} with {}", cert.display(), key.display())),
            (None, None) => {
                let made = Self::generate(common_name)?;
                files::write_secret(&key, made.key_pem().as_bytes())?;
                files::write_public(&cert, made.cert_pem.as_bytes())?;
                Ok(made)
            }
            // A key without certificate is what a crash between the two writes leaves: nothing was issued by it yet.
            (None, Some(k)) => {
                let made = Self::self_signed(common_name, KeyPair::from_pem(&k).context("reading the key")?)?;
                files::write_public(&cert, made.cert_pem.as_bytes())?;
                Ok(made)
            }
            (Some(_), None) => bail!(
                "{} is there but its key {} is not: restore the key, or remove both to make a new authority (every certificate of the cluster is then issued anew)",
                cert.display(),
                key.display()
            ),
        }
    }

    pub fn generate(common_name: &str) -> Result<Self> {
        Self::self_signed(common_name, KeyPair::generate().context("making a key")?)
    }

    fn self_signed(common_name: &str, key: KeyPair) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(common_name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::KeyCertSign,
        ];
        params.subject_alt_names = vec![SanType::DnsName(common_name.try_into()?)];
        set_validity(&mut params, CA_LIFETIME);
        let cert_pem = params.self_signed(&key)?.pem();
        Ok(Authority {
            cert_pem,
            issuer: Issuer::new(params, key),
        })
    }

    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self> {
        let key = KeyPair::from_pem(key_pem).context("reading the key")?;
        let issuer = Issuer::from_ca_cert_pem(cert_pem, key).context("reading the certificate")?;
        Ok(Authority {
            cert_pem: cert_pem.to_string(),
            issuer,
        })
    }

    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }
    /// Its private key, for whoever signs with it.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A new key with a certificate for it.
    pub fn issue(&self, spec: &CertSpec) -> Result<Issued> {
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(&spec.common_name, spec.organization.as_deref());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = spec.usages.iter().map(|u| extended(*u)).collect();
        params.use_authority_key_identifier_extension = true;
        params.is_ca = IsCa::ExplicitNoCa;
        params.subject_alt_names = spec.sans.iter().map(alt_name).collect::<Result<_>>()?;
        set_validity(&mut params, spec.lifetime);
        let key = KeyPair::generate().context("making a key")?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            cert_pem: cert.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// Signs a request (PEM): its subject and names, the given usages and lifetime.
    pub fn sign_request(&self, request_pem: &[u8], usages: &[Usage], lifetime: Duration) -> Result<String> {
        let der = CertificateSigningRequestDer::from_pem_slice(request_pem)
            .map_err(|e| anyhow::anyhow!("the request is no PEM certificate request: {e}"))?;
        // rcgen would drop all organisations but one, and with them groups: such a request is refused.
        refuse_repeated_organizations(&der)?;
        let mut request = CertificateSigningRequestParams::from_der(&der).context("reading the request")?;
        let params = &mut request.params;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = usages.iter().map(|u| extended(*u)).collect();
        params.use_authority_key_identifier_extension = true;
        params.is_ca = IsCa::ExplicitNoCa;
        params.serial_number = None;
        set_validity(params, lifetime);
        Ok(request.signed_by(&self.issuer)?.pem())
    }
}

fn refuse_repeated_organizations(der: &[u8]) -> Result<()> {
    use x509_parser::prelude::*;
    let (_, request) =
        X509CertificationRequest::from_der(der).map_err(|e| anyhow::anyhow!("reading the request: {e}"))?;
    let count = request.certification_request_info.subject.iter_organization().count();
    anyhow::ensure!(
        count <= 1,
        "the request names {count} organizations; at most one is supported"
    );
    Ok(())
}

fn extended(usage: Usage) -> ExtendedKeyUsagePurpose {
    match usage {
        Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
        Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
    }
}

fn alt_name(san: &San) -> Result<SanType> {
    Ok(match san {
        San::Ip(ip) => SanType::IpAddress(*ip),
        San::Dns(name) => SanType::DnsName(
            name.as_str()
                .try_into()
                .with_context(|| format!("{name:?} is no DNS name"))?,
        ),
    })
}

fn distinguished_name(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    if let Some(org) = organization {
        dn.push(DnType::OrganizationName, org);
    }
    dn.push(DnType::CommonName, common_name);
    dn
}

fn set_validity(params: &mut CertificateParams, lifetime: Duration) {
    let now = std::time::SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + lifetime).into();
}

/// What a certificate says of itself.
#[derive(Clone, Debug)]
pub struct CertFacts {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub sans: Vec<San>,
    pub not_before: i64,
    pub not_after: i64,
}

/// Reads the first certificate of a PEM text.
pub fn read_certificate(pem: &str) -> Result<CertFacts> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| anyhow::anyhow!("no PEM certificate: {e}"))?;
    certificate_facts(&der)
}

/// Reads a certificate.
pub fn certificate_facts(der: &[u8]) -> Result<CertFacts> {
    use x509_parser::prelude::*;
    let (_, cert) = X509Certificate::from_der(der).map_err(|e| anyhow::anyhow!("no certificate: {e}"))?;
    let text = |a: &AttributeTypeAndValue| a.as_str().ok().map(str::to_string);
    let mut sans = Vec::new();
    if let Some(ext) = cert
        .subject_alternative_name()
        .map_err(|e| anyhow::anyhow!("alternative names: {e}"))?
    {
        for name in &ext.value.general_names {
            match name {
                GeneralName::DNSName(n) => sans.push(San::Dns((*n).to_string())),
                GeneralName::IPAddress(b) => {
                    if let Ok(v4) = <[u8; 4]>::try_from(*b) {
                        sans.push(San::Ip(v4.into()));
                    } else if let Ok(v6) = <[u8; 16]>::try_from(*b) {
                        sans.push(San::Ip(v6.into()));
                    }
                }
                _ => {}
            }
        }
    }
    Ok(CertFacts {
        common_name: cert
            .subject()
            .iter_common_name()
            .filter_map(text)
            .last()
            .unwrap_or_default(),
        organizations: cert.subject().iter_organization().filter_map(text).collect(),
        sans,
        not_before: cert.validity().not_before.timestamp(),
        not_after: cert.validity().not_after.timestamp(),
    })
}

impl CertFacts {
    /// When less than 30 % of the lifetime is left it is time for a new one.
    pub fn renew_at(&self) -> i64 {
        self.not_after - (self.not_after - self.not_before) * 3 / 10
    }
}

/// Hex SHA-256 of the first certificate of a PEM text: what a join token pins.
pub fn fingerprint(pem: &str) -> Result<String> {
    use sha2::Digest;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| anyhow::anyhow!("no PEM certificate: {e}"))?;
    Ok(hex::encode(sha2::Sha256::digest(&der)))
}

/// Whether a certificate says what is wanted.
pub fn says(facts: &CertFacts, spec: &CertSpec) -> bool {
    let sorted = |sans: &[San]| {
        let mut v = sans.to_vec();
        v.sort();
        v
    };
    facts.common_name == spec.common_name
        && facts.organizations.iter().eq(spec.organization.iter())
        && sorted(&facts.sans) == sorted(&spec.sans)
}

/// Whether a key is the certificate's.
pub fn pairs(cert_pem: &str, key_pem: &str) -> bool {
    use x509_parser::prelude::*;
    let Ok(key) = KeyPair::from_pem(key_pem) else {
        return false;
    };
    CertificateDer::from_pem_slice(cert_pem.as_bytes()).is_ok_and(|der| {
        X509Certificate::from_der(&der)
            .is_ok_and(|(_, c)| c.public_key().subject_public_key.data.as_ref() == key.public_key_raw())
    })
}

/// Whether the authority's certificate verifies the other.
pub fn signed_by(cert_pem: &str, ca_pem: &str) -> bool {
    use x509_parser::prelude::*;
    let (Ok(cert), Ok(ca)) = (
        CertificateDer::from_pem_slice(cert_pem.as_bytes()),
        CertificateDer::from_pem_slice(ca_pem.as_bytes()),
    ) else {
        return false;
    };
    match (X509Certificate::from_der(&cert), X509Certificate::from_der(&ca)) {
        (Ok((_, cert)), Ok((_, ca))) => {
            cert.issuer() == ca.subject() && cert.verify_signature(Some(ca.public_key())).is_ok()
        }
        _ => false,
    }
}

/// One day, for callers that think in days.
pub const fn days(n: u32) -> Duration {
    Duration::from_secs(DAY.as_secs() * n as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_says_what_was_asked() {
        let ca = Authority::generate("kubernetes").unwrap();
        let mut spec = CertSpec::client("system:node:n1", Some("system:nodes"));
        spec.sans = vec![San::parse("10.0.0.1"), San::parse("n1.example")];
        let facts = read_certificate(&ca.issue(&spec).unwrap().cert_pem).unwrap();
        assert_eq!(facts.common_name, "system:node:n1");
        assert_eq!(facts.organizations, ["system:nodes"]);
        assert_eq!(facts.sans, spec.sans);
        assert!(facts.renew_at() < facts.not_after);
    }

    #[test]
    fn a_request_keeps_its_subject_and_key() {
        let ca = Authority::generate("kubernetes").unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name("system:node:n2", Some("system:nodes"));
        let csr = params.serialize_request(&key).unwrap().pem().unwrap();
        let cert = ca.sign_request(csr.as_bytes(), &[Usage::Client], days(1)).unwrap();
        let facts = read_certificate(&cert).unwrap();
        assert_eq!(
            (facts.common_name.as_str(), facts.organizations),
            ("system:node:n2", vec!["system:nodes".into()])
        );
        assert!(ca.sign_request(b"nonsense", &[], days(1)).is_err());
    }
}
