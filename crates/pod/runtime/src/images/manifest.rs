//! The documents of an image: index, manifest and configuration, of OCI and of Docker, as far as we use them.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::reference::is_digest;

pub use keelson_oci::{MAX_DOCUMENT, MAX_MANIFEST};

/// Anything a registry or an archive can call a manifest.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Manifest {
    pub media_type: String,
    /// Of an index.
    pub manifests: Vec<Descriptor>,
    pub config: Option<Descriptor>,
    pub layers: Vec<Descriptor>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Descriptor {
    pub media_type: String,
    /// Of a list of referrers.
    pub artifact_type: String,
    pub digest: String,
    pub size: u64,
    pub platform: Option<Platform>,
    #[serde(deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    pub variant: String,
}

impl Manifest {
    pub fn is_index(&self) -> bool {
        self.config.is_none() && !self.manifests.is_empty()
    }

    /// The entry of an index for this machine; one without platform serves if there is no better.
    pub fn for_this_machine(&self) -> Option<&Descriptor> {
        let fits = |d: &&Descriptor| {
            d.platform
                .as_ref()
                .is_some_and(|p| p.os == "linux" && p.architecture == ARCHITECTURE)
        };
        self.manifests
            .iter()
            .find(fits)
            .or_else(|| self.manifests.iter().find(|d| d.platform.is_none()))
    }
}

#[cfg(target_arch = "x86_64")]
pub const ARCHITECTURE: &str = "amd64";
#[cfg(target_arch = "aarch64")]
pub const ARCHITECTURE: &str = "arm64";
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub const ARCHITECTURE: &str = std::env::consts::ARCH;

/// The configuration of an image; its digest is the image's ID.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    pub architecture: String,
    pub os: String,
    #[serde(deserialize_with = "or_default")]
    pub config: Execution,
    #[serde(deserialize_with = "or_default")]
    pub rootfs: Rootfs,
}

impl ImageConfig {
    /// Refuses what a manifest with so many layers does not fit, what no kernel can stack, and names of layers that are
    /// no digests: directories are called by them.
    pub fn check_layers(&self, layers: usize) -> anyhow::Result<()> {
        let diff_ids = self.rootfs.diff_ids.len();
        if let Some(bad) = self.rootfs.diff_ids.iter().find(|d| !is_digest(d)) {
            anyhow::bail!("an image with a diff_id that is no digest: {bad:?}");
        }
        if diff_ids != layers {
            anyhow::bail!("an image with {layers} layers and {diff_ids} diff_ids");
        }
        if layers > keelson_sys::mount::MOST_LAYERS {
            anyhow::bail!(
                "an image of {layers} layers; the kernel stacks {} at most",
                keelson_sys::mount::MOST_LAYERS
            );
        }
        Ok(())
    }
}

/// How containers of the image run unless they say otherwise.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Execution {
    pub user: String,
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    pub working_dir: String,
    #[serde(deserialize_with = "or_default")]
    pub volumes: BTreeMap<String, serde_json::Value>,
    pub stop_signal: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Rootfs {
    /// Digests of the layers' uncompressed archives, the lowest first.
    #[serde(deserialize_with = "or_default")]
    pub diff_ids: Vec<String>,
}

/// Docker writes `null` for empty lists.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The `manifest.json` of `docker save`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerArchive {
    pub config: String,
    #[serde(default, deserialize_with = "or_default")]
    pub repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub layers: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_empty() {
        let text = r#"{"config":{"Env":null,"Entrypoint":null,"User":""},"rootfs":{"type":"layers","diff_ids":["a"]}}"#;
        let config: ImageConfig = serde_json::from_str(text).unwrap();
        assert!(config.config.entrypoint.is_empty());
        assert_eq!(config.rootfs.diff_ids, ["a"]);
    }

    #[test]
    fn layers_are_called_by_digests() {
        let of = |diff_ids: &[&str]| ImageConfig {
            rootfs: Rootfs {
                diff_ids: diff_ids.iter().map(|d| d.to_string()).collect(),
            },
            ..ImageConfig::default()
        };
        let good = format!("sha256:{}", "a".repeat(64));
        of(&[&good]).check_layers(1).unwrap();
        assert!(of(&[&good]).check_layers(2).is_err());
        for bad in ["../../../../../../proc", "sha256:../../../../../../sys", "", "sha256:"] {
            assert!(of(&[bad]).check_layers(1).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_entry_for_this_machine_is_found() {
        let text = format!(
            r#"{{"manifests":[{{"digest":"x","platform":{{"os":"linux","architecture":"s390x"}}}},
                {{"digest":"y","platform":{{"os":"linux","architecture":"{ARCHITECTURE}"}},"annotations":null}}]}}"#
        );
        let index: Manifest = serde_json::from_str(&text).unwrap();
        assert!(index.is_index());
        assert_eq!(index.for_this_machine().unwrap().digest, "y");
    }
}
