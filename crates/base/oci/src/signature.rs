//! Signatures of images, as cosign makes them with keys of one's own. Pure: what was fetched is judged by keys that are given.
//!
//! Two forms are read: a *simple signing* payload with its signature beside it, and a *bundle*, whose statement stands in a signed
//! envelope (DSSE). Either way a signature counts if one of the keys made it over these very bytes, and they name the manifest's
//! digest. Certificates and transparency logs are not asked: keys are trusted, nobody else.

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{AlgorithmIdentifier, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, alg_id};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Of a layer that is a simple signing payload, and the annotation with its signature.
pub const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
pub const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// Of a layer that is a bundle, whatever its version: `…v0.3+json`.
pub const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.";
/// Longest payload or bundle.
pub const LONGEST: u64 = 1 << 20;

/// The tag under which signatures of a manifest stand.
pub fn tag(digest: &str) -> String {
    format!("{}.sig", digest.replacen(':', "-", 1))
}

/// The tag under which registries without a list of referrers keep it.
pub fn referrers_tag(digest: &str) -> String {
    digest.replacen(':', "-", 1)
}

/// A key that is trusted, and what it is called in sentences: its file.
pub struct Key {
    pub name: String,
    bits: Vec<u8>,
    verifier: &'static dyn SignatureVerificationAlgorithm,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Key {
    /// A public key in PEM, as `cosign generate-key-pair` and `openssl` write it: ECDSA on P-256 or P-384, RSA, or Ed25519.
    pub fn read(name: &str, pem: &str) -> anyhow::Result<Key> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| anyhow::anyhow!("{name} holds no public key in PEM (BEGIN PUBLIC KEY)"))?;
        let (algorithm, bits) = parts(&der).with_context(|| format!("the public key in {name}"))?;
        // What cosign signs with: SHA-256, whatever the key, but for Ed25519, which has its own.
        let signed = [alg_id::ECDSA_SHA256, alg_id::RSA_PKCS1_SHA256, alg_id::ED25519];
        let known = rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .all;
        let fits = |one: &&&'static dyn SignatureVerificationAlgorithm| {
            let of_key: AlgorithmIdentifier = one.public_key_alg_id();
            of_key.as_ref() == algorithm && signed.contains(&one.signature_alg_id())
        };
        let verifier = known.iter().find(fits);
        let verifier =
            verifier.with_context(|| format!("{name}: keys are ECDSA on P-256 or P-384, RSA, or Ed25519"))?;
        Ok(Key {
            name: name.to_owned(),
            bits: bits.to_vec(),
            verifier: *verifier,
        })
    }

    fn made(&self, message: &[u8], signature: &[u8]) -> bool {
        self.verifier.verify_signature(&self.bits, message, signature).is_ok()
    }
}

/// Algorithm and bits of a `SubjectPublicKeyInfo`.
fn parts(der: &[u8]) -> anyhow::Result<(&[u8], &[u8])> {
    let (whole, rest) = element(der, 0x30)?;
    ensure!(rest.is_empty(), "something stands behind it");
    let (algorithm, rest) = element(whole, 0x30)?;
    let (bits, rest) = element(rest, 0x03)?;
    ensure!(rest.is_empty(), "something stands behind it");
    match bits.split_first() {
        Some((0, bits)) => Ok((algorithm, bits)),
        _ => bail!("it is no whole number of bytes"),
    }
}

/// The content of an element with this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> anyhow::Result<(&[u8], &[u8])> {
    let short = || anyhow::anyhow!("it is no DER");
    let (got, rest) = der.split_first().ok_or_else(short)?;
    ensure!(*got == tag, "it is no SubjectPublicKeyInfo");
    let (length, rest) = match rest {
        [n @ 0..=0x7f, rest @ ..] => (usize::from(*n), rest),
        [0x81, n, rest @ ..] => (usize::from(*n), rest),
        [0x82, a, b, rest @ ..] => (usize::from(u16::from_be_bytes([*a, *b])), rest),
        _ => return Err(short()),
    };
    ensure!(length <= rest.len(), "it is no DER");
    Ok(rest.split_at(length))
}

/// The key that made a simple signing payload's signature for this manifest. An error says why it doesn't count.
pub fn simple<'k>(payload: &[u8], signature: &str, digest: &str, keys: &'k [Key]) -> anyhow::Result<&'k Key> {
    #[derive(Deserialize)]
    struct Payload {
        critical: Critical,
    }
    #[derive(Deserialize)]
    struct Critical {
        image: Image,
        #[serde(rename = "type")]
        kind: String,
    }
    #[derive(Deserialize)]
    struct Image {
        #[serde(rename = "docker-manifest-digest")]
        digest: String,
    }
    let signature = STANDARD
        .decode(signature.trim())
        .context("a signature that is no base64")?;
    let key = signer(payload, &signature, keys)?;
    let said: Payload = serde_json::from_slice(payload).context("the signed payload")?;
    ensure!(
        said.critical.kind == "cosign container image signature",
        "what was signed is no image, but {:?}",
        short(&said.critical.kind)
    );
    ensure!(
        said.critical.image.digest == digest,
        "another image was signed: {}",
        short(&said.critical.image.digest)
    );
    Ok(key)
}

/// The key that signed a bundle's statement about this manifest.
pub fn bundle<'k>(bundle: &[u8], digest: &str, keys: &'k [Key]) -> anyhow::Result<&'k Key> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Bundle {
        dsse_envelope: Option<Envelope>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Envelope {
        payload: String,
        payload_type: String,
        signatures: Vec<Signature>,
    }
    #[derive(Deserialize)]
    struct Signature {
        sig: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Statement {
        predicate_type: String,
        subject: Vec<Subject>,
    }
    #[derive(Deserialize)]
    struct Subject {
        digest: BTreeMap<String, String>,
    }
    const STATEMENT: &str = "application/vnd.in-toto+json";
    /// Other statements (of where an image was built, of what is in it) say nothing of whether it may run.
    const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";
    let read: Bundle = serde_json::from_slice(bundle).context("a bundle")?;
    let envelope = read.dsse_envelope.context("a bundle without an envelope")?;
    ensure!(
        envelope.payload_type == STATEMENT,
        "the envelope holds {:?}",
        short(&envelope.payload_type)
    );
    let payload = STANDARD
        .decode(&envelope.payload)
        .context("an envelope that is no base64")?;
    // What is signed is type and payload together, each with its length.
    let mut message = format!("DSSEv1 {} {STATEMENT} {} ", STATEMENT.len(), payload.len()).into_bytes();
    message.extend_from_slice(&payload);
    let signatures = envelope
        .signatures
        .iter()
        .take(8)
        .filter_map(|s| STANDARD.decode(&s.sig).ok());
    let key = signatures
        .into_iter()
        .find_map(|signature| signer(&message, &signature, keys).ok());
    let key = key.with_context(|| by_none(keys))?;
    let statement: Statement = serde_json::from_slice(&payload).context("the signed statement")?;
    ensure!(
        statement.predicate_type == SIGN,
        "the statement is none of a signature: {:?}",
        short(&statement.predicate_type)
    );
    let (algorithm, hex) = digest.split_once(':').context("no digest")?;
    let named = statement
        .subject
        .iter()
        .any(|s| s.digest.get(algorithm).is_some_and(|d| d == hex));
    ensure!(named, "another image was signed");
    Ok(key)
}

fn signer<'k>(message: &[u8], signature: &[u8], keys: &'k [Key]) -> anyhow::Result<&'k Key> {
    keys.iter()
        .find(|key| key.made(message, signature))
        .with_context(|| by_none(keys))
}

fn by_none(keys: &[Key]) -> String {
    let names: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
    format!("no key of {} made this signature", names.join(", "))
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made by openssl: a key on P-256, and what it signed with SHA-256.
    const KEY: &str = include_str!("golden/cosign.pub");
    const PAYLOAD: &[u8] = include_bytes!("golden/payload.json");
    const SIGNED: &str = include_str!("golden/payload.sig");
    const BUNDLED: &[u8] = include_bytes!("golden/bundle.json");
    const OTHERS: [&str; 3] = [
        include_str!("golden/ed25519.pub"),
        include_str!("golden/rsa.pub"),
        include_str!("golden/p384.pub"),
    ];

    fn digest() -> String {
        format!("sha256:{}", "a1".repeat(32))
    }

    fn keys() -> Vec<Key> {
        let own = [KEY].iter().chain(&OTHERS);
        own.enumerate()
            .map(|(n, pem)| Key::read(&format!("{n}.pub"), pem).unwrap())
            .collect()
    }

    #[test]
    fn what_a_key_signed_counts_for_the_image_that_it_names() {
        assert_eq!(simple(PAYLOAD, SIGNED, &digest(), &keys()).unwrap().name, "0.pub");
        assert_eq!(bundle(BUNDLED, &digest(), &keys()).unwrap().name, "0.pub");
        for (n, signature) in [
            include_str!("golden/payload.ed25519.sig"),
            include_str!("golden/payload.rsa.sig"),
            include_str!("golden/payload.p384.sig"),
        ]
        .iter()
        .enumerate()
        {
            assert_eq!(
                simple(PAYLOAD, signature, &digest(), &keys()).unwrap().name,
                format!("{}.pub", n + 1)
            );
        }
    }

    #[test]
    fn nothing_else_counts() {
        let why = |result: anyhow::Result<&Key>| format!("{:#}", result.unwrap_err());
        let (all, own) = (keys(), digest());
        let other = format!("sha256:{}", "b2".repeat(32));
        assert!(why(simple(PAYLOAD, SIGNED, &other, &all)).contains("another image"));
        assert!(why(bundle(BUNDLED, &other, &all)).contains("another image"));
        assert!(why(simple(PAYLOAD, SIGNED, &own, &all[1..])).contains("no key of 1.pub, 2.pub, 3.pub"));
        assert!(why(bundle(BUNDLED, &own, &all[1..])).contains("no key of"));
        let mut changed = PAYLOAD.to_vec();
        changed.push(b' ');
        assert!(why(simple(&changed, SIGNED, &own, &all)).contains("no key"));
        assert!(simple(PAYLOAD, "?", &own, &all).is_err());
        assert!(simple(b"{}", SIGNED, &own, &all).is_err());
        assert!(bundle(b"{}", &own, &all).is_err() && bundle(b"[", &own, &all).is_err());
        // A signature of the payload is none of an envelope with it.
        let text = String::from_utf8(BUNDLED.to_vec()).unwrap();
        let mut read: serde_json::Value = serde_json::from_str(&text).unwrap();
        read["dsseEnvelope"]["payload"] = STANDARD.encode(PAYLOAD).into();
        assert!(why(bundle(read.to_string().as_bytes(), &own, &all)).contains("no key"));
    }

    #[test]
    fn what_is_no_key_is_refused_by_its_file() {
        for bad in [
            "",
            "key",
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        ] {
            let error = format!("{:#}", Key::read("k.pub", bad).unwrap_err());
            assert!(error.contains("k.pub"), "{error}");
        }
        for length in 0..40 {
            let _ = parts(&[0x30; 40][..length]);
            let _ = parts(&[&[0x30, 0x82, 0xff, 0xff][..], &[0; 40][..length]].concat());
        }
    }
}
