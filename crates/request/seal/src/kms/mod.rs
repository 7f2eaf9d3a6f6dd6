//! KMS v2: values are sealed by data keys of our own, and a plug-in seals what those are derived from. What a plug-in has to
//! be asked for is a new seed, and each seed that is read for the first time.
//!
//! A stored value is `k8s:enc:kms:v2:PROVIDER:` and an `EncryptedObject`: the sealed seed, the id of the plug-in's key, and the
//! data, sealed by a key that is derived for this value alone ([`derive`]). Reads need no plug-in while a seed is remembered;
//! writes go on for [`COAST`] when the plug-in is not well, and fail then, so that nothing is sealed for ever by a key that has
//! been given up. Times and bounds are upstream's, but for the count of seeds remembered.

mod client;
mod derive;
mod probe;

pub use client::Endpoint;

use crate::metrics::Metrics;
use crate::provider::{Opened, Refusal};
use client::Client;
use derive::{DataKey, SEED};
use parking_lot::Mutex;
use probe::Probe;
use prost::Message;
use prost::bytes::Bytes;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use v2::{EncryptedDekSourceType, EncryptedObject};

/// Messages and client of the protocol, written by `tools/proto/run.sh`.
#[allow(clippy::all, clippy::unwrap_used, missing_docs)]
pub mod v2 {
    include!("../../proto/v2.rs");
}

/// How long a seed is written with after the plug-in was last well.
pub const COAST: Duration = Duration::from_secs(3 * 60);
/// How long an opened seed is remembered.
const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);
/// So many opened seeds are remembered; the oldest are forgotten for more. (Upstream has no bound.)
const MOST_SEEDS: usize = 4096;
const KEY_ID_MOST: usize = 1024;
const SOURCE_MOST: usize = 1024;
const ANNOTATIONS_MOST: usize = 32 * 1024;

/// One plug-in.
pub struct Kms {
    name: String,
    prefix: Vec<u8>,
    by: Arc<str>,
    client: Client,
    metrics: Arc<Metrics>,
    writing: Mutex<Option<Arc<Writing>>>,
    probe: tokio::sync::Mutex<Probe>,
    seeds: Mutex<HashMap<Vec<u8>, (Arc<DataKey>, Instant)>>,
    _stop: DropGuard,
}

/// What values are written with.
struct Writing {
    /// All but the data.
    object: EncryptedObject,
    key: Arc<DataKey>,
    expires: Instant,
    /// The same, for messages.
    expires_at: jiff::Timestamp,
}

impl Kms {
    /// Asks the plug-in once before it returns; one that isn't there yet is no error. It is asked again and again until the
    /// last of the provider is dropped.
    pub async fn start(name: &str, endpoint: Endpoint, timeout: Duration, metrics: Arc<Metrics>) -> Arc<Kms> {
        let stop = CancellationToken::new();
        let kms = Arc::new(Kms {
            name: name.into(),
            prefix: format!("k8s:enc:kms:v2:{name}:").into_bytes(),
            by: format!("kms/{name}").into(),
            client: Client::new(name, endpoint, timeout, metrics.clone()),
            metrics,
            writing: Mutex::default(),
            probe: Default::default(),
            seeds: Mutex::default(),
            _stop: stop.clone().drop_guard(),
        });
        let well = kms.check().await.is_ok();
        tokio::spawn(probe::run(Arc::downgrade(&kms), well, stop));
        kms
    }

    pub(crate) fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    pub(crate) fn shown(&self) -> String {
        self.by.to_string()
    }

    pub(crate) async fn open(&self, data: &[u8], context: &[u8]) -> Result<Opened, Refusal> {
        let object = EncryptedObject::decode(data).map_err(|e| format!("proto: {e}"))?;
        valid(&object)?;
        let later = |why: String| Refusal { why, later: true };
        let (key_id, kind) = {
            let writing = self.writing.lock();
            let writing = writing.as_ref().ok_or_else(|| later(NOT_PRIMED.into()))?;
            (writing.object.key_id.clone(), writing.object.encrypted_dek_source_type)
        };
        let at = remembered_as(&object);
        let key = match self.remembered(&at) {
            Some(key) => key,
            None => {
                self.metrics.seed_missed();
                let source = self.client.decrypt(&object).await.map_err(|e| Refusal {
                    why: format!("failed to decrypt DEK, error: {e}"),
                    later: e.later(),
                })?;
                let key = Arc::new(DataKey::of(object.encrypted_dek_source_type(), &source)?);
                self.remember(at, key.clone());
                key
            }
        };
        self.metrics.key_used("from_storage", &self.name, &object.key_id);
        Ok(Opened {
            value: key.open(&object.encrypted_data, context)?,
            stale: object.key_id != key_id || object.encrypted_dek_source_type != kind,
            by: self.by.clone(),
        })
    }

    pub(crate) fn seal(&self, value: &[u8], context: &[u8]) -> Result<Vec<u8>, Refusal> {
        let writing = self.writing.lock().clone().ok_or(NOT_PRIMED)?;
        if Instant::now() > writing.expires {
            let (id, now) = (hash(&writing.object.key_id), keelson_clock::now());
            let at = &writing.expires_at;
            return Err(format!(
                "encryptedDEKSource with keyID hash \"{id}\" expired at {at:.0} (current time is {now:.0})"
            )
            .into());
        }
        let mut object = writing.object.clone();
        object.encrypted_data = writing.key.seal(value, context)?.into();
        valid(&object)?;
        self.metrics.key_used("to_storage", &self.name, &object.key_id);
        // Whoever reads it next needs no plug-in.
        self.remember(remembered_as(&object), writing.key.clone());
        let mut out = self.prefix.clone();
        object.encode(&mut out).map_err(|e| e.to_string())?;
        Ok(out)
    }

    /// A new seed, if the plug-in's key is another than the one that the seed was sealed by; else the seed is good for longer.
    async fn follow(&self, key_id: &str) -> Result<(), String> {
        let (expires, expires_at) = expiry();
        let before = self.writing.lock().clone();
        if let Some(before) = before.as_ref().filter(|w| w.object.key_id == key_id) {
            *self.writing.lock() = Some(Arc::new(Writing {
                object: before.object.clone(),
                key: before.key.clone(),
                expires,
                expires_at,
            }));
            return Ok(());
        }
        let made = self.seed().await;
        let encrypted = made.as_ref().map_or("", |(object, _)| object.key_id.as_str());
        let (encrypted, stands) = (hash(encrypted), before.as_ref().map_or("", |w| &w.object.key_id));
        match made {
            Ok((object, key)) if object.key_id == key_id => {
                *self.writing.lock() = Some(Arc::new(Writing {
                    object,
                    key,
                    expires,
                    expires_at,
                }));
                tracing::info!(
                    provider = self.name,
                    key = hash(key_id),
                    "values are sealed by a new key of the plug-in"
                );
                Ok(())
            }
            made => Err(format!(
                "failed to rotate DEK, error: {}, statusKeyIDHash=\"{}\", encryptKeyIDHash=\"{encrypted}\", stateKeyIDHash=\"{}\"",
                made.err()
                    .unwrap_or_else(|| "the plug-in's answers name different keys".into()),
                hash(key_id),
                hash(stands)
            )),
        }
    }

    /// Sealed by the plug-in, and the data key of it.
    async fn seed(&self) -> Result<(EncryptedObject, Arc<DataKey>), String> {
        let seed: [u8; SEED] = crate::provider::random().map_err(|e| e.why)?;
        let key = DataKey::seed(&seed);
        let answer = self.client.encrypt(Bytes::copy_from_slice(&seed)).await;
        let answer = answer.map_err(|e| format!("failed to encrypt DEK, error: {e}"))?;
        let mut object = EncryptedObject {
            // Anything, so that the rest can be checked.
            encrypted_data: Bytes::from_static(&[0]),
            key_id: answer.key_id,
            encrypted_dek_source: answer.ciphertext,
            annotations: answer.annotations,
            encrypted_dek_source_type: EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed as i32,
        };
        valid(&object)?;
        object.encrypted_data = Bytes::new();
        Ok((object, Arc::new(key)))
    }

    fn remembered(&self, at: &[u8]) -> Option<Arc<DataKey>> {
        let mut seeds = self.seeds.lock();
        let (key, since) = seeds.get(at)?;
        if since.elapsed() < REMEMBERED {
            return Some(key.clone());
        }
        seeds.remove(at);
        None
    }

    fn remember(&self, at: Vec<u8>, key: Arc<DataKey>) {
        let mut seeds = self.seeds.lock();
        if seeds.contains_key(&at) {
            return;
        }
        if seeds.len() >= MOST_SEEDS {
            let oldest = seeds
                .iter()
                .min_by_key(|(_, (_, since))| *since)
                .map(|(at, _)| at.clone());
            oldest.and_then(|at| seeds.remove(&at));
        }
        seeds.insert(at, (key, Instant::now()));
        self.metrics.seeds(&self.name, seeds.len());
    }
}

const NOT_PRIMED: &str = "got unexpected nil transformer";

fn expiry() -> (Instant, jiff::Timestamp) {
    let date = keelson_clock::now();
    let at = date.checked_add(jiff::SignedDuration::from_secs(COAST.as_secs() as i64));
    (Instant::now() + COAST, at.unwrap_or(date))
}

/// All that says which seed it is.
fn remembered_as(object: &EncryptedObject) -> Vec<u8> {
    let mut out = object.encrypted_dek_source_type.to_be_bytes().to_vec();
    let mut add = |bytes: &[u8]| {
        out.extend_from_slice(&bytes.len().to_be_bytes());
        out.extend_from_slice(bytes);
    };
    add(&object.encrypted_dek_source);
    add(object.key_id.as_bytes());
    for (key, value) in object.annotations.iter().collect::<BTreeMap<_, _>>() {
        add(key.as_bytes());
        add(value);
    }
    out
}

fn valid(object: &EncryptedObject) -> Result<(), String> {
    let kind = object.encrypted_dek_source_type;
    if EncryptedDekSourceType::try_from(kind).is_err() {
        return Err(format!("unknown encryptedDEKSourceType: {kind}"));
    }
    if object.encrypted_data.is_empty() {
        return Err("encrypted data is empty".into());
    }
    match object.encrypted_dek_source.len() {
        0 => return Err("failed to validate encrypted DEK source: encrypted DEK source is empty".into()),
        n if n > SOURCE_MOST => {
            return Err(format!(
                "failed to validate encrypted DEK source: encrypted DEK source is {n} bytes, which exceeds the max size of {SOURCE_MOST}"
            ));
        }
        _ => {}
    }
    valid_key_id(&object.key_id).map_err(|(_, e)| format!("failed to validate key id: {e}"))?;
    valid_annotations(&object.annotations).map_err(|e| format!("failed to validate annotations: {e}"))
}

/// The code is for metrics.
fn valid_key_id(id: &str) -> Result<(), (&'static str, String)> {
    match id.len() {
        0 => Err(("empty", "keyID is empty".into())),
        n if n > KEY_ID_MOST => Err((
            "too_long",
            format!("keyID is {n} bytes, which exceeds the max size of {KEY_ID_MOST}"),
        )),
        _ => Ok(()),
    }
}

fn valid_annotations(annotations: &HashMap<String, Bytes>) -> Result<(), String> {
    let label = |l: &str| {
        let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        (1..=63).contains(&l.len()) && l.bytes().all(|b| inner(&b)) && !l.starts_with('-') && !l.ends_with('-')
    };
    for key in annotations.keys() {
        let name = key.strip_suffix('.').unwrap_or(key);
        if name.len() > 253 || !name.split('.').all(label) {
            return Err(format!(
                "annotations: Invalid value: \"{name}\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ));
        }
        if !name.contains('.') {
            return Err(format!(
                "annotations: Invalid value: \"{name}\": should be a domain with at least two segments separated by dots"
            ));
        }
    }
    let size: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > ANNOTATIONS_MOST {
        return Err(format!(
            "total size of annotations is {size}, which exceeds the max size of {ANNOTATIONS_MOST}"
        ));
    }
    Ok(())
}

/// Ids may be worth hiding: what is shown of them.
pub(crate) fn hash(text: &str) -> String {
    match text {
        "" => String::new(),
        text => format!("sha256:{:x}", Sha256::digest(text)),
    }
}
