//! Which paths are the API's, and what of them a browser may ask for.

use percent_encoding::percent_decode_str;

/// What the API server answers, as opposed to the console.
pub fn is_api(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    matches!(first, "api" | "apis" | "version" | "readyz" | "livez")
}

/// Why a path isn't passed on.
pub fn refused(path: &str) -> Option<&'static str> {
    let Ok(segments) = segments(path) else {
        return Some("the path is not UTF-8");
    };
    let is_odd = |s: &String| s.is_empty() || s == "." || s == ".." || s.contains('/') || s.contains('\\');
    // One slash at the end is usual.
    let inner = match segments.split_last() {
        Some((last, rest)) if last.is_empty() => rest,
        _ => &segments[..],
    };
    if inner.iter().any(is_odd) {
        return Some("a path can't have empty, `.` or `..` parts");
    }
    // What a pod serves would be a page of the console's origin, with all its rights.
    // Names may be anything, `proxy` too: what counts is where it stands.
    let within = match inner {
        [api, _, rest @ ..] if api == "api" => rest,
        _ => &[],
    };
    let of_object = match within {
        [namespaces, _, rest @ ..] if namespaces == "namespaces" && rest.len() > 1 => rest,
        rest => rest,
    };
    let is_proxy = match of_object {
        [kind, _, what, ..] => matches!(kind.as_str(), "pods" | "services" | "nodes") && what == "proxy",
        _ => false,
    };
    if is_proxy || within.first().is_some_and(|s| s == "proxy") {
        return Some("pages of pods and services aren't shown within the console: use `kubectl port-forward`");
    }
    None
}

/// Whether a path may become a connection of its own: commands in containers.
pub fn may_upgrade(path: &str) -> bool {
    match segments(path).as_deref() {
        Ok([api, v1, namespaces, _, pods, _, what]) => {
            [api, v1, namespaces, pods]
                .iter()
                .map(|s| s.as_str())
                .eq(["api", "v1", "namespaces", "pods"])
                && (what == "exec" || what == "attach")
        }
        _ => false,
    }
}

fn segments(path: &str) -> Result<Vec<String>, std::str::Utf8Error> {
    let path = path.strip_prefix('/').unwrap_or(path);
    path.split('/')
        .map(|s| percent_decode_str(s).decode_utf8().map(|s| s.into_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_apis() {
        for path in ["/api", "/api/v1/pods", "/apis/apps/v1", "/version", "/readyz"] {
            assert!(is_api(path) && refused(path).is_none(), "{path}");
        }
        for path in ["/", "/app.js", "/apiary", "/metrics", "/logs/x", "/console/about"] {
            assert!(!is_api(path), "{path}");
        }
    }

    #[test]
    fn paths_that_climb_and_pages_of_pods_are_refused() {
        for path in [
            "/api/v1/../x",
            "/api/%2e%2e/x",
            "/api//v1",
            "/api/a%2fb",
            "/api/%ff",
            "/api/v1/namespaces/a/pods/b/proxy/",
            "/api/v1/namespaces/a/pods/b/prox%79/x",
            "/api/v1/namespaces/a/services/b:80/proxy",
            "/api/v1/nodes/n/proxy/run",
            "/api/v1/proxy/namespaces/a/pods/b",
        ] {
            assert!(refused(path).is_some(), "{path}");
        }
        for path in [
            "/api/v1/namespaces/proxy/pods/proxy",
            "/api/v1/namespaces/pods/configmaps/proxy",
            "/api/v1/namespaces/a/pods/proxy/log",
            "/apis/apps/v1/namespaces/services/deployments/proxy",
        ] {
            assert!(refused(path).is_none(), "{path}: a name");
        }
    }

    #[test]
    fn only_commands_in_containers_become_connections() {
        assert!(may_upgrade("/api/v1/namespaces/a/pods/b/exec"));
        assert!(may_upgrade("/api/v1/namespaces/a/pods/b/attach"));
        for path in [
            "/api/v1/namespaces/a/pods/b/portforward",
            "/api/v1/nodes/a/proxy/exec",
            "/api/v1/namespaces/a/pods/b/log",
            "/apis/x/v1/namespaces/a/pods/b/exec",
        ] {
            assert!(!may_upgrade(path), "{path}");
        }
    }
}
