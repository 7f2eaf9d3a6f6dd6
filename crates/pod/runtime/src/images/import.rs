//! Images from archives: an OCI layout or what `docker save` writes, in an uncompressed tar. Archives that are both are
//! read as both. Layers are read in place; nothing is copied but their files. The table of contents is read here, with
//! fixed bounds; layers are unpacked in cells.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::layers::{Expected, verify};
use super::manifest::{Descriptor, DockerArchive, ImageConfig, MAX_DOCUMENT, Manifest};
use super::reference::Reference;
use super::unpack::{self, Kind};
use super::{Busy, Image, Images, Name, digest, replace_file};

/// Entries of an archive; one with more is refused.
const MAX_ENTRIES: usize = 1 << 16;

/// An archive as it was when it was imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Imported {
    size: u64,
    inode: u64,
    modified: (i64, i64),
    images: Vec<String>,
}

impl Images {
    /// Imports every `*.tar` of a directory that is new or has changed. One bad archive does not stop the others.
    pub fn import_directory(&self, dir: &Path) -> anyhow::Result<Vec<Arc<Image>>> {
        let record = self.root.join("imported.json");
        let mut seen: BTreeMap<PathBuf, Imported> = match std::fs::read(&record) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(e.into()),
        };
        let mut found = Vec::new();
        let mut paths = BTreeSet::new();
        for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "tar") {
                paths.insert(path);
            }
        }
        for path in paths {
            let meta = std::fs::metadata(&path)?;
            let mut now = Imported {
                size: meta.size(),
                inode: meta.ino(),
                modified: (meta.mtime(), meta.mtime_nsec()),
                images: Vec::new(),
            };
            if let Some(before) = seen.get(&path) {
                now.images.clone_from(&before.images);
                let known = before.images.iter().map(|id| self.find(id)).collect::<Option<Vec<_>>>();
                if let (true, Some(known)) = (now == *before, known) {
                    found.extend(known);
                    continue;
                }
            }
            match self.import(&path) {
                Ok(images) => {
                    now.images = images.iter().map(|i| i.id.clone()).collect();
                    found.extend(images);
                    seen.insert(path, now);
                    replace_file(&record, &serde_json::to_vec(&seen)?)?;
                }
                Err(error) => {
                    tracing::error!(archive = %path.display(), error = format!("{error:#}"), "image not imported");
                }
            }
        }
        Ok(found)
    }

    /// Imports the images of one archive.
    pub fn import(&self, path: &Path) -> anyhow::Result<Vec<Arc<Image>>> {
        let _busy = Busy::new(self);
        let archive = Archive::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut images: BTreeMap<String, Arc<Image>> = BTreeMap::new();
        let mut keep = |image: Arc<Image>| drop(images.insert(image.id.clone(), image));
        if archive.has("index.json") {
            let index: Manifest = archive.json("index.json")?;
            for descriptor in &index.manifests {
                if let Some(image) = self.import_descriptor(&archive, descriptor)? {
                    keep(image);
                }
            }
        }
        if archive.has("manifest.json") {
            let list: Vec<DockerArchive> = archive.json("manifest.json")?;
            for entry in &list {
                keep(self.import_docker(&archive, entry)?);
            }
        }
        if images.is_empty() {
            bail!(
                "{} holds no image for this machine (neither index.json nor manifest.json names one)",
                path.display()
            );
        }
        Ok(images.into_values().collect())
    }

    fn import_descriptor(&self, archive: &Archive, descriptor: &Descriptor) -> anyhow::Result<Option<Arc<Image>>> {
        let mut names = Vec::new();
        for key in ["io.containerd.image.name", "org.opencontainers.image.ref.name"] {
            // The second often is a bare tag, which names no image.
            match descriptor.annotations.get(key) {
                Some(name) if name.contains('/') || key.starts_with("io.containerd") => {
                    let name = Reference::parse(name)?;
                    if name.tag.is_some() {
                        names.push(Name::Tag(name.to_string()));
                    }
                    names.push(Name::Digest(name.with_digest(&descriptor.digest)));
                    break;
                }
                _ => {}
            }
        }
        let mut manifest: Manifest = archive.blob_json(&descriptor.digest)?;
        let mut size = descriptor.size;
        if manifest.is_index() {
            let Some(chosen) = manifest.for_this_machine().cloned() else {
                return Ok(None);
            };
            size = size.saturating_add(chosen.size);
            manifest = archive.blob_json(&chosen.digest)?;
        }
        let Some(config) = &manifest.config else {
            return Ok(None);
        };
        let bytes = archive.blob(&config.digest)?;
        let parsed: ImageConfig = serde_json::from_slice(&bytes).context("image configuration")?;
        parsed.check_layers(manifest.layers.len())?;
        let chains = digest::chain(&parsed.rootfs.diff_ids);
        for (i, (layer, diff_id)) in manifest.layers.iter().zip(&parsed.rootfs.diff_ids).enumerate() {
            size = size.saturating_add(layer.size);
            if !self.layers.has(&chains[i]) {
                let expected = Expected {
                    digest: (layer.digest != *diff_id).then_some(&layer.digest),
                    diff_id,
                };
                let (file, length) = archive.file(&blob_path(&layer.digest)?)?;
                self.layers
                    .add(&chains[..=i], file, length, &expected)
                    .with_context(|| format!("layer {}", layer.digest))?;
            }
        }
        Ok(Some(self.add(
            &bytes,
            parsed,
            size.saturating_add(config.size),
            &names,
        )?))
    }

    fn import_docker(&self, archive: &Archive, entry: &DockerArchive) -> anyhow::Result<Arc<Image>> {
        let bytes = archive.document(&entry.config)?;
        let parsed: ImageConfig = serde_json::from_slice(&bytes).context("image configuration")?;
        parsed.check_layers(entry.layers.len())?;
        let chains = digest::chain(&parsed.rootfs.diff_ids);
        let mut size = bytes.len() as u64;
        for (i, (layer, diff_id)) in entry.layers.iter().zip(&parsed.rootfs.diff_ids).enumerate() {
            size += archive.size(layer)?;
            if !self.layers.has(&chains[i]) {
                let expected = Expected { digest: None, diff_id };
                let (file, length) = archive.file(layer)?;
                self.layers
                    .add(&chains[..=i], file, length, &expected)
                    .with_context(|| format!("layer {layer}"))?;
            }
        }
        let tags = entry
            .repo_tags
            .iter()
            .map(|t| Ok(Name::Tag(Reference::parse(t)?.to_string())));
        Ok(self.add(&bytes, parsed, size, &tags.collect::<anyhow::Result<Vec<_>>>()?)?)
    }
}

fn blob_path(digest: &str) -> anyhow::Result<String> {
    if !super::reference::is_digest(digest) {
        bail!("{digest:?} is no digest");
    }
    Ok(format!("blobs/{}", digest.replace(':', "/")))
}

/// A tar file with its table of contents.
struct Archive {
    path: PathBuf,
    entries: HashMap<String, (u64, u64)>,
}

impl Archive {
    fn open(path: &Path) -> io::Result<Archive> {
        let mut archive = unpack::Archive::new(File::open(path)?);
        let mut entries: HashMap<String, (u64, u64)> = HashMap::new();
        while let Some(entry) = archive.next_entry()? {
            if entries.len() >= MAX_ENTRIES {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "an archive of too many files",
                ));
            }
            let name = entry.path.to_string_lossy().trim_start_matches("./").to_owned();
            let place = match entry.kind {
                Kind::File if entry.extents.is_none() => (archive.position(), entry.size),
                // `docker save` writes a layer that occurs twice as a link.
                Kind::Symlink | Kind::Link => {
                    match entries.get(entry.link.to_string_lossy().trim_start_matches("../")) {
                        Some(place) => *place,
                        None => continue,
                    }
                }
                _ => continue,
            };
            entries.insert(name, place);
        }
        Ok(Archive {
            path: path.to_path_buf(),
            entries,
        })
    }

    fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    fn size(&self, name: &str) -> anyhow::Result<u64> {
        self.entries
            .get(name)
            .map(|(_, size)| *size)
            .with_context(|| format!("{name} is missing"))
    }

    /// The archive's file, standing where the entry's content begins, and the content's length.
    fn file(&self, name: &str) -> anyhow::Result<(File, u64)> {
        let (position, size) = self.entries.get(name).with_context(|| format!("{name} is missing"))?;
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(*position))?;
        Ok((file, *size))
    }

    fn document(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        let (file, size) = self.file(name)?;
        if size > MAX_DOCUMENT {
            bail!("{name} is longer than {MAX_DOCUMENT} bytes");
        }
        let mut bytes = Vec::new();
        file.take(size).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn json<T: for<'a> Deserialize<'a>>(&self, name: &str) -> anyhow::Result<T> {
        serde_json::from_slice(&self.document(name)?).with_context(|| name.to_owned())
    }

    fn blob(&self, digest: &str) -> anyhow::Result<Vec<u8>> {
        let bytes = self.document(&blob_path(digest)?)?;
        verify(digest, &digest::of(&bytes), "blob")?;
        Ok(bytes)
    }

    fn blob_json<T: for<'a> Deserialize<'a>>(&self, digest: &str) -> anyhow::Result<T> {
        serde_json::from_slice(&self.blob(digest)?).with_context(|| digest.to_owned())
    }
}
