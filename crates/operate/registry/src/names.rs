//! Names as the distribution API has them: repositories, tags, digests. What isn't exactly such a name is nothing: paths are made
//! of what is read here, and of nothing else.

use keelson_oci::reference::is_component;
use sha2::{Digest as _, Sha256, Sha512};
use std::fmt;

/// The longest name of a repository. As it is a directory's name too, it is the file system's bound.
const LONGEST: usize = 255;
const LONGEST_TAG: usize = 128;

/// A repository's name: components of small letters and digits with single separators within, parted by `/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository(String);

impl Repository {
    pub fn parse(text: &str) -> Option<Repository> {
        let sound = text.len() <= LONGEST && text.split('/').all(is_component);
        sound.then(|| Repository(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The one directory of it. `+` occurs in no name.
    pub fn directory(&self) -> String {
        self.0.replace('/', "+")
    }

    pub fn of_directory(name: &str) -> Option<Repository> {
        Repository::parse(&name.replace('+', "/"))
    }

    /// The first component, if there are more: the namespace of the cluster whose rights count.
    pub fn namespace(&self) -> Option<(&str, &str)> {
        self.0.split_once('/')
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=LONGEST_TAG).contains(&text.len())
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }
}

/// What content is called by: an algorithm and what it makes of the content.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    pub algorithm: Algorithm,
    hex: String,
}

impl Digest {
    pub fn parse(text: &str) -> Option<Digest> {
        let (algorithm, hex) = text.split_once([':'])?;
        Digest::of_parts(algorithm, hex)
    }

    fn of_parts(algorithm: &str, hex: &str) -> Option<Digest> {
        let algorithm = [Algorithm::Sha256, Algorithm::Sha512]
            .into_iter()
            .find(|a| a.name() == algorithm)?;
        let length = if algorithm == Algorithm::Sha256 { 64 } else { 128 };
        let sound = hex.len() == length && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        sound.then(|| Digest {
            algorithm,
            hex: hex.to_owned(),
        })
    }

    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// As a file's name.
    pub fn file(&self) -> String {
        format!("{}-{}", self.algorithm.name(), self.hex)
    }

    pub fn of_file(name: &str) -> Option<Digest> {
        let (algorithm, hex) = name.split_once('-')?;
        Digest::of_parts(algorithm, hex)
    }

    /// Eight bytes of it: enough to say that something isn't among many.
    pub fn short(&self) -> u64 {
        u64::from_str_radix(&self.hex[..16], 16).unwrap_or(0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

/// Digests what is given to it piece by piece.
#[derive(Clone)]
pub enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub fn new(algorithm: Algorithm) -> Hasher {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }

    pub fn algorithm(&self) -> Algorithm {
        match self {
            Hasher::Sha256(_) => Algorithm::Sha256,
            Hasher::Sha512(_) => Algorithm::Sha512,
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(h) => h.update(bytes),
            Hasher::Sha512(h) => h.update(bytes),
        }
    }

    pub fn finish(self) -> Digest {
        let algorithm = self.algorithm();
        let hex = match self {
            Hasher::Sha256(h) => hex::encode(h.finalize()),
            Hasher::Sha512(h) => hex::encode(h.finalize()),
        };
        Digest { algorithm, hex }
    }
}

/// What a manifest is asked for by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    Tag(String),
    Digest(Digest),
}

impl Reference {
    /// None: neither. A text with a colon can only be a digest.
    pub fn parse(text: &str) -> Option<Reference> {
        match text.contains(':') {
            true => Digest::parse(text).map(Reference::Digest),
            false => is_tag(text).then(|| Reference::Tag(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_are_names() {
        for good in [
            "a",
            "library/busybox",
            "a.b/c_d/e__f/g---h",
            "docker.io/library/x1",
            "0/1",
        ] {
            let name = Repository::parse(good).unwrap_or_else(|| panic!("{good}"));
            assert_eq!(Repository::of_directory(&name.directory()), Some(name));
        }
        let long = "a/".repeat(128);
        for bad in [
            "", "/", "a/", "/a", "a//b", "..", "a/../b", "../a", "A", "a..b", "a___b", "a._b", "-a", "a-", "a/.b",
            "a b", "a%2e", "a+b", "a\0b", "a:b", "ä", &long,
        ] {
            assert_eq!(Repository::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn only_tags_are_tags() {
        assert!(["latest", "1.0", "_x", "A-b.c_D"].into_iter().all(is_tag));
        let long = "a".repeat(129);
        assert!(
            !["", ".", "..", "-a", ".a", "a/b", "a:b", "a b", "ä", &long]
                .into_iter()
                .any(is_tag)
        );
    }

    #[test]
    fn only_digests_are_digests() {
        let empty = Digest::of(Algorithm::Sha256, b"");
        assert_eq!(
            empty.to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        for digest in [empty, Digest::of(Algorithm::Sha512, b"x")] {
            assert_eq!(Digest::parse(&digest.to_string()), Some(digest.clone()));
            assert_eq!(Digest::of_file(&digest.file()), Some(digest));
        }
        let a = "a".repeat(64);
        for bad in [
            "sha256:baddigeststring".to_owned(),
            format!("sha256:{}", "A".repeat(64)),
            format!("sha512:{a}"),
            format!("md5:{a}"),
            format!("sha256:../{}", "a".repeat(61)),
            format!("sha256:{a}a"),
            a,
        ] {
            assert_eq!(Digest::parse(&bad), None, "{bad}");
        }
    }
}
