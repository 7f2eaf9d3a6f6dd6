//! The providers of an `EncryptionConfiguration`: what they make of a value, byte by byte as upstream.
//!
//! | provider  | prefix                        | then                                              |
//! |-----------|-------------------------------|---------------------------------------------------|
//! | aesgcm    | `k8s:enc:aesgcm:v1:KEY:`      | nonce (12) · ciphertext · tag; bound to the store's key |
//! | aescbc    | `k8s:enc:aescbc:v1:KEY:`      | initial vector (16) · ciphertext, padded by PKCS#7 |
//! | secretbox | `k8s:enc:secretbox:v1:KEY:`   | nonce (24) · tag · ciphertext (NaCl)              |
//! | identity  | none                          | the value                                         |
//! | kms (v2)  | `k8s:enc:kms:v2:PROVIDER:`    | see [`crate::kms`]                                |
//!
//! The first provider writes; each reads what has its prefix. What another than the first, or another than its first key, has
//! written is *stale*: to be written anew.

use crate::kms::Kms;
use aes::cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit, block_padding::Pkcs7};
use aes_gcm::aead::consts::U12;
use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{AesGcm, Nonce};
use bytes::Bytes;
use crypto_secretbox::XSalsa20Poly1305;
use std::sync::Arc;

pub const GCM: &[u8] = b"k8s:enc:aesgcm:v1:";
pub const CBC: &[u8] = b"k8s:enc:aescbc:v1:";
pub const SECRETBOX: &[u8] = b"k8s:enc:secretbox:v1:";
/// What is sealed begins so, by whatever provider.
pub const ANY: &[u8] = b"k8s:enc:";

const GCM_NONCE: usize = 12;
const CBC_BLOCK: usize = 16;
const SECRETBOX_NONCE: usize = 24;
const SECRETBOX_TAG: usize = 16;

/// Why a value could not be sealed or opened. Never says anything of keys or values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub why: String,
    /// It may be opened later: whoever has to be asked doesn't answer.
    pub later: bool,
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        let later = false;
        Refusal { why, later }
    }
}

impl From<&str> for Refusal {
    fn from(why: &str) -> Self {
        why.to_string().into()
    }
}

/// A value that was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened {
    pub value: Bytes,
    /// To be written anew.
    pub stale: bool,
    /// The provider and the key that had sealed it: `secretbox/key1`.
    pub by: Arc<str>,
}

/// AES-GCM with a key of any of AES's lengths.
pub struct Gcm(GcmKey);

enum GcmKey {
    Aes128(Box<AesGcm<aes::Aes128, U12>>),
    Aes192(Box<AesGcm<aes::Aes192, U12>>),
    Aes256(Box<AesGcm<aes::Aes256, U12>>),
}

impl Gcm {
    pub fn new(key: &[u8]) -> Result<Gcm, Refusal> {
        let wrong = |_| format!("crypto/aes: invalid key size {}", key.len());
        Ok(Gcm(match key.len() {
            16 => GcmKey::Aes128(Box::new(AesGcm::new_from_slice(key).map_err(wrong)?)),
            24 => GcmKey::Aes192(Box::new(AesGcm::new_from_slice(key).map_err(wrong)?)),
            _ => GcmKey::Aes256(Box::new(AesGcm::new_from_slice(key).map_err(wrong)?)),
        }))
    }

    pub(crate) fn open(&self, data: &[u8], context: &[u8]) -> Result<Bytes, Refusal> {
        let (nonce, msg) = data.split_first_chunk::<GCM_NONCE>().ok_or_else(too_short)?;
        let (nonce, payload): (&Nonce<U12>, _) = (nonce.into(), Payload { msg, aad: context });
        let opened = match &self.0 {
            GcmKey::Aes128(key) => key.decrypt(nonce, payload),
            GcmKey::Aes192(key) => key.decrypt(nonce, payload),
            GcmKey::Aes256(key) => key.decrypt(nonce, payload),
        };
        opened
            .map(Bytes::from)
            .map_err(|_| "cipher: message authentication failed".into())
    }

    pub(crate) fn seal(&self, value: &[u8], context: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        let nonce: [u8; GCM_NONCE] = random()?;
        let payload = Payload {
            msg: value,
            aad: context,
        };
        let sealed = match &self.0 {
            GcmKey::Aes128(key) => key.encrypt(&nonce.into(), payload),
            GcmKey::Aes192(key) => key.encrypt(&nonce.into(), payload),
            GcmKey::Aes256(key) => key.encrypt(&nonce.into(), payload),
        };
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed.map_err(|_| "the value is too large for AES-GCM")?);
        Ok(())
    }
}

/// AES-CBC with a key of any of AES's lengths.
pub struct Cbc(Vec<u8>);

impl Cbc {
    pub fn new(key: &[u8]) -> Result<Cbc, Refusal> {
        match key.len() {
            16 | 24 | 32 => Ok(Cbc(key.to_vec())),
            n => Err(format!("crypto/aes: invalid key size {n}").into()),
        }
    }

    fn open(&self, data: &[u8]) -> Result<Bytes, Refusal> {
        let (iv, text) = data.split_at_checked(CBC_BLOCK).ok_or_else(too_short)?;
        if text.len() % CBC_BLOCK != 0 {
            return Err("the stored data is not a multiple of the block size".into());
        }
        if text.is_empty() {
            return Err("invalid PKCS7 data (empty or not padded)".into());
        }
        let opened = match self.0.len() {
            16 => cbc::Decryptor::<aes::Aes128>::new_from_slices(&self.0, iv)
                .map(|c| c.decrypt_padded_vec_mut::<Pkcs7>(text)),
            24 => cbc::Decryptor::<aes::Aes192>::new_from_slices(&self.0, iv)
                .map(|c| c.decrypt_padded_vec_mut::<Pkcs7>(text)),
            _ => cbc::Decryptor::<aes::Aes256>::new_from_slices(&self.0, iv)
                .map(|c| c.decrypt_padded_vec_mut::<Pkcs7>(text)),
        };
        let opened = opened.map_err(|e| e.to_string())?;
        opened.map(Bytes::from).map_err(|_| "invalid padding on input".into())
    }

    fn seal(&self, value: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        let iv: [u8; CBC_BLOCK] = random()?;
        let sealed = match self.0.len() {
            16 => cbc::Encryptor::<aes::Aes128>::new_from_slices(&self.0, &iv)
                .map(|c| c.encrypt_padded_vec_mut::<Pkcs7>(value)),
            24 => cbc::Encryptor::<aes::Aes192>::new_from_slices(&self.0, &iv)
                .map(|c| c.encrypt_padded_vec_mut::<Pkcs7>(value)),
            _ => cbc::Encryptor::<aes::Aes256>::new_from_slices(&self.0, &iv)
                .map(|c| c.encrypt_padded_vec_mut::<Pkcs7>(value)),
        };
        out.extend_from_slice(&iv);
        out.extend_from_slice(&sealed.map_err(|e| e.to_string())?);
        Ok(())
    }
}

/// NaCl's secretbox: XSalsa20 and Poly1305.
pub struct Secretbox(XSalsa20Poly1305);

impl Secretbox {
    pub fn new(key: &[u8]) -> Result<Secretbox, Refusal> {
        let wrong = |_| format!("expected key size 32 for secretbox provider, got {}", key.len());
        Ok(Secretbox(XSalsa20Poly1305::new_from_slice(key).map_err(wrong)?))
    }

    fn open(&self, data: &[u8]) -> Result<Bytes, Refusal> {
        let (nonce, text) = data.split_first_chunk::<SECRETBOX_NONCE>().ok_or_else(too_short)?;
        if text.len() < SECRETBOX_TAG {
            return Err(too_short());
        }
        let opened = self.0.decrypt(nonce.into(), text);
        opened
            .map(Bytes::from)
            .map_err(|_| "secretbox: message authentication failed".into())
    }

    fn seal(&self, value: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        let nonce: [u8; SECRETBOX_NONCE] = random()?;
        let sealed = self.0.encrypt(&nonce.into(), value);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed.map_err(|_| "the value is too large for secretbox")?);
        Ok(())
    }
}

fn too_short() -> Refusal {
    "the stored data was shorter than the required size".into()
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], Refusal> {
    let mut out = [0; N];
    rand::TryRngCore::try_fill_bytes(&mut rand::rngs::OsRng, &mut out).map_err(|e| format!("no random bytes: {e}"))?;
    Ok(out)
}

pub enum Cipher {
    Gcm(Gcm),
    Cbc(Cbc),
    Secretbox(Secretbox),
}

impl Cipher {
    fn open(&self, data: &[u8], context: &[u8]) -> Result<Bytes, Refusal> {
        match self {
            Cipher::Gcm(cipher) => cipher.open(data, context),
            Cipher::Cbc(cipher) => cipher.open(data),
            Cipher::Secretbox(cipher) => cipher.open(data),
        }
    }
    fn seal(&self, value: &[u8], context: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        match self {
            Cipher::Gcm(cipher) => cipher.seal(value, context, out),
            Cipher::Cbc(cipher) => cipher.seal(value, out),
            Cipher::Secretbox(cipher) => cipher.seal(value, out),
        }
    }
}

/// A key under the name it has in the configuration.
pub struct NamedKey {
    pub name: String,
    pub cipher: Cipher,
    by: Arc<str>,
}

impl NamedKey {
    pub fn new(prefix: &'static [u8], name: &str, cipher: Cipher) -> NamedKey {
        let kind = String::from_utf8_lossy(prefix.strip_prefix(ANY).unwrap_or(prefix));
        let by = format!("{}/{name}", kind.split(':').next().unwrap_or_default()).into();
        let name = name.into();
        NamedKey { name, cipher, by }
    }
}

pub enum Provider {
    /// Keys by name, under one prefix; never empty.
    Keys {
        prefix: &'static [u8],
        keys: Vec<NamedKey>,
    },
    Kms(Arc<Kms>),
    Identity,
}

impl Provider {
    /// What it writes begins so, as metrics name it.
    fn prefix(&self) -> &[u8] {
        match self {
            Provider::Keys { prefix, .. } => prefix,
            Provider::Kms(kms) => kms.prefix(),
            Provider::Identity => b"",
        }
    }

    /// `None`: not this provider's.
    async fn open(&self, data: &[u8], context: &[u8]) -> Option<Result<Opened, Refusal>> {
        match self {
            Provider::Identity if data.starts_with(ANY) => None,
            Provider::Identity => Some(Ok(Opened {
                value: Bytes::copy_from_slice(data),
                stale: false,
                by: IDENTITY.into(),
            })),
            Provider::Keys { prefix, keys } => {
                let rest = data.strip_prefix(*prefix)?;
                let kind = if *prefix == SECRETBOX { "Secretbox" } else { "AES" };
                Some(opened_by(keys, rest, context).unwrap_or_else(|| {
                    Err(format!("no matching key was found for the provided {kind} transformer").into())
                }))
            }
            Provider::Kms(kms) => Some(kms.open(data.strip_prefix(kms.prefix())?, context).await),
        }
    }

    fn seal(&self, value: &[u8], context: &[u8]) -> Result<Option<Vec<u8>>, Refusal> {
        match self {
            Provider::Identity => Ok(None),
            Provider::Kms(kms) => kms.seal(value, context).map(Some),
            Provider::Keys { prefix, keys } => {
                let key = keys.first().ok_or("there is no key")?;
                let mut out = [prefix, key.name.as_bytes(), b":"].concat();
                out.reserve(value.len() + 64);
                key.cipher.seal(value, context, &mut out)?;
                Ok(Some(out))
            }
        }
    }

    /// `secretbox/key1`
    pub fn shown(&self) -> String {
        match self {
            Provider::Identity => IDENTITY.into(),
            Provider::Kms(kms) => kms.shown(),
            Provider::Keys { keys, .. } => keys.first().map(|key| key.by.to_string()).unwrap_or_default(),
        }
    }
}

const IDENTITY: &str = "identity";

/// `None`: no key has the name. Names may begin alike, and one name may stand for two keys.
fn opened_by(keys: &[NamedKey], data: &[u8], context: &[u8]) -> Option<Result<Opened, Refusal>> {
    let mut refusal = None;
    for (at, key) in keys.iter().enumerate() {
        let Some(rest) = data
            .strip_prefix(key.name.as_bytes())
            .and_then(|r| r.strip_prefix(b":"))
        else {
            continue;
        };
        match key.cipher.open(rest, context) {
            Ok(value) => {
                let (stale, by) = (at > 0, key.by.clone());
                return Some(Ok(Opened { value, stale, by }));
            }
            Err(error) => refusal = Some(Err(error)),
        }
    }
    refusal
}

/// A resource's providers, in their order.
pub struct Providers(pub Vec<Arc<Provider>>);

impl Providers {
    /// `context`: the value's key in the store.
    pub async fn open(&self, data: &[u8], context: &[u8]) -> Result<Opened, Refusal> {
        let mut refusals: Vec<Refusal> = Vec::new();
        for (at, provider) in self.0.iter().enumerate() {
            match provider.open(data, context).await {
                None => {}
                Some(Ok(opened)) => {
                    let stale = opened.stale || at > 0;
                    return Ok(Opened { stale, ..opened });
                }
                Some(Err(refusal)) => refusals.push(refusal),
            }
        }
        if refusals.len() < 2 {
            return Err(refusals.pop().unwrap_or_else(|| "no matching prefix found".into()));
        }
        let all: Vec<&str> = refusals.iter().map(|r| r.why.as_str()).collect();
        Err(Refusal {
            why: format!("[{}]", all.join(", ")),
            later: refusals.iter().any(|r| r.later),
        })
    }

    /// What is to be stored; `None`: the value as it is.
    pub fn seal(&self, value: &[u8], context: &[u8]) -> Result<Option<Vec<u8>>, Refusal> {
        match self.0.first() {
            Some(provider) => provider.seal(value, context),
            None => Ok(None),
        }
    }

    /// The prefix of the provider that has sealed this, as upstream's metrics name it.
    pub(crate) fn prefix_of(&self, data: &[u8]) -> &str {
        let found = self
            .0
            .iter()
            .map(|p| p.prefix())
            .find(|p| !p.is_empty() && data.starts_with(p));
        match found {
            Some(prefix) => std::str::from_utf8(prefix).unwrap_or("unknown"),
            None if data.starts_with(ANY) => "unknown",
            None => IDENTITY,
        }
    }

    pub fn writes_by(&self) -> String {
        self.0.first().map_or_else(|| IDENTITY.into(), |p| p.shown())
    }
}
