//! The files: one, and those of a directory that are merged over it.

use super::Document;
use anyhow::Context;
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};

impl Document {
    /// Reads a file, and then those below the directory that end in `.conf`, in the order of their names.
    pub fn read(file: Option<&Path>, dir: Option<&Path>) -> anyhow::Result<Document> {
        let mut document = Document::default();
        let failed = |file: &Path| format!("failed to load kubelet config file {}", file.display());
        if let Some(file) = file {
            let content = content(file)?;
            let at = std::path::absolute(file).with_context(|| failed(file))?;
            let read = document.first(content, at.parent().unwrap_or(Path::new("/")));
            read.map_err(anyhow::Error::msg).with_context(|| failed(file))?;
        }
        let mut more = Vec::new();
        if let Some(dir) = dir {
            walk(dir, &mut more).with_context(|| format!("cannot read {}", dir.display()))?;
            more.sort();
        }
        for file in more {
            let added = document.add(content(&file)?);
            added.map_err(anyhow::Error::msg).with_context(|| failed(&file))?;
        }
        Ok(document)
    }
}

/// More than any configuration has.
const MOST_BYTES: u64 = 4 << 20;

fn content(file: &Path) -> anyhow::Result<Value> {
    let open = || -> std::io::Result<String> {
        let mut text = String::new();
        // A device could be read for ever.
        std::fs::File::open(file)?
            .take(MOST_BYTES + 1)
            .read_to_string(&mut text)?;
        Ok(text)
    };
    let text = open().with_context(|| format!("cannot read {}", file.display()))?;
    anyhow::ensure!(
        text.len() as u64 <= MOST_BYTES,
        "kubelet config file {} has more than {} MiB",
        file.display(),
        MOST_BYTES >> 20
    );
    anyhow::ensure!(!text.is_empty(), "kubelet config file {} is empty", file.display());
    serde_saphyr::from_str(&text).with_context(|| format!("{} is not valid YAML", file.display()))
}

fn walk(dir: &Path, into: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        // No link is followed to a directory.
        if entry.file_type()?.is_dir() {
            walk(&path, into)?;
        } else if path.extension().is_some_and(|e| e == "conf") {
            into.push(path);
        }
    }
    Ok(())
}
