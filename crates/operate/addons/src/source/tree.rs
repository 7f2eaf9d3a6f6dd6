//! Reads a directory: files of manifests in it and in directories below. What can't be read is told, and never taken for absent.

use super::{Content, LONGEST, hash};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Of directories in directories, files, and names in all.
const DEEPEST: usize = 8;
const MOST_FILES: usize = 1000;
const MOST_NAMES: usize = 20_000;
/// Of all files, packed: each server keeps them in memory.
const MOST_BYTES: usize = 64 << 20;
/// What was written to so short a time ago may be half of a file.
pub const QUIET: Duration = Duration::from_secs(1);

/// Whose presence makes a directory something that has to be built first, and by what.
const BUILT: [(&str, &str); 4] = [
    ("kustomization.yaml", KUSTOMIZE),
    ("kustomization.yml", KUSTOMIZE),
    ("Kustomization", KUSTOMIZE),
    (
        "Chart.yaml",
        "a chart isn't rendered here: make a HelmChart object that names it, or put here what `helm template` prints",
    ),
];
const KUSTOMIZE: &str =
    "kustomizations aren't built here: put here what `kubectl kustomize` prints, and keep its sources elsewhere";

/// A file as it was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// From the directory on.
    pub path: String,
    pub file: PathBuf,
    /// Those of the directories that lead to it, the root's first: [`place`].
    pub place: String,
    /// It was just being written: what was told of it counts.
    pub is_young: bool,
    pub hash: String,
    pub content: Content,
}

/// What a directory says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tree {
    pub directory: PathBuf,
    /// Device and number; empty if there is no such directory.
    pub place: String,
    /// Those of directories below, by their path with a slash at the end.
    pub places: BTreeMap<String, String>,
    pub files: Vec<Found>,
    /// Why the list of files may not be whole.
    pub incomplete: Option<String>,
}

pub fn place(directory: &Path) -> String {
    fs::metadata(directory)
        .ok()
        .filter(fs::Metadata::is_dir)
        .map_or_else(String::new, |m| format!("{}:{}", m.dev(), m.ino()))
}

pub fn read(directory: &Path) -> Tree {
    let mut walk = Walk {
        tree: Tree {
            directory: directory.to_path_buf(),
            place: place(directory),
            ..Tree::default()
        },
        names: 0,
        bytes: 0,
        way: BTreeSet::new(),
        places: Vec::new(),
    };
    walk.directory(directory, "", 0);
    let mut tree = walk.tree;
    // Exchanged while it was read: what was found may be of either.
    if tree.place != place(directory) {
        tree.incomplete = Some(format!(
            "{} became another directory while it was read",
            directory.display()
        ));
    }
    tree.files.sort_by(|a, b| a.path.cmp(&b.path));
    tree
}

struct Walk {
    tree: Tree,
    names: usize,
    bytes: usize,
    /// The directories that lead here, by device and number: links may lead in circles.
    way: BTreeSet<String>,
    /// The same, in their order.
    places: Vec<String>,
}

impl Walk {
    fn incomplete(&mut self, why: String) {
        self.tree.incomplete.get_or_insert(why);
    }

    fn directory(&mut self, at: &Path, prefix: &str, depth: usize) {
        let own = place(at);
        if depth > DEEPEST {
            return self.incomplete(format!(
                "{}: directories in more than {DEEPEST} directories",
                at.display()
            ));
        }
        if !self.way.insert(own.clone()) {
            return self.incomplete(format!("{} leads to a directory that it is in", at.display()));
        }
        self.tree.places.insert(prefix.to_string(), own.clone());
        self.places.push(own.clone());
        match names(at) {
            Err(error) => self.incomplete(format!("{}: {error}", at.display())),
            Ok(names) => {
                if let Some((name, why)) = BUILT.iter().find(|(name, _)| names.iter().any(|n| n == name)) {
                    self.found(
                        at.join(name),
                        format!("{prefix}{name}"),
                        false,
                        Content::Error((*why).into()),
                    );
                } else {
                    for name in names {
                        self.entry(at, prefix, &name, depth);
                    }
                }
            }
        }
        self.places.pop();
        self.way.remove(&own);
    }

    fn entry(&mut self, at: &Path, prefix: &str, name: &str, depth: usize) {
        self.names += 1;
        if name.starts_with('.') || self.names > MOST_NAMES {
            if self.names > MOST_NAMES {
                self.incomplete(format!(
                    "{} has more than {MOST_NAMES} names in it",
                    self.tree.directory.display()
                ));
            }
            return;
        }
        let (file, path) = (at.join(name), format!("{prefix}{name}"));
        let is_manifest = [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end));
        match fs::metadata(&file) {
            Ok(meta) if meta.is_dir() => self.directory(&file, &format!("{path}/"), depth + 1),
            Ok(meta) if is_manifest && meta.is_file() => {
                let content = content(&file);
                // After a clock was set back it isn't known how old it is.
                let age = meta.modified().ok().and_then(|at| at.elapsed().ok());
                self.found(file, path, age.is_some_and(|age| age < QUIET), content);
            }
            Ok(_) => {}
            // A link that leads nowhere for the moment, or a file that went: the next look tells.
            Err(error) if is_manifest => {
                self.found(file, path, false, Content::Error(format!("it can't be read: {error}")));
            }
            Err(error) => {
                // A directory may be behind it, of a disk that is away; or it is itself away since it was listed.
                if !fs::symlink_metadata(&file).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
                    self.incomplete(format!("{}: {error}", file.display()));
                }
            }
        }
    }

    fn found(&mut self, file: PathBuf, path: String, is_young: bool, mut content: Content) {
        if self.tree.files.len() == MOST_FILES {
            let directory = self.tree.directory.display().to_string();
            return self.incomplete(format!("{directory} has more than {MOST_FILES} files"));
        }
        if let Content::Packed(packed) = &content {
            self.bytes += packed.len();
            if self.bytes > MOST_BYTES {
                content = Content::Error(format!(
                    "with this file {} has more than {} MiB even when they are compressed",
                    self.tree.directory.display(),
                    MOST_BYTES >> 20
                ));
            }
        }
        let hash = match &content {
            Content::Packed(packed) => hash(packed),
            Content::Error(why) => hash(why.as_bytes()),
        };
        self.tree.files.push(Found {
            path,
            file,
            place: self.places.join(" "),
            is_young,
            hash,
            content,
        });
    }
}

fn names(at: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(at)? {
        let name = entry?.file_name();
        // What has no name in text is no name of an add-on.
        names.extend(name.into_string().ok());
        // One too many is told as that, and needs no others.
        if names.len() > MOST_NAMES {
            break;
        }
    }
    names.sort();
    Ok(names)
}

fn content(file: &Path) -> Content {
    let mut text = Vec::new();
    let read = fs::File::open(file).and_then(|f| f.take(LONGEST as u64 + 1).read_to_end(&mut text));
    match read {
        // As a full disk and a crash leave files.
        Ok(_) if text.iter().all(|b| b.is_ascii_whitespace() || *b == 0) => Content::Error(
            "there is nothing in it, as in a file that couldn't be written: remove it, or leave a comment in it, if it is to say nothing".into(),
        ),
        Ok(_) => Content::of(&text),
        Err(error) => Content::Error(format!("it can't be read: {error}")),
    }
}
