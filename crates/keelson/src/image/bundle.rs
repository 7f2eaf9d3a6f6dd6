//! `keelson image bundle`: the images that manifests name, in one archive, for machines without a way to registries.
//!
//! Which images those are is read from the objects alone ([`images_of`]), whatever their kinds: what stands as a container's image, or
//! as a volume's. The archive is an OCI layout in a tar, as `keelson image import` and `--images` take it; layers go into it as
//! they come, and it gets its name when all of it is there and right.

use anyhow::{Context, bail, ensure};
use clap::Args;
use futures::TryStreamExt;
use keelson_oci::client::Registry;
use keelson_oci::digest::{self, Hasher};
use keelson_oci::reference::{Reference, is_digest};
use keelson_oci::registries::Registries;
use keelson_oci::{MAX_DOCUMENT, MAX_MANIFEST};
use keelson_runtime::images::manifest::{Descriptor, Manifest};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Bytes of manifests that are read.
const MOST_TEXT: u64 = 64 << 20;
/// Images of one archive.
const MOST_IMAGES: usize = 1000;

#[derive(Args)]
pub struct Options {
    /// Manifests whose images are wanted: files, directories of .yaml and .json, or - for what comes (helm template … | keelson image bundle -f -)
    #[arg(short, long, value_name = "FILE", required_unless_present = "image")]
    filename: Vec<PathBuf>,
    /// More images, by name
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    image: Vec<String>,
    /// The archive
    #[arg(short, long, value_name = "FILE.tar")]
    output: PathBuf,
    /// Mirrors and credentials, in the form that nodes have
    #[arg(long, value_name = "FILE")]
    registries: Option<PathBuf>,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut names: BTreeSet<String> = options.image.iter().cloned().collect();
    for place in &options.filename {
        names.extend(images_of(&read(place)?).with_context(|| place.display().to_string())?);
    }
    ensure!(!names.is_empty(), "no image is named in there");
    ensure!(names.len() <= MOST_IMAGES, "more than {MOST_IMAGES} images");
    let parsed = names
        .iter()
        .map(|name| Reference::parse(name).with_context(|| format!("the image {name:?}")));
    let wanted: BTreeSet<Reference> = parsed.collect::<anyhow::Result<_>>()?;
    let registries = options
        .registries
        .as_deref()
        .map_or(Ok(Registries::default()), Registries::load)?;
    let new = options.output.with_extension("tar.new");
    let file = File::create(&new).with_context(|| format!("cannot write {}", new.display()))?;
    let written = write(file, &wanted, &registries).await;
    match written.and_then(|()| Ok(std::fs::rename(&new, &options.output)?)) {
        Ok(()) => {
            println!("{}: {} images", options.output.display(), wanted.len());
            Ok(())
        }
        Err(error) => {
            let _ = std::fs::remove_file(&new);
            Err(error)
        }
    }
}

async fn write(file: File, wanted: &BTreeSet<Reference>, registries: &Registries) -> anyhow::Result<()> {
    let mut layout = Layout {
        tar: tar::Builder::new(file),
        there: BTreeSet::new(),
        index: Vec::new(),
    };
    for reference in wanted {
        layout
            .add(reference, registries)
            .await
            .with_context(|| reference.to_string())?;
        println!("{reference}");
    }
    layout.finish()
}

/// The texts of a file, of a directory's files, or of what comes.
fn read(place: &Path) -> anyhow::Result<String> {
    let within = |from: Box<dyn Read>, text: &mut String| -> anyhow::Result<()> {
        from.take(MOST_TEXT + 1).read_to_string(text)?;
        ensure!(
            text.len() as u64 <= MOST_TEXT,
            "more than {MOST_TEXT} bytes of manifests"
        );
        Ok(())
    };
    let mut text = String::new();
    let named = || format!("cannot read {}", place.display());
    if place == Path::new("-") {
        within(Box::new(io::stdin()), &mut text)?;
    } else if place.is_dir() {
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(place).with_context(named)? {
            files.push(entry?.path());
        }
        files.sort();
        let told = |path: &PathBuf| {
            path.extension()
                .is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
        };
        for file in files.iter().filter(|file| told(file)) {
            text.push_str("\n---\n");
            within(
                Box::new(File::open(file).with_context(|| format!("cannot read {}", file.display()))?),
                &mut text,
            )?;
        }
    } else {
        within(Box::new(File::open(place).with_context(named)?), &mut text).with_context(named)?;
    }
    Ok(text)
}

/// The images that objects name, in YAML or JSON.
pub fn images_of(text: &str) -> anyhow::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).context("this can't be read as YAML")?;
    for document in &documents {
        look(document, &mut found);
    }
    Ok(found)
}

fn look(value: &Value, found: &mut BTreeSet<String>) {
    const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];
    match value {
        Value::Array(items) => items.iter().for_each(|item| look(item, found)),
        Value::Object(fields) => {
            for (key, inner) in fields {
                let items = inner.as_array().into_iter().flatten();
                if CONTAINERS.contains(&key.as_str()) {
                    found.extend(items.filter_map(|c| c["image"].as_str()).map(str::to_owned));
                } else if key == "volumes" {
                    found.extend(
                        items
                            .filter_map(|v| v["image"]["reference"].as_str())
                            .map(str::to_owned),
                    );
                }
                look(inner, found);
            }
        }
        _ => {}
    }
    found.remove("");
}

/// An OCI layout that is being written.
struct Layout {
    tar: tar::Builder<File>,
    /// Digests of what is in it.
    there: BTreeSet<String>,
    index: Vec<Value>,
}

impl Layout {
    /// Adds an image: from the first place that has it.
    async fn add(&mut self, reference: &Reference, registries: &Registries) -> anyhow::Result<()> {
        let mut failures = Vec::new();
        for endpoint in registries.endpoints(&reference.registry, &reference.repository)? {
            let (host, credentials) = (endpoint.host.clone(), endpoint.credentials.clone());
            let registry = Registry::new(endpoint, credentials)?;
            let name = reference
                .digest
                .as_deref()
                .or(reference.tag.as_deref())
                .unwrap_or("latest");
            match registry.manifest_as_it_came(name, MAX_MANIFEST).await {
                Ok((kind, bytes)) => return self.take(reference, &registry, kind, bytes).await,
                Err(error) => failures.push(format!("{host}: {error}")),
            }
        }
        bail!("{}", failures.join("; "))
    }

    async fn take(
        &mut self,
        reference: &Reference,
        registry: &Registry,
        kind: Option<String>,
        bytes: Vec<u8>,
    ) -> anyhow::Result<()> {
        let top = digest::of(&bytes);
        if let Some(wanted) = &reference.digest {
            ensure!(*wanted == top, "the manifest has digest {top}, expected {wanted}");
        }
        let mut manifest: Manifest = serde_json::from_slice(&bytes).context("the manifest")?;
        let kind = kind
            .filter(|_| manifest.media_type.is_empty())
            .unwrap_or(manifest.media_type.clone());
        self.index
            .push(json!({"mediaType": kind, "digest": top, "size": bytes.len(),
            "annotations": {"io.containerd.image.name": reference.to_string()}}));
        self.put(&top, &bytes)?;
        if manifest.is_index() {
            let chosen = manifest
                .for_this_machine()
                .context("it has nothing for machines like this one")?
                .digest
                .clone();
            // An index may say anything, and what is asked for is made of it.
            ensure!(is_digest(&chosen), "the index names {chosen:?}, which is no digest");
            let bytes = registry.manifest(&chosen, MAX_MANIFEST).await?;
            ensure!(digest::of(&bytes) == chosen, "the manifest {chosen} is another one");
            self.put(&chosen, &bytes)?;
            manifest = serde_json::from_slice(&bytes).context("the manifest")?;
        }
        let config = manifest
            .config
            .as_ref()
            .context("the manifest names no configuration")?;
        let bytes = registry.document(&config.digest, MAX_DOCUMENT).await?;
        ensure!(
            digest::of(&bytes) == config.digest,
            "the configuration {} is another one",
            config.digest
        );
        self.put(&config.digest, &bytes)?;
        for layer in &manifest.layers {
            self.stream(registry, layer)
                .await
                .with_context(|| format!("layer {}", layer.digest))?;
        }
        Ok(())
    }

    fn put(&mut self, digest: &str, bytes: &[u8]) -> anyhow::Result<()> {
        if self.there.insert(digest.to_owned()) {
            self.file(&blob(digest), bytes)?;
        }
        Ok(())
    }

    fn file(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.tar.append_data(&mut header(bytes.len() as u64), path, bytes)
    }

    /// A layer, which isn't in memory: its length is known, so that it can go into the archive as it comes.
    async fn stream(&mut self, registry: &Registry, layer: &Descriptor) -> anyhow::Result<()> {
        if self.there.contains(&layer.digest) {
            return Ok(());
        }
        let mut pieces = registry.blob(&layer.digest).await?;
        let mut head = header(layer.size);
        head.set_path(blob(&layer.digest))?;
        head.set_cksum();
        let file = self.tar.get_mut();
        file.write_all(head.as_bytes())?;
        let (mut hasher, mut came) = (Hasher::default(), 0);
        while let Some(piece) = pieces.try_next().await? {
            came += piece.len() as u64;
            ensure!(came <= layer.size, "it is longer than its manifest says");
            hasher.update(&piece);
            file.write_all(&piece)?;
        }
        ensure!(came == layer.size, "it is shorter than its manifest says");
        let got = hasher.finish();
        ensure!(got == layer.digest, "what came is {got}");
        let rest = came % 512;
        if rest > 0 {
            file.write_all(&[0; 512][..512 - rest as usize])?;
        }
        self.there.insert(layer.digest.clone());
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<()> {
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": self.index});
        self.file("index.json", index.to_string().as_bytes())?;
        self.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        self.tar.into_inner()?.sync_all()?;
        Ok(())
    }
}

/// The client takes only digests of sha256 and hexadecimal digits.
fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_of_objects_are_found_whatever_their_kind() {
        let text = r#"
apiVersion: apps/v1
kind: Deployment
spec:
  template:
    spec:
      initContainers: [{name: i, image: "r.example/init:1"}]
      containers: [{name: a, image: web}, {name: b, image: "r.example/b@sha256:x"}]
      volumes: [{name: v, image: {reference: r.example/data:2}}, {name: e, emptyDir: {}}]
---
{"apiVersion": "v1", "kind": "List", "items": [{"kind": "CronJob", "spec": {"jobTemplate": {"spec": {"template": {"spec":
  {"containers": [{"name": "j", "image": "job:1"}, {"name": "none"}]}}}}}}]}
---
kind: ConfigMap
data: {image: not-this, containers: "nor this"}
"#;
        let found: Vec<String> = images_of(text).unwrap().into_iter().collect();
        assert_eq!(
            found,
            [
                "job:1",
                "r.example/b@sha256:x",
                "r.example/data:2",
                "r.example/init:1",
                "web"
            ]
        );
        assert!(images_of("a: [").is_err());
        assert!(images_of("").unwrap().is_empty());
    }
}
