//! Names of images: `[registry/]repository[:tag][@digest]`, with Docker's defaults filled in.

use std::fmt;

/// A whole name. With a digest, a tag is left out: the digest alone decides.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    pub registry: String,
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<String>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("couldn't parse image name {0:?}: {1}")]
pub struct InvalidReference(String, &'static str);

impl Reference {
    pub fn parse(text: &str) -> Result<Reference, InvalidReference> {
        let invalid = |why| InvalidReference(text.to_owned(), why);
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(invalid("invalid digest")),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|t| !is_tag(t)) {
            return Err(invalid("invalid tag"));
        }
        let (registry, repository) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
            _ => ("docker.io", name.to_owned()),
        };
        let repository = match registry {
            "docker.io" | "index.docker.io" if !repository.contains('/') => format!("library/{repository}"),
            _ => repository,
        };
        if repository.is_empty() || repository.ends_with('/') {
            return Err(invalid("no repository"));
        }
        if repository.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(invalid("repository name must be lowercase"));
        }
        // Addresses and policies are made of both: what says `..`, `?` or `\` would lead elsewhere than it says.
        if !repository.split('/').all(is_component) || repository.len() > 255 || !is_host(registry) {
            return Err(invalid("invalid reference format"));
        }
        let registry = if registry == "index.docker.io" {
            "docker.io"
        } else {
            registry
        };
        let tag = match (&digest, tag) {
            (Some(_), _) => None,
            (None, tag) => Some(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Reference {
            registry: registry.to_owned(),
            repository,
            tag,
            digest,
        })
    }

    /// Registry and repository.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The name that says exactly which content: repository and digest.
    pub fn with_digest(&self, digest: &str) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match (&self.digest, &self.tag) {
            (Some(digest), _) => write!(f, "@{digest}"),
            (None, Some(tag)) => write!(f, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

/// `sha256:` and 64 lower-case hexadecimal digits; nothing else is used in practice, and nothing else is verified.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_hex)
}

fn is_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A part of a repository's name: small letters and digits, between them `.`, `_`, `__` or any number of `-`.
pub fn is_component(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    let mut between = bytes.split(|b| plain(*b));
    plain(*first)
        && plain(*last)
        && between.all(|separator| {
            matches!(separator, [] | [b'.'] | [b'_'] | [b'_', b'_']) || separator.iter().all(|b| *b == b'-')
        })
}

/// A registry: a name or an address, with a port or without.
fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        let inner = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    let is_v6 = |address: &str| address.parse::<std::net::Ipv6Addr>().is_ok();
    let (is_sound, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => (is_v6(address), None),
        Some((address, port)) => (is_v6(address), Some(port.strip_prefix(':').unwrap_or_default())),
        None => match text.split_once(':') {
            Some((name, port)) => (name.split('.').all(label), Some(port)),
            None => (text.split('.').all(label), None),
        },
    };
    is_sound && port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok())
}

fn is_tag(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// The digest in an image ID: `sha256:<hex>` or the bare hexadecimal form.
pub fn as_id(text: &str) -> Option<String> {
    if is_digest(text) {
        return Some(text.to_owned());
    }
    is_hex(text).then(|| format!("sha256:{text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_dockers() {
        let d = "sha256:".to_owned() + &"a".repeat(64);
        let cases = [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("a/b:1", "docker.io/a/b:1".to_owned()),
            ("localhost:5000/x", "localhost:5000/x:latest".to_owned()),
            (
                "registry.k8s.io/e2e-test-images/agnhost:2.66.1",
                "registry.k8s.io/e2e-test-images/agnhost:2.66.1".to_owned(),
            ),
            (&format!("busybox:1@{d}"), format!("docker.io/library/busybox@{d}")),
            ("index.docker.io/library/x", "docker.io/library/x:latest".to_owned()),
        ];
        for (input, want) in cases {
            assert_eq!(Reference::parse(input).unwrap().to_string(), want);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "Foo",
            "a@sha256:12",
            "a:-b",
            "host.io/",
            "a//b",
            "a b",
            "a..b",
            "-a/b",
            "a.io/b/",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }

    /// Who asks makes a path of it: one that leads out of its repository would have another's image by a name no policy knows.
    #[test]
    fn names_lead_nowhere_else() {
        for bad in [
            "r.example/free/../team/app:1",
            "r.example/../../x",
            "r.example/./team/app",
            "r.example/team/.hidden",
            "r.example\\v2\\team\\app:1/x",
            "r.example?x=:1/a",
            "r.example#:1/a",
            "r.example./team/app",
            "r.example:/a",
            "r.example:+443/a",
            "r.example:99999/a",
            "-r.example/a",
            "[::1/a",
            "[x.y]:1/a",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
        for good in [
            "[::1]:5000/a",
            "[fd00::1]/a",
            "R.example/a",
            "10.0.0.1:443/a/b-c/d__e",
            "localhost/a",
        ] {
            assert!(Reference::parse(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn ids_have_two_forms() {
        let hex = "0".repeat(64);
        assert_eq!(as_id(&hex), Some(format!("sha256:{hex}")));
        assert_eq!(as_id("busybox"), None);
    }
}
