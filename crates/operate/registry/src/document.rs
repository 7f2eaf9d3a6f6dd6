//! Manifests: what is taken as one, what it names, and what it is to others. Pure; what it names is looked for elsewhere.
//!
//! A document is read in one meaning only: what says that it is an image and has an index's fields is neither.

use crate::error::{Code, Refused, Result, refuse, refused};
use crate::names::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest manifest, in bytes.
pub const LONGEST: usize = 4 << 20;
/// Most that a manifest may name.
const MOST: usize = 10_000;

pub const OCI_IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_IMAGE: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What is kept of a manifest beside its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    pub media_type: String,
    pub size: u64,
    /// Blobs that have to be there, with their lengths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<(String, u64)>,
    /// Manifests that have to be there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<(String, u64)>,
    /// Which other manifest this one says something of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Facts {
    /// All that it names, which stays for as long as it does.
    pub fn needed(&self) -> impl Iterator<Item = Digest> {
        let all = self.blobs.iter().chain(&self.manifests);
        all.filter_map(|(digest, _)| Digest::parse(digest))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    schema_version: u64,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    annotations: Option<BTreeMap<String, String>>,
    #[serde(rename = "fsLayers")]
    schema1: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: Option<String>,
    digest: String,
    size: u64,
}

impl Descriptor {
    fn place(&self) -> Result<(String, u64)> {
        match Digest::parse(&self.digest) {
            Some(digest) => Ok((digest.to_string(), self.size)),
            None => refuse(
                Code::ManifestInvalid,
                format!("{:?} is no digest of sha256 or sha512", shown(&self.digest)),
            ),
        }
    }

    /// Layers that are to be had elsewhere only.
    fn is_elsewhere(&self) -> bool {
        let kind = self.media_type.as_deref().unwrap_or_default();
        kind.contains(".nondistributable.") || kind.contains(".rootfs.foreign.")
    }
}

/// Reads a manifest that came with this content type, if with any.
pub fn read(content_type: Option<&str>, bytes: &[u8]) -> Result<Facts> {
    let invalid = |why: String| refused(Code::ManifestInvalid, why);
    let document: Document =
        serde_json::from_slice(bytes).map_err(|e| invalid(format!("the manifest can't be read: {e}")))?;
    let said = content_type.map(|t| t.split(';').next().unwrap_or(t).trim());
    let inside = document.media_type.as_deref();
    let media_type = match (said.filter(|t| !t.is_empty() && *t != "application/json"), inside) {
        (Some(said), Some(inside)) if said != inside => {
            return Err(invalid(format!(
                "the manifest says that it is {:?}, and came as {:?}",
                shown(inside),
                shown(said)
            )));
        }
        (Some(one), _) | (None, Some(one)) => one.to_owned(),
        (None, None) => {
            return Err(invalid(
                "the manifest doesn't say what it is: give a Content-Type".into(),
            ));
        }
    };
    if document.schema_version != 2 || document.schema1.is_some() {
        return Err(invalid("only manifests of schema version 2 are taken".into()));
    }
    let is_index = match media_type.as_str() {
        OCI_IMAGE | DOCKER_IMAGE => false,
        OCI_INDEX | DOCKER_LIST => true,
        other => {
            return Err(invalid(format!(
                "{:?} is no kind of manifest that is kept here: OCI's image manifests and indexes are, and Docker's of schema 2",
                shown(other)
            )));
        }
    };
    let (blobs, manifests) = if is_index {
        (Vec::new(), index(&document)?)
    } else {
        (image(&document)?, Vec::new())
    };
    if blobs.len() + manifests.len() > MOST {
        return Err(invalid(format!("a manifest that names more than {MOST} others")));
    }
    let subject = document.subject.as_ref().map(Descriptor::place).transpose()?;
    let config_type = document.config.as_ref().and_then(|c| c.media_type.clone());
    let artifact_type = document.artifact_type.filter(|t| !t.is_empty()).or(config_type);
    Ok(Facts {
        media_type,
        size: bytes.len() as u64,
        blobs,
        manifests,
        subject: subject.map(|(digest, _)| digest),
        artifact_type,
        annotations: document.annotations.unwrap_or_default(),
    })
}

fn image(document: &Document) -> Result<Vec<(String, u64)>> {
    if document.manifests.is_some() {
        return refuse(Code::ManifestInvalid, "an image's manifest that names manifests");
    }
    let (Some(config), Some(layers)) = (&document.config, &document.layers) else {
        return refuse(Code::ManifestInvalid, "an image's manifest has config and layers");
    };
    let here = layers.iter().filter(|layer| !layer.is_elsewhere());
    for elsewhere in layers.iter().filter(|layer| layer.is_elsewhere()) {
        elsewhere.place()?;
    }
    [config].into_iter().chain(here).map(Descriptor::place).collect()
}

fn index(document: &Document) -> Result<Vec<(String, u64)>> {
    if document.config.is_some() || document.layers.is_some() {
        return refuse(Code::ManifestInvalid, "an index that has config or layers");
    }
    let Some(manifests) = &document.manifests else {
        return refuse(Code::ManifestInvalid, "an index has manifests");
    };
    manifests.iter().map(Descriptor::place).collect()
}

/// A word of a stranger's, as it goes into a sentence.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

impl Refused {
    pub fn not_there(digest: &str) -> Refused {
        refused(
            Code::ManifestBlobUnknown,
            format!("the manifest names {digest}, which isn't in this repository: push it first"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(c: char) -> String {
        format!("sha256:{}", c.to_string().repeat(64))
    }

    #[test]
    fn what_a_manifest_names_is_known() {
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_IMAGE}","config":{{"mediaType":"application/x","digest":"{}","size":2}},
            "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":3}},
            {{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar","digest":"{}","size":4}}],
            "subject":{{"mediaType":"{OCI_IMAGE}","digest":"{}","size":5}},"annotations":{{"a":"b"}},"extra":[1]}}"#,
            digest('a'),
            digest('b'),
            digest('c'),
            digest('d')
        );
        let facts = read(Some(&format!("{OCI_IMAGE}; charset=utf-8")), text.as_bytes()).unwrap();
        assert_eq!(facts.blobs, [(digest('a'), 2), (digest('b'), 3)]);
        assert_eq!(facts.subject, Some(digest('d')));
        assert_eq!(facts.artifact_type.as_deref(), Some("application/x"));
        assert_eq!(read(None, text.as_bytes()).unwrap(), facts);
        let again: Facts = serde_json::from_str(&serde_json::to_string(&facts).unwrap()).unwrap();
        assert_eq!(again, facts);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let one = digest('a');
        let descriptor = format!(r#"{{"mediaType":"x","digest":"{one}","size":2}}"#);
        for (kind, text) in [
            (OCI_IMAGE, "{".to_owned()),
            (OCI_IMAGE, "[]".to_owned()),
            (OCI_IMAGE, r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned()),
            (OCI_IMAGE, r#"{"schemaVersion":2}"#.to_owned()),
            (
                OCI_IMAGE,
                format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[],"manifests":[]}}"#),
            ),
            (
                OCI_INDEX,
                format!(r#"{{"schemaVersion":2,"manifests":[],"config":{descriptor}}}"#),
            ),
            (
                OCI_INDEX,
                format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_IMAGE}","manifests":[]}}"#),
            ),
            ("text/html", r#"{"schemaVersion":2,"manifests":[]}"#.to_owned()),
            (
                OCI_INDEX,
                r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:../../x","size":1}]}"#.to_owned(),
            ),
            (
                OCI_INDEX,
                format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{one}","size":-1}}]}}"#),
            ),
            (OCI_IMAGE, "[".repeat(100_000)),
        ] {
            let refused = read(Some(kind), text.as_bytes()).unwrap_err();
            assert_eq!(
                refused.code,
                Code::ManifestInvalid,
                "{kind} {}",
                &text[..text.len().min(80)]
            );
            assert!(refused.message.len() < 400);
        }
    }

    /// Damaged manifests are read or refused, and paths that are made of their pieces lead somewhere or nowhere.
    #[test]
    fn damage_is_refused() {
        let sample = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_IMAGE}","config":{{"mediaType":"a","digest":"{0}","size":2}},"layers":[{{"digest":"{0}","size":3}}]}}"#,
            digest('a')
        );
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |bound: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % bound as u64) as usize
        };
        let mut taken = 0;
        for _ in 0..20_000 {
            let mut bytes = sample.clone().into_bytes();
            for _ in 0..1 + below(4) {
                let at = below(bytes.len());
                match below(3) {
                    0 => bytes[at] = below(256) as u8,
                    1 => drop(bytes.drain(at..(at + below(20)).min(sample.len()).min(bytes.len()).max(at))),
                    _ => bytes.insert(at, b"{}[]:,\"/%.-"[below(11)]),
                }
            }
            let read = read(None, &bytes);
            taken += usize::from(read.is_ok());
            if let Ok(facts) = read {
                assert!(facts.needed().count() <= facts.blobs.len() + facts.manifests.len());
            }
            let path = format!("/v2/{}", String::from_utf8_lossy(&bytes));
            let _ = crate::serve::route::route(&path, None).map(|route| route.kind());
        }
        assert!(taken > 0, "damage is so great that nothing is ever read");
    }
}
