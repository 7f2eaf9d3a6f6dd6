//! What a file of a server's directory says, told to the cluster as a Secret: files have secrets in them, and Secrets are sealed at rest.
//!
//! By these any server can go on with what another's directory says, and a directory that can't be read takes nothing away.

pub mod plan;
pub mod publish;
pub mod tree;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::ApiObject;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{Read, Write};

pub const NAMESPACE: &str = "kube-system";
pub const TYPE: &str = "keelson.dev/addon";
/// On every source. Its value says nothing: names of nodes may be longer than a label.
pub const MARK: &str = "keelson.dev/addon-source";
const SERVER: &str = "keelson.dev/addon-server";
const FILE: &str = "keelson.dev/addon-file";
const PATH: &str = "keelson.dev/addon-path";
const DIRECTORY: &str = "keelson.dev/addon-directory";
const PLACE: &str = "keelson.dev/addon-place";
const HASH: &str = "keelson.dev/addon-hash";
const CONTENT: &str = "manifests";
const ERROR: &str = "error";

/// The largest file.
pub const LONGEST: usize = 8 << 20;
/// And packed: a Secret may have a megabyte.
const PACKED: usize = 900 << 10;
/// A label's length.
const NAME: usize = 63;

/// One file of one server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    pub server: String,
    /// From the root on.
    pub file: String,
    /// From its directory on: the same on all servers.
    pub path: String,
    pub directory: String,
    /// Which directories led to it when it was read: device and number of each, the root first.
    pub place: String,
    /// Of what it says, or of why that isn't known.
    pub hash: String,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// As it is, packed.
    Packed(Vec<u8>),
    /// Why it can't be had.
    Error(String),
}

impl Default for Content {
    fn default() -> Self {
        Content::Packed(Vec::new())
    }
}

impl Content {
    pub fn of(text: &[u8]) -> Content {
        if text.len() > LONGEST {
            return Content::Error(format!(
                "it has more than {} MiB: make several files of it",
                LONGEST >> 20
            ));
        }
        let mut packer = GzEncoder::new(Vec::new(), Compression::default());
        match packer.write_all(text).and_then(|()| packer.finish()) {
            Ok(packed) if packed.len() > PACKED => Content::Error(format!(
                "it has more than {} KiB even when it is compressed: make several files of it",
                PACKED >> 10
            )),
            Ok(packed) => Content::Packed(packed),
            Err(error) => Content::Error(error.to_string()),
        }
    }

    /// The text, or why there is none.
    pub fn text(&self) -> Result<Vec<u8>, String> {
        match self {
            Content::Error(why) => Err(why.clone()),
            Content::Packed(packed) => {
                let mut text = Vec::new();
                let read = GzDecoder::new(packed.as_slice())
                    .take(LONGEST as u64 + 1)
                    .read_to_end(&mut text);
                match read {
                    Ok(_) if text.len() <= LONGEST => Ok(text),
                    Ok(_) => Err("what a server told of it is too large".into()),
                    Err(error) => Err(format!("what a server told of it can't be read: {error}")),
                }
            }
        }
    }
}

pub fn hash(text: &[u8]) -> String {
    hex::encode(&Sha256::digest(text)[..16])
}

impl Source {
    pub fn shown(&self) -> String {
        format!("{}:{}", self.server, self.file)
    }

    /// The name of the add-on that it is a source of.
    pub fn addon(&self) -> String {
        addon_name(&self.path)
    }

    pub fn secret_name(&self) -> String {
        format!("addon-{}", hash(self.shown().as_bytes()))
    }

    pub fn to_secret(&self) -> Secret {
        let (key, data) = match &self.content {
            Content::Packed(packed) => (CONTENT, packed.clone()),
            Content::Error(why) => (ERROR, why.clone().into_bytes()),
        };
        let notes = [
            (SERVER, &self.server),
            (FILE, &self.file),
            (PATH, &self.path),
            (DIRECTORY, &self.directory),
            (PLACE, &self.place),
            (HASH, &self.hash),
        ];
        Secret {
            metadata: ObjectMeta {
                name: Some(self.secret_name()),
                namespace: Some(NAMESPACE.into()),
                labels: Some(BTreeMap::from([(MARK.into(), String::new())])),
                annotations: Some(notes.map(|(name, value)| (name.to_string(), value.clone())).into()),
                ..ObjectMeta::default()
            },
            type_: Some(TYPE.into()),
            data: Some(BTreeMap::from([(key.to_string(), ByteString(data))])),
            ..Secret::default()
        }
    }

    /// `None`: it is none of ours.
    pub fn of(secret: &Secret) -> Option<Source> {
        if secret.type_.as_deref() != Some(TYPE) || secret.is_deleting() {
            return None;
        }
        let notes = secret.metadata.annotations.as_ref()?;
        let note = |name: &str| notes.get(name).cloned();
        let data = |key: &str| secret.data.as_ref().and_then(|d| d.get(key)).map(|b| b.0.clone());
        let content = match (data(CONTENT), data(ERROR)) {
            (Some(packed), _) => Content::Packed(packed),
            (None, Some(why)) => Content::Error(String::from_utf8_lossy(&why).into_owned()),
            (None, None) => return None,
        };
        let source = Source {
            server: note(SERVER)?,
            file: note(FILE)?,
            path: note(PATH)?,
            directory: note(DIRECTORY)?,
            place: note(PLACE).unwrap_or_default(),
            hash: note(HASH)?,
            content,
        };
        (secret.name() == source.secret_name()).then_some(source)
    }
}

/// Whose a Secret is, also one that can't be read as a source any more.
pub fn server_of(secret: &Secret) -> Option<&str> {
    secret.metadata.annotations.as_ref()?.get(SERVER).map(String::as_str)
}

/// Which add-on a Secret is a source of, also one that is on its way out.
pub fn addon_of(secret: &Secret) -> Option<String> {
    secret
        .metadata
        .annotations
        .as_ref()?
        .get(PATH)
        .map(|path| addon_name(path))
}

/// `web/app.yaml` is `web.app`. What can't be read back from the name has a few letters of the path's hash at its end.
pub fn addon_name(path: &str) -> String {
    let is_plain = |part: &str| {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !part.is_empty() && part.chars().all(fits) && !part.starts_with('-') && !part.ends_with('-')
    };
    if let Some(stem) = path.strip_suffix(".yaml")
        && stem.len() <= NAME
        && stem.split('/').all(is_plain)
    {
        return stem.replace('/', ".");
    }
    let stem = path.rsplit_once('.').map_or(path, |(stem, _)| stem);
    let parts = stem.split(['/', '.']).map(|part| {
        let part: String = part
            .to_ascii_lowercase()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        part.trim_matches('-').to_string()
    });
    let mut name = parts.filter(|p| !p.is_empty()).collect::<Vec<_>>().join(".");
    name.truncate(NAME - 7);
    let name = name.trim_end_matches(['-', '.']);
    let end = &hash(path.as_bytes())[..6];
    match name {
        "" => format!("addon-{end}"),
        name => format!("{name}-{end}"),
    }
}
