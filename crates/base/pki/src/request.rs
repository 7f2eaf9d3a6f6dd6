//! Requests for certificates: what a machine sends whose authority is elsewhere.

use crate::authority::San;
use anyhow::{Context, Result};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

/// A new key, and a request for a certificate of it.
pub struct KeyAndRequest {
    pub key_pem: String,
    pub request_pem: String,
}

pub fn request(common_name: &str, organizations: &[&str], sans: &[San]) -> Result<KeyAndRequest> {
    let key = KeyPair::generate().context("making a key")?;
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    for organization in organizations {
        subject.push(DnType::OrganizationName, *organization);
    }
    subject.push(DnType::CommonName, common_name);
    params.distinguished_name = subject;
    for san in sans {
        params.subject_alt_names.push(match san {
            San::Ip(ip) => SanType::IpAddress(*ip),
            San::Dns(name) => {
                let valid = name.as_str().try_into();
                SanType::DnsName(valid.with_context(|| format!("{name:?} is no DNS name"))?)
            }
        });
    }
    Ok(KeyAndRequest {
        request_pem: params.serialize_request(&key)?.pem()?,
        key_pem: key.serialize_pem(),
    })
}
