//! Which credentials of a pod's pull secrets fit a repository, and what each is of. Pure.

use super::pulled;
use crate::providers::pattern;
use base64::Engine;
use k8s_openapi::api::core::v1::Secret;
use keelson_cri::v1::AuthConfig;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Credentials, and whose they are.
#[derive(Clone)]
pub struct Tracked {
    pub auth: AuthConfig,
    pub source: Source,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Secret(pulled::Secret),
    /// A plug-in gave them for this account.
    Account(pulled::Account),
    /// A plug-in gave them for whoever is on this node.
    Node,
}

/// All credentials that match, the most specific first.
pub fn matching(secrets: &[std::sync::Arc<Secret>], repository: &str) -> Vec<Tracked> {
    let mut found: Vec<(String, Tracked)> = Vec::new();
    for secret in secrets {
        let data = |key: &str| secret.data.as_ref()?.get(key).map(|b| b.0.clone());
        let (bytes, nested) = match secret.type_.as_deref() {
            Some("kubernetes.io/dockerconfigjson") => (data(".dockerconfigjson"), true),
            Some("kubernetes.io/dockercfg") => (data(".dockercfg"), false),
            _ => continue,
        };
        let Some(json) = bytes.and_then(|b| serde_json::from_slice::<Value>(&b).ok()) else {
            tracing::warn!(
                secret = secret.metadata.name,
                "a pull secret can't be read and is left out"
            );
            continue;
        };
        let entries = if nested {
            json.get("auths").cloned().unwrap_or_default()
        } else {
            json
        };
        for (registry, entry) in entries.as_object().into_iter().flatten() {
            let prefix = normalize(registry);
            if pattern::fits(&prefix, repository) {
                let auth = auth(entry);
                let text = |field: &Option<String>| field.clone().unwrap_or_default();
                let source = pulled::Secret {
                    namespace: text(&secret.metadata.namespace),
                    name: text(&secret.metadata.name),
                    uid: text(&secret.metadata.uid),
                    credential_hash: hash(&auth, entry),
                };
                let source = Source::Secret(source);
                found.push((prefix, Tracked { auth, source }));
            }
        }
    }
    ranked(found)
}

/// By what they are for, the most specific first.
pub fn ranked(mut found: Vec<(String, Tracked)>) -> Vec<Tracked> {
    found.sort_by(|a, b| b.0.cmp(&a.0));
    found.into_iter().map(|(_, a)| a).collect()
}

/// `https://index.docker.io/v1/` and the like, as a prefix of repositories. A path keeps its slash: it says where a name ends.
pub fn normalize(registry: &str) -> String {
    let without = |scheme: &str| registry.strip_prefix(scheme);
    let plain = without("https://").or_else(|| without("http://")).unwrap_or(registry);
    let (host, path) = plain.split_at(plain.find('/').unwrap_or(plain.len()));
    // The version of a registry's API is no part of a name.
    let versioned = path.strip_prefix("/v1").or_else(|| path.strip_prefix("/v2"));
    let path = versioned
        .filter(|rest| rest.is_empty() || rest.starts_with('/'))
        .unwrap_or(path);
    let path = if path == "/" { "" } else { path };
    match (host, path) {
        ("index.docker.io" | "registry-1.docker.io", "") => "docker.io".into(),
        _ => format!("{host}{path}"),
    }
}

/// Upstream's hash: of the JSON that Go makes of what it takes from a secret.
fn hash(auth: &AuthConfig, entry: &Value) -> String {
    let email = entry.get("email").and_then(Value::as_str).unwrap_or_default();
    let fields = [
        ("username", auth.username.as_str()),
        ("password", auth.password.as_str()),
        ("email", email),
    ];
    let mut json: Vec<String> = Vec::new();
    for (key, value) in fields {
        if !value.is_empty() {
            json.push(format!("\"{key}\":{}", Value::from(value)));
        }
    }
    // Go's encoder writes these for the sake of HTML.
    let mut text = format!("{{{}}}", json.join(","));
    for (plain, escaped) in [
        ("<", "\\u003c"),
        (">", "\\u003e"),
        ("&", "\\u0026"),
        ("\u{2028}", "\\u2028"),
        ("\u{2029}", "\\u2029"),
    ] {
        text = text.replace(plain, escaped);
    }
    hex::encode(Sha256::digest(text.as_bytes()))
}

/// Without the address, as upstream: containerd shows credentials to no host that isn't written just as it is in there.
fn auth(entry: &Value) -> AuthConfig {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut auth = AuthConfig {
        username: text("username"),
        password: text("password"),
        identity_token: text("identitytoken"),
        registry_token: text("registrytoken"),
        ..Default::default()
    };
    if auth.username.is_empty()
        && let Ok(plain) = base64::engine::general_purpose::STANDARD.decode(text("auth").trim())
        && let Ok(plain) = String::from_utf8(plain)
        && let Some((user, password)) = plain.split_once(':')
    {
        auth.username = user.to_owned();
        auth.password = password.trim_end_matches('\0').to_owned();
    }
    auth
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "edbd57ca9372e64eb1c9070ecf3a049ac553596b0529acf034c7a71d4e618e88";

    #[test]
    fn hosts_and_paths_are_matched() {
        for (prefix, repository, want) in [
            ("registry.example.com", "registry.example.com/a/b", true),
            ("*.example.com", "x.example.com/a", true),
            ("*.example.com", "x.y.example.com/a", false),
            ("registry.example.com/team", "registry.example.com/team/app", true),
            ("registry.example.com/team", "registry.example.com/other", false),
            ("registry.example.com/team", "registry.example.com/teams/app", true),
            ("registry.example.com/team/", "registry.example.com/teams/app", false),
            ("registry.example.com/team/", "registry.example.com/team/app", true),
            ("registry.example.com/team/v1", "registry.example.com/team/app", false),
            (
                "https://registry.example.com/v2/team",
                "registry.example.com/team/app",
                true,
            ),
            (
                "https://registry.example.com/v1beta/",
                "registry.example.com/app",
                false,
            ),
            ("http://registry.example.com/", "registry.example.com/app", true),
            ("https://index.docker.io/v1/", "docker.io/library/busybox", true),
            ("https://index.docker.io/v1", "docker.io/library/busybox", true),
        ] {
            assert_eq!(
                pattern::fits(&normalize(prefix), repository),
                want,
                "{prefix} {repository}"
            );
        }
    }

    #[test]
    fn the_encoded_pair_is_read() {
        let s: Secret = serde_json::from_value(serde_json::json!({"type": "kubernetes.io/dockerconfigjson",
            "data": {".dockerconfigjson": base64::engine::general_purpose::STANDARD.encode(
                r#"{"auths":{"r.io":{"auth":"dTpw"}}}"#)}}))
        .unwrap();
        let found = matching(&[std::sync::Arc::new(s)], "r.io/x");
        let auth = &found[0].auth;
        assert_eq!((auth.username.as_str(), auth.password.as_str()), ("u", "p"));
        // Of {"username":"u","password":"p"}.
        let Source::Secret(secret) = &found[0].source else {
            panic!()
        };
        assert_eq!(secret.credential_hash, HASH);
    }
}
