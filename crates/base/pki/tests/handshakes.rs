//! Whole handshakes, in memory: servers and clients with certificates as the field makes them.

#![allow(clippy::unwrap_used)]

use jiff::{SignedDuration, Timestamp};
use keelson_pki::verify::Roots;
use keelson_pki::verify::tls::{AnyClient, Servers, client, explain};
use keelson_pki::x509::key::Curve;
use keelson_pki::x509::template::{ExtKeyUsage, Issuer, Template};
use keelson_pki::x509::{AltNames, Name, PublicKey, der, oid, pem};
use p521::ecdsa::signature::RandomizedSigner;
use p521::elliptic_curve::rand_core::OsRng;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{
    ClientConfig, ClientConnection, ServerConfig, ServerConnection, SignatureAlgorithm, SignatureScheme,
    SupportedProtocolVersion,
};
use std::sync::Arc;

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

/// A certificate with its key.
#[derive(Clone)]
struct Party {
    der: CertificateDer<'static>,
    key: Arc<dyn SigningKey>,
}

impl Party {
    /// What `openssl req -x509` makes: signed by itself, and an authority.
    fn of_openssl(algorithm: &'static rcgen::SignatureAlgorithm) -> Party {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::new(["a.example".to_string()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().der().clone();
        let pkcs8 = PrivatePkcs8KeyDer::from(key.serialize_der());
        Party {
            der,
            key: default_provider().key_provider.load_private_key(pkcs8.into()).unwrap(),
        }
    }

    /// The same with a key of P-521, which `rustls` itself has no signatures for.
    fn of_p521() -> Party {
        let key = p521::ecdsa::SigningKey::from_slice(&[1; 66]).unwrap();
        let point = p521::ecdsa::VerifyingKey::from(&key).to_encoded_point(false);
        let public = PublicKey::Ecdsa(Curve::P521, point.as_bytes().to_vec());
        let name = Name::of("leaf", &[]);
        let names = AltNames {
            dns: vec!["a.example".into()],
            ..AltNames::default()
        };
        let template = Template {
            subject: &name.to_der(),
            names: &names,
            key: &public,
            not_before: Timestamp::now() - SignedDuration::from_hours(1),
            not_after: Timestamp::now() + SignedDuration::from_hours(1),
            key_usage: 0,
            ext_key_usage: vec![ExtKeyUsage::ServerAuth, ExtKeyUsage::ClientAuth],
            authority: None,
        };
        let issuer = Issuer {
            subject: &name.to_der(),
            key_id: None,
            algorithm: der::wrap(der::SEQUENCE, [der::write(der::OBJECT_IDENTIFIER, oid::ECDSA_SHA512)]),
        };
        let der = template.issue(&issuer, |body| Ok(signed(&key, body))).unwrap();
        Party {
            der: der.into(),
            key: Arc::new(P521(key)),
        }
    }

    fn trusted(&self) -> Arc<Roots> {
        let text = pem::encode(pem::CERTIFICATE, &self.der);
        Arc::new(Roots::from_pem(text.as_bytes()).unwrap())
    }
    fn shown(&self) -> Arc<SingleCertAndKey> {
        let pair = CertifiedKey::new(vec![self.der.clone()], self.key.clone());
        Arc::new(SingleCertAndKey::from(pair))
    }
}

fn signed(key: &p521::ecdsa::SigningKey, message: &[u8]) -> Vec<u8> {
    let signature: p521::ecdsa::Signature = key.sign_with_rng(&mut OsRng, message);
    signature.to_der().as_bytes().to_vec()
}

struct P521(p521::ecdsa::SigningKey);

impl std::fmt::Debug for P521 {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("P521")
    }
}
impl SigningKey for P521 {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let ours = SignatureScheme::ECDSA_NISTP521_SHA512;
        offered
            .contains(&ours)
            .then(|| Box::new(P521(self.0.clone())) as Box<dyn Signer>)
    }
    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}
impl Signer for P521 {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        Ok(signed(&self.0, message))
    }
    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP521_SHA512
    }
}

/// Lets a client that trusts as given meet a server; what the server saw of the client, or why the client went away.
fn meet(
    server: &Party,
    trust: Arc<Servers>,
    shows: Option<&Party>,
    version: &'static SupportedProtocolVersion,
) -> Result<Option<Vec<CertificateDer<'static>>>, String> {
    let provider = Arc::new(default_provider());
    let serving = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(AnyClient::hinting(&Roots::default()))
        .with_cert_resolver(server.shown());
    let asking = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(trust);
    let asking = match shows {
        Some(party) => asking.with_client_cert_resolver(party.shown()),
        None => asking.with_no_client_auth(),
    };
    let mut server = ServerConnection::new(Arc::new(serving)).unwrap();
    let mut client = ClientConnection::new(Arc::new(asking), ServerName::try_from("a.example").unwrap()).unwrap();
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets().map_err(|e| format!("server: {e}"))?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        client.read_tls(&mut wire.as_slice()).unwrap();
        if let Err(e) = client.process_new_packets() {
            let failure = std::io::Error::new(std::io::ErrorKind::InvalidData, e);
            return Err(explain(&failure).unwrap_or_else(|| failure.to_string()));
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(server.peer_certificates().map(<[_]>::to_vec))
}

#[test]
fn servers_are_taken_as_the_field_makes_them() {
    let parties = [
        Party::of_openssl(&rcgen::PKCS_ECDSA_P256_SHA256),
        Party::of_openssl(&rcgen::PKCS_ECDSA_P384_SHA384),
        Party::of_openssl(&rcgen::PKCS_ED25519),
        Party::of_p521(),
    ];
    for version in VERSIONS {
        for (at, party) in parties.iter().enumerate() {
            let own = Servers::trusting(party.trusted());
            assert_eq!(meet(party, own, None, version), Ok(None), "{at} {version:?}");
            assert_eq!(
                meet(party, Servers::anyone(), None, version),
                Ok(None),
                "{at} {version:?}"
            );
            let other = Servers::trusting(parties[(at + 1) % parties.len()].trusted());
            let why = meet(party, other, None, version).unwrap_err();
            let said = "tls: failed to verify certificate: x509: certificate signed by unknown authority";
            assert!(why.starts_with(said), "{why}");
        }
    }
}

/// Whoever shows a certificate must hold its key, also where nobody asks whose it is.
#[test]
fn keys_are_held_by_who_shows_them() {
    let (own, other) = (
        Party::of_openssl(&rcgen::PKCS_ECDSA_P256_SHA256),
        Party::of_openssl(&rcgen::PKCS_ECDSA_P256_SHA256),
    );
    let thief = Party {
        der: own.der.clone(),
        key: other.key.clone(),
    };
    for version in VERSIONS {
        assert!(meet(&thief, Servers::anyone(), None, version).is_err());
        let refused = meet(&own, Servers::anyone(), Some(&thief), version).unwrap_err();
        assert!(refused.starts_with("server: "), "{refused}");
    }
}

#[test]
fn clients_may_show_what_they_have() {
    let server = Party::of_openssl(&rcgen::PKCS_ECDSA_P256_SHA256);
    for version in VERSIONS {
        for party in [Party::of_p521(), Party::of_openssl(&rcgen::PKCS_ED25519)] {
            let seen = meet(&server, Servers::anyone(), Some(&party), version)
                .unwrap()
                .unwrap();
            assert!(client(&seen, &party.trusted()).is_ok());
            assert!(
                client(&seen, &server.trusted()).is_err(),
                "shown, but nobody vouches for it"
            );
        }
        assert_eq!(meet(&server, Servers::anyone(), None, version), Ok(None));
    }
}
