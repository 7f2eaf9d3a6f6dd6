//! Which images a provider is for, and which of its answers are for an image: upstream's patterns. Pure.
//!
//! A pattern is a host with an optional port and path. `*` stands for anything within one label of the host; a port is the
//! image's port, and a path the beginning of its path.

/// Why a pattern can match nothing that was meant.
pub fn judge(pattern: &str) -> Result<(), String> {
    let (host, path) = split(pattern);
    if let Some(wrong) = pattern
        .chars()
        .find(|c| c.is_whitespace() || c.is_control() || matches!(c, '?' | '#' | '@' | '\\' | '<' | '>' | '"'))
    {
        return Err(format!("{wrong:?} can't be part of an image's name"));
    }
    if pattern.contains("://") || host.is_empty() {
        return Err("it begins with a registry's host, without a scheme".into());
    }
    let (name, port) = apart(host);
    if name.is_empty() || (name.contains(':') && !name.starts_with('[')) {
        return Err("its host and port can't be told apart".into());
    }
    if port.is_some_and(|p| p.is_empty() || !p.bytes().all(|b| b.is_ascii_digit())) {
        return Err("its port is a number".into());
    }
    if path.contains('*') {
        return Err("* stands for a part of the host only".into());
    }
    Ok(())
}

/// Whether an image's repository fits.
pub fn fits(pattern: &str, repository: &str) -> bool {
    let ((want_host, want_path), (host, path)) = (split(pattern), split(repository));
    let ((want_name, want_port), (name, port)) = (apart(want_host), apart(host));
    let (want, have): (Vec<&str>, Vec<&str>) = (want_name.split('.').collect(), name.split('.').collect());
    want_port == port
        && want.len() == have.len()
        && path.starts_with(want_path)
        && want.iter().zip(&have).all(|(want, have)| label_fits(want, have))
}

/// The registry of a repository, with its port.
pub fn registry(repository: &str) -> &str {
    split(repository).0
}

/// Host and path, the latter with its slash.
fn split(text: &str) -> (&str, &str) {
    text.split_at(text.find('/').unwrap_or(text.len()))
}

/// A host's name and port. Of an address of IPv6 only what follows its brackets is a port.
fn apart(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    }
}

fn label_fits(want: &str, have: &str) -> bool {
    let mut parts = want.split('*');
    let Some(mut rest) = have.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Upstream's own examples, and what lies beside them.
    #[test]
    fn patterns_match_as_upstreams() {
        for (pattern, image, want) in [
            (
                "123456789.dkr.ecr.us-east-1.amazonaws.com",
                "123456789.dkr.ecr.us-east-1.amazonaws.com/a",
                true,
            ),
            ("*.azurecr.io", "x.azurecr.io/a", true),
            ("*.azurecr.io", "x.y.azurecr.io/a", false),
            ("*.io", "k8s.io/a", true),
            ("*.io", "registry.k8s.io/a", false),
            ("k8s.*.io", "k8s.gcr.io/a", true),
            ("k8s.*", "k8s.dev/a", true),
            ("app*.k8s.io", "app1.k8s.io/a", true),
            ("app*.k8s.io", "ap.k8s.io/a", false),
            ("a*b*c.io", "a1b2c.io/a", true),
            ("a*b*c.io", "ac.io/a", false),
            ("a*a.io", "a.io/a", false),
            ("*.*.registry.io", "a.b.registry.io/a", true),
            ("registry.io:8080/path", "registry.io:8080/path/a", true),
            ("registry.io:8080/path", "registry.io:8081/path/a", false),
            ("registry.io:8080/path", "registry.io/path/a", false),
            ("registry.io/path", "registry.io:8080/path", false),
            ("*.io", "registry.io:5000/a", false),
            ("registry.io/foo", "registry.io/foobar", true),
            ("registry.io/foo/", "registry.io/foobar", false),
            ("[::1]:5000", "[::1]:5000/a", true),
            ("[::1]:5000", "[::1]/a", false),
            ("docker.io", "docker.io/library/busybox", true),
        ] {
            assert_eq!(fits(pattern, image), want, "{pattern} {image}");
        }
    }

    #[test]
    fn patterns_that_mean_nothing_are_refused() {
        for good in ["gcr.io", "*.io", "registry.io:8080/path", "[::1]:5000/a", "localhost"] {
            assert_eq!(judge(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "/a",
            "https://gcr.io",
            "a b",
            "gcr.io:port",
            "gcr.io:",
            "a:b:1",
            "gcr.io/*",
            "gcr.io?x",
            "u@gcr.io",
        ] {
            assert!(judge(bad).is_err(), "{bad}");
        }
    }
}
