//! The files of pulls: one for each that is under way, one for each image that was pulled. Form, names and place are
//! upstream's: `image_manager/pulling` and `image_manager/pulled` below the kubelet's directory, objects of
//! `kubelet.config.k8s.io/v1beta1`.

use crate::act::credentials::Source;
use crate::host::Host;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

const VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const PREFIX: &str = "sha256-";
/// Longest file that is read; an image's credentials are bounded by those who look at it ([`super::MOST_NOTED`]) for each
/// name it goes by.
const MAX_FILE: u64 = 4 << 20;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Intent {
    kind: String,
    api_version: String,
    image: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    kind: String,
    api_version: String,
    /// In seconds, as the API writes times.
    #[serde(with = "seconds")]
    pub last_updated_time: jiff::Timestamp,
    pub image_ref: String,
    /// By the image's name without tag and digest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub credential_mapping: BTreeMap<String, Credentials>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Credentials {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kubernetes_secrets: Vec<Secret>,
    /// For whom plug-ins gave what it was pulled with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kubernetes_service_accounts: Vec<Account>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub node_pods_accessible: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Secret {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub credential_hash: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Account {
    pub uid: String,
    pub namespace: String,
    pub name: String,
}

impl Secret {
    pub fn is_same_object(&self, other: &Secret) -> bool {
        (&self.namespace, &self.name, &self.uid) == (&other.namespace, &other.name, &other.uid)
    }
}

impl Credentials {
    /// Of a pull with these, or with nothing.
    pub fn of(source: Option<&Source>) -> Credentials {
        let mut credentials = Credentials::default();
        match source {
            Some(Source::Secret(secret)) => credentials.kubernetes_secrets.push(secret.clone()),
            Some(Source::Account(account)) => credentials.kubernetes_service_accounts.push(account.clone()),
            Some(Source::Node) | None => credentials.node_pods_accessible = true,
        }
        credentials
    }
}

impl Record {
    pub fn new(reference: &str) -> Record {
        Record {
            kind: "ImagePulledRecord".into(),
            api_version: VERSION.into(),
            last_updated_time: jiff::Timestamp::UNIX_EPOCH,
            image_ref: reference.to_owned(),
            credential_mapping: BTreeMap::new(),
        }
    }

    /// Adds what was used to pull the image by a name; says whether that is news.
    pub fn add(&mut self, name: &str, new: &Credentials) -> bool {
        let Some(known) = self.credential_mapping.get_mut(name) else {
            self.credential_mapping.insert(name.to_owned(), new.clone());
            return true;
        };
        if known.node_pods_accessible {
            return false;
        }
        if new.node_pods_accessible {
            *known = new.clone();
            return true;
        }
        let mut changed = false;
        for secret in &new.kubernetes_secrets {
            if !known.kubernetes_secrets.contains(secret) {
                known.kubernetes_secrets.retain(|s| !s.is_same_object(secret));
                known.kubernetes_secrets.push(secret.clone());
                changed = true;
            }
        }
        known.kubernetes_secrets.sort();
        for account in &new.kubernetes_service_accounts {
            if !known.kubernetes_service_accounts.contains(account) {
                known.kubernetes_service_accounts.push(account.clone());
                changed = true;
            }
        }
        known.kubernetes_service_accounts.sort();
        changed
    }
}

pub struct Files<'a> {
    host: &'a dyn Host,
    pulling: PathBuf,
    pulled: PathBuf,
}

impl<'a> Files<'a> {
    pub fn new(host: &'a dyn Host, root: &Path) -> Self {
        let dir = root.join("image_manager");
        Files {
            host,
            pulling: dir.join("pulling"),
            pulled: dir.join("pulled"),
        }
    }

    pub fn write_intent(&self, image: &str) -> io::Result<()> {
        let intent = Intent {
            kind: "ImagePullIntent".into(),
            api_version: VERSION.into(),
            image: image.to_owned(),
        };
        self.write(&self.pulling, image, &serde_json::to_vec(&intent)?)
    }

    /// One that can't be read is one.
    pub fn has_intent(&self, image: &str) -> bool {
        match self.read::<Intent>(&self.pulling.join(file_name(image))) {
            Ok(intent) => intent.is_some_and(|i| i.image == image),
            Err(_) => true,
        }
    }

    pub fn intents(&self) -> Vec<String> {
        self.all::<Intent>(&self.pulling).into_iter().map(|i| i.image).collect()
    }

    pub fn remove_intent(&self, image: &str) -> io::Result<()> {
        self.remove(&self.pulling.join(file_name(image)))
    }

    pub fn record_path(&self, reference: &str) -> PathBuf {
        self.pulled.join(file_name(reference))
    }

    pub fn record(&self, reference: &str) -> io::Result<Option<Record>> {
        let record = self.read::<Record>(&self.record_path(reference))?;
        Ok(record.filter(|r| r.image_ref == reference))
    }

    pub fn records(&self) -> Vec<Record> {
        self.all(&self.pulled)
    }

    pub fn write_record(&self, record: &Record) -> io::Result<()> {
        self.write(&self.pulled, &record.image_ref, &serde_json::to_vec(record)?)
    }

    pub fn remove_record(&self, reference: &str) -> io::Result<()> {
        self.remove(&self.record_path(reference))
    }

    fn write(&self, dir: &Path, key: &str, bytes: &[u8]) -> io::Result<()> {
        self.host.make_dir(dir, 0o700)?;
        self.host.write(&dir.join(file_name(key)), bytes, 0o600)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match self.host.remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn read<T: for<'de> Deserialize<'de>>(&self, path: &Path) -> io::Result<Option<T>> {
        match self.host.read(path, MAX_FILE) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All that can be read.
    fn all<T: for<'de> Deserialize<'de>>(&self, dir: &Path) -> Vec<T> {
        let names = match self.host.list_dir(dir) {
            Ok(names) => names,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                tracing::error!(dir = %dir.display(), %error, "records of pulls can't be listed");
                Vec::new()
            }
        };
        let ours = names.iter().filter(|n| n.starts_with(PREFIX) && !n.contains('.'));
        ours.filter_map(|name| {
            self.read(&dir.join(name)).unwrap_or_else(|error| {
                tracing::error!(name, %error, "a record of a pull can't be read");
                None
            })
        })
        .collect()
    }
}

fn file_name(key: &str) -> String {
    format!("{PREFIX}{}", hex::encode(Sha256::digest(key.as_bytes())))
}

mod seconds {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(time: &jiff::Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<jiff::Timestamp, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        // Go writes the zero time as null.
        text.map_or(Ok(jiff::Timestamp::UNIX_EPOCH), |t| {
            t.parse().map_err(serde::de::Error::custom)
        })
    }
}
