//! Which directories of a server have add-ons in them, and whether charts are run.

use crate::config::{absolute, fill};
use anyhow::ensure;
use clap::Args;
use keelson_addons::helm;
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Addons {
    /// More directories whose files of manifests are applied, besides DATA_DIR/addons
    #[arg(long, env = "KEELSON_ADDONS", value_name = "LIST", value_delimiter = ',')]
    pub addons: Option<Vec<PathBuf>>,
    /// Whether HelmChart objects are run: true, false, or auto, from when a file of add-ons says one [default: auto]
    #[arg(long, env = "KEELSON_HELM_CHARTS", value_name = "WHEN", num_args = 0..=1, default_missing_value = "true")]
    #[serde(deserialize_with = "word")]
    pub helm_charts: Option<String>,
    /// The image that runs helm for a HelmChart without a jobImage [default: rancher/klipper-helm, of the version that is known here]
    #[arg(long, env = "KEELSON_HELM_JOB_IMAGE", value_name = "IMAGE")]
    pub helm_job_image: Option<String>,
}

/// In a file it is written without quotes.
fn word<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Flag(bool),
        Word(String),
    }
    Ok(
        Option::<Written>::deserialize(deserializer)?.map(|written| match written {
            Written::Flag(flag) => flag.to_string(),
            Written::Word(word) => word,
        }),
    )
}

/// With everything decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The first is the server's own.
    pub directories: Vec<PathBuf>,
    /// `None`: charts aren't run; else whether they are from the start.
    pub charts: Option<bool>,
    pub image: String,
}

impl Addons {
    /// Takes over from another list what this one leaves open.
    pub fn fill(&mut self, other: Addons) {
        fill!(self from other: addons, helm_charts, helm_job_image);
    }

    pub fn resolve(&self, data_dir: &Path) -> anyhow::Result<Settings> {
        let mut directories = vec![data_dir.join("addons")];
        for given in self.addons.iter().flatten() {
            let shown = given.display().to_string();
            ensure!(
                !shown.contains("://") && !shown.starts_with("git@"),
                "--addons {shown}: directories of this machine only; have something else bring there what a repository or registry holds"
            );
            let directory = absolute(given.clone())?;
            let apart = directories
                .iter()
                .all(|d| !d.starts_with(&directory) && !directory.starts_with(d));
            ensure!(
                apart,
                "--addons {shown}: it is, or is in, another directory of add-ons ({})",
                data_dir.join("addons").display()
            );
            directories.push(directory);
        }
        let charts = match self.helm_charts.as_deref() {
            None | Some("auto") => Some(false),
            Some("true") => Some(true),
            Some("false") => None,
            Some(other) => anyhow::bail!("--helm-charts {other}: it can be true, false or auto"),
        };
        let image = self.helm_job_image.clone().unwrap_or_else(|| helm::IMAGE.into());
        ensure!(!image.trim().is_empty(), "--helm-job-image: an image without a name");
        Ok(Settings {
            directories,
            charts,
            image,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(text: &str) -> anyhow::Result<Settings> {
        serde_saphyr::from_str::<Addons>(text)?.resolve(Path::new("/data"))
    }

    #[test]
    fn directories_are_this_machines_and_apart() {
        let settings =
            given("addons: [/srv/a, /srv/b]\nhelm-charts: true\nhelm-job-image: example.local/helm:1\n").unwrap();
        let paths: Vec<&str> = settings.directories.iter().filter_map(|d| d.to_str()).collect();
        assert_eq!(paths, ["/data/addons", "/srv/a", "/srv/b"]);
        assert_eq!(
            (settings.charts, settings.image.as_str()),
            (Some(true), "example.local/helm:1")
        );
        assert_eq!(given("{}").unwrap().charts, Some(false));
        assert_eq!(given("helm-charts: auto").unwrap().charts, Some(false));
        assert_eq!(given("helm-charts: false").unwrap().charts, None);
        for bad in [
            "addons: [/data/addons]",
            "addons: [/data/addons/more]",
            "addons: [/data]",
            "addons: [/srv/a, /srv/a/b]",
            "addons: ['https://example.com/x.git']",
            "addons: ['oci://example.com/x']",
            "addons: ['git@example.com:x']",
            "helm-charts: perhaps",
            "helm-job-image: ''",
            "addon: [/srv/a]",
        ] {
            assert!(given(bad).is_err(), "{bad}");
        }
    }
}
