//! Names of images: `[registry/]path[:tag][@digest]`. Pure.

/// An image name taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    /// Registry and path, as credentials are looked up by.
    pub repository: String,
    /// The name to give to the runtime: with `latest` when neither tag nor digest was written.
    pub full: String,
    /// Neither tag nor digest, or the tag `latest`.
    pub is_latest: bool,
}

fn is_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// One part of a path: lower case words joined by `.`, `_`, `__` or any number of `-`.
fn is_component(s: &str) -> bool {
    let b = s.as_bytes();
    if b.is_empty() || !is_alnum(b[0]) || !is_alnum(b[b.len() - 1]) {
        return false;
    }
    let mut separator = String::new();
    for c in s.chars() {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            if !matches!(separator.as_str(), "" | "." | "_" | "__") && !separator.chars().all(|c| c == '-') {
                return false;
            }
            separator.clear();
        } else if matches!(c, '.' | '_' | '-') {
            separator.push(c);
        } else {
            return false;
        }
    }
    true
}

fn is_domain(s: &str) -> bool {
    let (host, port) = match s.rsplit_once(':') {
        Some((h, p)) if !h.ends_with(']') || s.starts_with('[') => (h, Some(p)),
        _ => (s, None),
    };
    let port_ok = port.is_none_or(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
    let host_ok = host.starts_with('[')
        || (!host.is_empty()
            && host.split('.').all(|l| {
                !l.is_empty()
                    && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                    && !l.starts_with('-')
                    && !l.ends_with('-')
            }));
    port_ok && host_ok
}

pub fn parse(image: &str) -> Result<ImageName, String> {
    let bad = || format!("couldn't parse image name \"{image}\": invalid reference format");
    let (rest, digest) = match image.split_once('@') {
        Some((rest, d)) => (rest, Some(d)),
        None => (image, None),
    };
    if let Some(d) = digest {
        let (algorithm, hex) = d.split_once(':').ok_or_else(bad)?;
        if algorithm.is_empty() || hex.len() < 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
    }
    let (name, tag) = match rest.rsplit_once(':') {
        Some((n, t)) if !t.contains('/') => (n, Some(t)),
        _ => (rest, None),
    };
    if let Some(t) = tag {
        let first = t.bytes().next().ok_or_else(bad)?;
        let ok = t.len() <= 128
            && (first.is_ascii_alphanumeric() || first == b'_')
            && t.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if !ok {
            return Err(bad());
        }
    }
    let (domain, path) = match name.split_once('/') {
        Some((d, p)) if d.contains(['.', ':']) || d == "localhost" || d.chars().any(|c| c.is_ascii_uppercase()) => {
            (Some(d), p)
        }
        _ => (None, name),
    };
    if domain.is_some_and(|d| !is_domain(d)) || !path.split('/').all(is_component) {
        return Err(bad());
    }
    let repository = match domain {
        Some(d) => format!("{d}/{path}"),
        None if path.contains('/') => format!("docker.io/{path}"),
        None => format!("docker.io/library/{path}"),
    };
    let full = if tag.is_none() && digest.is_none() {
        format!("{image}:latest")
    } else {
        image.to_owned()
    };
    let is_latest = digest.is_none() && tag.is_none_or(|t| t == "latest");
    Ok(ImageName {
        repository,
        full,
        is_latest,
    })
}

/// The name as it was written, without tag and digest.
pub fn without_tag(image: &str) -> &str {
    let rest = image.split_once('@').map_or(image, |(rest, _)| rest);
    match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_and_bad_names() {
        assert_eq!(parse("busybox").unwrap().full, "busybox:latest");
        assert_eq!(parse("busybox").unwrap().repository, "docker.io/library/busybox");
        assert_eq!(
            parse("registry.k8s.io/e2e-test-images/agnhost:2.40")
                .unwrap()
                .repository,
            "registry.k8s.io/e2e-test-images/agnhost"
        );
        assert_eq!(parse("localhost:5000/a/b").unwrap().full, "localhost:5000/a/b:latest");
        let d = format!("a/b@sha256:{}", "0".repeat(64));
        assert_eq!(parse(&d).unwrap().full, d);
        for bad in [
            "",
            "FAILED_IMAGE",
            "a b",
            "a//b",
            "a:",
            "-a",
            "a@sha256:xyz",
            "Invalid/Image:1:2",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
