//! A certificate authority: issues certificates, signs requests.

use crate::files;
use crate::x509::template::{ExtKeyUsage, Issuer, Template, key_usage};
use crate::x509::{AltNames, Certificate, Name, PublicKey, Request, der, oid, pem};
use anyhow::{Context, Result, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SigningKey,
};
use sha2::Digest;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long an authority lives.
pub const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// 2026-01-01: no clock that shows less is right.
const PROJECT_BEGAN: i64 = 1_767_225_600;
/// How long a certificate lives.
pub const CERT_LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Clocks of other machines may run behind.
pub const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// Whoever asks for less than this gets it in full: the five minutes are not taken from its end.
const SHORT: Duration = Duration::from_secs(8 * 60 * 60);

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
    /// The groups, for a client.
    pub organizations: Vec<String>,
    pub sans: Vec<San>,
    pub usages: Vec<Usage>,
    pub lifetime: Duration,
}

impl CertSpec {
    pub fn client(common_name: &str, organization: Option<&str>) -> Self {
        CertSpec {
            common_name: common_name.into(),
            organizations: organization.map(str::to_string).into_iter().collect(),
            sans: Vec::new(),
            usages: vec![Usage::Client],
            lifetime: CERT_LIFETIME,
        }
    }
    pub fn server(common_name: &str, sans: Vec<San>) -> Self {
        CertSpec {
            common_name: common_name.into(),
            organizations: Vec::new(),
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

/// For how long, and for what, a request is signed.
#[derive(Clone, Debug)]
pub struct Policy {
    pub key_usage: u16,
    pub ext_key_usage: Vec<ExtKeyUsage>,
    pub lifetime: Duration,
    pub now: Timestamp,
}

/// A certificate authority with its key.
pub struct Authority {
    /// Its own.
    cert_pem: String,
    /// Those that are trusted beside it: the one before or the one to come ([`crate::succession`]).
    others: String,
    /// Its certificate as the one before signed it, for whoever knows that one only.
    introduction: Option<(String, Timestamp)>,
    key: KeyPair,
    /// Its subject, as it stands in its certificate.
    subject: Vec<u8>,
    key_id: Option<Vec<u8>>,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Authority {
    /// The authority in `<dir>/<name>.crt` and `.key`, made when there is none.
    pub fn open(dir: &Path, name: &str, common_name: &str) -> Result<Self> {
        let (cert, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        match (files::read(&cert)?, files::read(&key)?) {
            (Some(c), Some(k)) => {
                let found = Self::from_pem(&c, &k)
                    .with_context(|| format!("loading the authority {} with {}", cert.display(), key.display()))?;
                if found.not_before <= keelson_clock::now() {
                    return found.introduced(files::read(&dir.join(format!("{name}-cross.crt")))?);
                }
                // From a clock that was ahead. Nobody can verify by it; by one of the same name and key everybody can.
                let again = Self::self_signed(common_name, found.key)?;
                ensure!(
                    again.subject == found.subject,
                    "the authority {} begins on {}, which is still to come: set the clock right, or replace it",
                    cert.display(),
                    found.not_before
                );
                files::write_public(&cert, format!("{}{}", again.cert_pem, found.others).as_bytes())?;
                let others = found.others;
                Ok(Authority { others, ..again })
            }
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
        params.distinguished_name = distinguished_name(common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::KeyCertSign,
        ];
        params.subject_alt_names = vec![SanType::DnsName(common_name.try_into()?)];
        // A clock that is ahead when the cluster is made, and then set right, leaves no authority from the future; one that
        // is years behind (boards without a battery) leaves none that has ended. Its key is as secret before as after.
        let made = keelson_clock::now().as_second().max(PROJECT_BEGAN);
        params.not_before = std::time::UNIX_EPOCH.into();
        params.not_after = (std::time::UNIX_EPOCH + Duration::from_secs(made.unsigned_abs()) + CA_LIFETIME).into();
        let cert_pem = params.self_signed(&key)?.pem();
        Self::with_key(&cert_pem, key)
    }

    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self> {
        Self::with_key(cert_pem, KeyPair::from_pem(key_pem).context("reading the key")?)
    }

    fn with_key(cert_pem: &str, key: KeyPair) -> Result<Self> {
        let mut all = pem::certificates(cert_pem.as_bytes()).map(|der| pem::encode(pem::CERTIFICATE, &der));
        let first = all.next().context("no PEM certificate")?;
        let cert = first_certificate(&first)?;
        ensure!(cert.key == public(&key)?, "the key is not the certificate's");
        Ok(Authority {
            cert_pem: first,
            others: all.collect(),
            introduction: None,
            key_id: Some(cert.says.subject_key_id).filter(|id| !id.is_empty()),
            subject: cert.raw_subject,
            not_before: cert.not_before,
            not_after: cert.not_after,
            key,
        })
    }

    fn introduced(self, cross: Option<String>) -> Result<Self> {
        let Some(pem) = cross else { return Ok(self) };
        let cross = first_certificate(&pem).context("the certificate that introduces an authority")?;
        let own = first_certificate(&self.cert_pem)?;
        let introduction = (cross.key == own.key).then_some((pem, cross.not_after));
        Ok(Authority { introduction, ..self })
    }

    /// Its own certificate.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }
    /// All that are trusted in its place: its own certificate first, then the one of before or the one to come.
    pub fn bundle_pem(&self) -> String {
        format!("{}{}", self.cert_pem, self.others)
    }
    /// What is shown to peers of a certificate that it issued: with what leads whoever knows the authority before only to this one.
    pub fn chain(&self, cert_pem: &str) -> String {
        let good = self
            .introduction
            .as_ref()
            .filter(|(_, ends)| keelson_clock::now() < *ends && signed_by(cert_pem, &self.cert_pem));
        match good {
            Some((introduction, _)) => format!("{}\n{introduction}", cert_pem.trim_end()),
            None => cert_pem.to_string(),
        }
    }
    /// Its private key, for whoever signs with it.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// A new key with a certificate for it.
    pub fn issue(&self, spec: &CertSpec) -> Result<Issued> {
        let key = KeyPair::generate().context("making a key")?;
        let public = public(&key)?.context("a key of an unknown kind")?;
        let now = keelson_clock::now();
        ensure!(
            now < self.not_after,
            "the authority ended on {}: set the clock right, or replace its certificate",
            self.not_after
        );
        let mut names = AltNames::default();
        for san in &spec.sans {
            match san {
                San::Ip(ip) => names.ips.push(*ip),
                San::Dns(name) => {
                    ensure!(name.is_ascii(), "{name:?} is no DNS name");
                    names.dns.push(name.clone());
                }
            }
        }
        let der = self.sign(&Template {
            subject: &Name::of(&spec.common_name, &spec.organizations).to_der(),
            names: &names,
            key: &public,
            not_before: now - SignedDuration::try_from(BACKDATE)?,
            not_after: (now + SignedDuration::try_from(spec.lifetime)?).min(self.not_after),
            key_usage: key_usage::DIGITAL_SIGNATURE | key_usage::KEY_ENCIPHERMENT,
            ext_key_usage: spec.usages.iter().map(|u| u.extended()).collect(),
            authority: None,
        })?;
        Ok(Issued {
            cert_pem: pem::encode(pem::CERTIFICATE, &der),
            key_pem: key.serialize_pem(),
        })
    }

    /// A certificate in PEM of what the request means: its subject and names, for the time and the usages of the policy,
    /// and not for longer than the authority itself.
    pub fn sign_request(&self, request: &Request, policy: &Policy) -> Result<String> {
        request
            .check_signature()
            .context("unable to verify certificate request signature")?;
        let key = request.key.as_ref().context("the key is of an unknown kind")?;
        let backdate = SignedDuration::try_from(BACKDATE)?;
        let lifetime = SignedDuration::try_from(policy.lifetime)?;
        let (now, end) = (policy.now, self.not_after);
        let wanted = match policy.lifetime < SHORT {
            true => now + lifetime,
            false => now + lifetime - backdate,
        };
        ensure!(
            now < end,
            "refusing to sign a certificate that expired in the past: NotAfter={}",
            end.strftime("%Y-%m-%d %H:%M:%S +0000 UTC")
        );
        let der = self.sign(&Template {
            subject: &request.subject.to_der(),
            names: &request.names,
            key,
            not_before: now - backdate,
            not_after: wanted.min(end),
            key_usage: policy.key_usage,
            ext_key_usage: policy.ext_key_usage.clone(),
            authority: None,
        })?;
        Ok(pem::encode(pem::CERTIFICATE, &der))
    }

    /// Another of the same name, with a key of its own and ten years before it.
    pub fn successor(&self) -> Result<Authority> {
        let own = first_certificate(&self.cert_pem)?;
        let key = KeyPair::generate().context("making a key")?;
        let spki = key.subject_public_key_info();
        let id = &sha2::Sha256::digest(&spki)[..20];
        let end = keelson_clock::now() + SignedDuration::try_from(CA_LIFETIME)?;
        let template = Template {
            subject: &self.subject,
            names: &own.says.names.unwrap_or_default(),
            key: &public(&key)?.context("a key of an unknown kind")?,
            // As in what is made at first: a clock that is set back ends nothing.
            not_before: Timestamp::UNIX_EPOCH,
            not_after: end,
            key_usage: AUTHORITY_USAGE,
            ext_key_usage: Vec::new(),
            authority: Some(id),
        };
        let der = signed(&template, &self.subject, Some(id), &key)?;
        Self::with_key(&pem::encode(pem::CERTIFICATE, &der), key)
    }

    /// Another's certificate as this one signs it: whoever trusts this one can trust that one by it, until this one ends.
    pub fn introduce(&self, other: &Authority) -> Result<String> {
        let other = first_certificate(&other.cert_pem)?;
        let der = self.sign(&Template {
            subject: &other.raw_subject,
            names: &other.says.names.clone().unwrap_or_default(),
            key: other.key.as_ref().context("a key of an unknown kind")?,
            not_before: Timestamp::UNIX_EPOCH.max(self.not_before),
            not_after: self.not_after.min(other.not_after),
            key_usage: AUTHORITY_USAGE,
            ext_key_usage: Vec::new(),
            authority: Some(&other.says.subject_key_id),
        })?;
        Ok(pem::encode(pem::CERTIFICATE, &der))
    }

    fn sign(&self, template: &Template) -> Result<Vec<u8>> {
        signed(template, &self.subject, self.key_id.as_deref(), &self.key)
    }
}

/// What the key of an authority is for.
const AUTHORITY_USAGE: u16 = key_usage::DIGITAL_SIGNATURE | key_usage::KEY_ENCIPHERMENT | key_usage::CERT_SIGN;

fn signed(template: &Template, subject: &[u8], key_id: Option<&[u8]>, key: &KeyPair) -> Result<Vec<u8>> {
    let algorithm = signature_algorithm(key)?;
    let issuer = Issuer {
        subject,
        key_id,
        algorithm,
    };
    let sign = |body: &[u8]| key.sign(body).map_err(|e| crate::x509::Error(format!("signing: {e}")));
    Ok(template.issue(&issuer, sign)?)
}

/// The AlgorithmIdentifier of a key's signatures.
fn signature_algorithm(key: &KeyPair) -> Result<Vec<u8>> {
    let known: [(&rcgen::SignatureAlgorithm, &[u8], bool); 6] = [
        (&rcgen::PKCS_ECDSA_P256_SHA256, oid::ECDSA_SHA256, false),
        (&rcgen::PKCS_ECDSA_P384_SHA384, oid::ECDSA_SHA384, false),
        (&rcgen::PKCS_ED25519, oid::ED25519, false),
        (&rcgen::PKCS_RSA_SHA256, oid::RSA_SHA256, true),
        (&rcgen::PKCS_RSA_SHA384, oid::RSA_SHA384, true),
        (&rcgen::PKCS_RSA_SHA512, oid::RSA_SHA512, true),
    ];
    let (_, kind, null) = known
        .into_iter()
        .find(|(algorithm, ..)| key.algorithm() == *algorithm)
        .context("nothing is signed by keys of this kind")?;
    let mut parts = vec![der::write(der::OBJECT_IDENTIFIER, kind)];
    if null {
        parts.push(der::write(der::NULL, &[]));
    }
    Ok(der::wrap(der::SEQUENCE, parts))
}

impl Usage {
    fn extended(self) -> ExtKeyUsage {
        match self {
            Usage::Server => ExtKeyUsage::ServerAuth,
            Usage::Client => ExtKeyUsage::ClientAuth,
        }
    }
}

fn distinguished_name(common_name: &str) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    dn.push(DnType::CommonName, common_name);
    dn
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

/// The first certificate of a PEM text.
fn first_certificate(text: &str) -> Result<Certificate> {
    let der = pem::certificates(text.as_bytes())
        .next()
        .context("no PEM certificate")?;
    Ok(Certificate::from_der(&der)?)
}

fn public(key: &KeyPair) -> Result<Option<PublicKey>> {
    Ok(PublicKey::parse(&key.subject_public_key_info())?)
}

/// Reads the first certificate of a PEM text.
pub fn read_certificate(pem: &str) -> Result<CertFacts> {
    let cert = first_certificate(pem)?;
    let names = cert.says.names.unwrap_or_default();
    let dns = names.dns.into_iter().map(San::Dns);
    Ok(CertFacts {
        sans: dns.chain(names.ips.into_iter().map(San::Ip)).collect(),
        common_name: cert.subject.common_name,
        organizations: cert.subject.organization,
        not_before: cert.not_before.as_second(),
        not_after: cert.not_after.as_second(),
    })
}

impl CertFacts {
    /// Whether the certificate is valid now and will be for a while.
    pub fn is_fresh(&self) -> bool {
        let now = keelson_clock::now().as_second();
        self.not_before <= now && now < self.renew_at()
    }
    /// When less than 30 % of the lifetime is left it is time for a new one.
    pub fn renew_at(&self) -> i64 {
        self.not_after - (self.not_after - self.not_before) * 3 / 10
    }
}

/// Hex SHA-256 of the first certificate of a PEM text: what a join token pins.
pub fn fingerprint(pem: &str) -> Result<String> {
    let der = crate::x509::pem::certificates(pem.as_bytes())
        .next()
        .context("no PEM certificate")?;
    Ok(hex::encode(sha2::Sha256::digest(&der)))
}

/// The same of each certificate of a bundle.
pub fn fingerprints(pem: &str) -> Vec<String> {
    let each = crate::x509::pem::certificates(pem.as_bytes());
    each.map(|der| hex::encode(sha2::Sha256::digest(&der))).collect()
}

/// Whether a certificate says what is wanted.
pub fn says(facts: &CertFacts, spec: &CertSpec) -> bool {
    let sorted = |sans: &[San]| {
        let mut v = sans.to_vec();
        v.sort();
        v
    };
    facts.common_name == spec.common_name
        && facts.organizations == spec.organizations
        && sorted(&facts.sans) == sorted(&spec.sans)
}

/// Whether a key is the certificate's.
pub fn pairs(cert_pem: &str, key_pem: &str) -> bool {
    fit(cert_pem, key_pem) == Some(true)
}

/// The same; `None` if one of the two isn't in a form that can be read here.
pub fn fit(cert_pem: &str, key_pem: &str) -> Option<bool> {
    let (cert, key) = (first_certificate(cert_pem).ok()?, KeyPair::from_pem(key_pem).ok()?);
    Some(cert.key.is_some() && public(&key).is_ok_and(|k| k == cert.key))
}

/// Whether the authority's certificate verifies the other.
pub fn signed_by(cert_pem: &str, ca_pem: &str) -> bool {
    match (first_certificate(cert_pem), first_certificate(ca_pem)) {
        (Ok(cert), Ok(ca)) => cert.raw_issuer == ca.raw_subject && cert.check_signature(ca.key.as_ref()).is_ok(),
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
        assert!(says(&facts, &spec), "{facts:?}");
        assert!(facts.renew_at() < facts.not_after);
    }

    #[test]
    fn groups_are_several_and_numbers_never_meet() {
        let ca = Authority::generate("kubernetes").unwrap();
        let mut spec = CertSpec::client("jane", Some("ops"));
        spec.organizations.push("dev".into());
        let (first, second) = (ca.issue(&spec).unwrap(), ca.issue(&spec).unwrap());
        let facts = read_certificate(&first.cert_pem).unwrap();
        assert_eq!(facts.organizations, ["dev", "ops"], "DER sorts them");
        assert!(signed_by(&first.cert_pem, ca.cert_pem()));
        assert!(pairs(&first.cert_pem, &first.key_pem) && !pairs(&first.cert_pem, &second.key_pem));
        let other = Authority::generate("kubernetes").unwrap();
        assert!(
            Authority::from_pem(ca.cert_pem(), &other.key_pem()).is_err(),
            "a key of another authority"
        );
    }

    /// An authority of an older version, made while the clock was ahead.
    #[test]
    fn authorities_from_the_future_are_made_anew_with_their_key() {
        let dir = std::env::temp_dir().join(format!("keelson-pki-future-{}", std::process::id()));
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name("kubernetes");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = (std::time::SystemTime::now() + days(3)).into();
        let future = params.self_signed(&key).unwrap().pem();
        files::write_secret(&dir.join("ca.key"), key.serialize_pem().as_bytes()).unwrap();
        files::write_public(&dir.join("ca.crt"), future.as_bytes()).unwrap();
        let why = Authority::open(&dir, "ca", "another name").err().unwrap().to_string();
        assert!(why.contains("still to come: set the clock right"), "{why}");
        let opened = Authority::open(&dir, "ca", "kubernetes").unwrap();
        assert_ne!(opened.cert_pem(), future);
        assert!(opened.not_before < keelson_clock::now() && opened.key_pem() == key.serialize_pem());
        let again = Authority::open(&dir, "ca", "kubernetes").unwrap();
        assert_eq!(again.cert_pem(), opened.cert_pem());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
