//! Files that are to be there: how they compare with what is there, and how they come there whole.

use super::host::Host;
use super::record::Record;
use anyhow::Context;
use std::fs::{self, File as Open, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Program,
    /// The unit or script: people change it, and other programs write one of that name.
    Service,
    /// Theirs who run the cluster.
    Config,
    Secret,
    /// Completions, manual pages and the like, which only programs write.
    Help,
}

#[derive(Debug)]
pub enum Content {
    Text(String),
    CopyOf(PathBuf),
}

impl Content {
    pub fn text(&self) -> Option<String> {
        match self {
            Content::Text(text) => Some(text.clone()),
            Content::CopyOf(_) => None,
        }
    }
}

#[derive(Debug)]
pub struct File {
    pub path: PathBuf,
    pub mode: u32,
    pub kind: Kind,
    pub content: Content,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Standing {
    Absent,
    Same,
    /// Another one, which may be replaced.
    Older,
    /// Another one, which somebody wrote or changed, or which says something else: its text.
    Theirs(String),
}

impl File {
    pub fn text(path: impl Into<PathBuf>, mode: u32, kind: Kind, text: String) -> File {
        File {
            path: path.into(),
            mode,
            kind,
            content: Content::Text(text),
        }
    }

    pub fn standing(&self, host: &Host, record: &Record) -> anyhow::Result<Standing> {
        let path = host.path(&self.path);
        let there = match fs::metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Standing::Absent),
            other => other.with_context(|| format!("cannot look at {}", path.display()))?,
        };
        let same = self
            .is_in(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let text = || fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(match self.kind {
            // Whose the file is decides on its mode, too.
            Kind::Config if same => Standing::Same,
            _ if same && there.permissions().mode() & 0o7777 == self.mode => Standing::Same,
            Kind::Config if self.completes(&text()?) => Standing::Older,
            Kind::Config => Standing::Theirs(text()?),
            Kind::Service if !same && record.text(&self.path) != Some(&text()?) => Standing::Theirs(text()?),
            _ => Standing::Older,
        })
    }

    /// Whether all it says was there before, and stays.
    fn completes(&self, there: &str) -> bool {
        let whole = there.is_empty() || there.ends_with('\n');
        let Content::Text(text) = &self.content else {
            return false;
        };
        let added = text.strip_prefix(there);
        added.is_some_and(|added| whole || added.starts_with('\n'))
    }

    fn is_in(&self, path: &Path) -> io::Result<bool> {
        match &self.content {
            Content::Text(text) => Ok(fs::read(path)? == text.as_bytes()),
            Content::CopyOf(from) => same(from, path),
        }
    }

    /// Writes it beside its place and renames it: whoever looks or starts it finds the old one or the new one, whole. Tells which
    /// directories it made.
    pub fn write(&self, host: &Host) -> anyhow::Result<Vec<PathBuf>> {
        let path = host.path(&self.path);
        // A link to where the file is stays a link.
        let path = match self.kind {
            Kind::Config => fs::canonicalize(&path).unwrap_or(path),
            _ => path,
        };
        let kept = fs::metadata(&path).ok().filter(|_| self.kind == Kind::Config);
        let mode = kept.map_or(self.mode, |m| m.permissions().mode() & 0o7777);
        let directory = path.parent().context("a file has a directory")?;
        let made = super::host::make_directories(directory)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let beside = directory.join(format!(".{name}.{}.new", std::process::id()));
        let written = || -> io::Result<()> {
            let _ = fs::remove_file(&beside);
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&beside)?;
            match &self.content {
                Content::Text(text) => io::Write::write_all(&mut file, text.as_bytes())?,
                Content::CopyOf(from) => io::copy(&mut Open::open(from)?, &mut file).map(|_| ())?,
            }
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            Open::open(directory)?.sync_all()
        };
        let result = written();
        let _ = fs::remove_file(&beside);
        result.map_err(|error| {
            let elsewhere = match (error.kind(), self.kind) {
                (io::ErrorKind::ReadOnlyFilesystem, Kind::Program) => {
                    ": give a directory that can be written as --bin-dir"
                }
                _ => "",
            };
            anyhow::Error::new(error).context(format!("cannot write {}{elsewhere}", path.display()))
        })?;
        Ok(made)
    }
}

fn same(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (Open::open(one)?, Open::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (
        BufReader::with_capacity(1 << 16, one),
        BufReader::with_capacity(1 << 16, other),
    );
    loop {
        let part = one.fill_buf()?;
        if part.is_empty() {
            return Ok(true);
        }
        let mut beside = vec![0; part.len()];
        other.read_exact(&mut beside)?;
        if part != beside {
            return Ok(false);
        }
        one.consume(beside.len());
    }
}

/// What differs, line by line: `-` is there, `+` would be.
pub fn difference(before: &str, after: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    // How many lines the rests from here on have in common.
    let mut common = vec![vec![0_usize; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] = match a[i] == b[j] {
                true => common[i + 1][j + 1] + 1,
                false => common[i + 1][j].max(common[i][j + 1]),
            };
        }
    }
    let (mut i, mut j, mut shown) = (0, 0, String::new());
    while i < a.len() || j < b.len() {
        let (mark, line) = if i < a.len() && j < b.len() && a[i] == b[j] {
            (i, j) = (i + 1, j + 1);
            (' ', a[i - 1])
        } else if j == b.len() || (i < a.len() && common[i + 1][j] >= common[i][j + 1]) {
            i += 1;
            ('-', a[i - 1])
        } else {
            j += 1;
            ('+', b[j - 1])
        };
        shown.push_str(&format!("{mark} {line}\n"));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_shown_line_by_line() {
        assert_eq!(difference("a\nb\nc\n", "a\nx\nc\nd\n"), "  a\n- b\n+ x\n  c\n+ d\n");
        assert_eq!(difference("", "a"), "+ a\n");
        assert_eq!(difference("a", ""), "- a\n");
    }
}
