//! Kubeconfig files: one cluster, one user, one context.

use crate::files;
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// What the current context of a kubeconfig says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kubeconfig {
    pub server: String,
    pub ca_pem: String,
    /// The name that the server's certificate has to have, if not that of its address.
    pub server_name: String,
    /// The server's certificate is not to be checked.
    pub insecure: bool,
    pub user: String,
    pub auth: Auth,
}

/// How the user proves itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    #[default]
    None,
    Certificate {
        cert_pem: String,
        key_pem: String,
    },
    Token(String),
    Basic {
        username: String,
        password: String,
    },
}

impl Kubeconfig {
    pub fn with_certificate(server: &str, ca_pem: &str, user: &str, cert_pem: &str, key_pem: &str) -> Self {
        Kubeconfig {
            server: server.into(),
            ca_pem: ca_pem.into(),
            user: user.into(),
            auth: Auth::Certificate {
                cert_pem: cert_pem.into(),
                key_pem: key_pem.into(),
            },
            ..Kubeconfig::default()
        }
    }
    pub fn with_token(server: &str, ca_pem: &str, user: &str, token: &str) -> Self {
        Kubeconfig {
            server: server.into(),
            ca_pem: ca_pem.into(),
            user: user.into(),
            auth: Auth::Token(token.into()),
            ..Kubeconfig::default()
        }
    }

    /// The certificate and the key by which the user proves itself, if it does so by one.
    pub fn certificate(&self) -> Option<(&str, &str)> {
        match &self.auth {
            Auth::Certificate { cert_pem, key_pem } => Some((cert_pem, key_pem)),
            _ => None,
        }
    }

    pub fn to_yaml(&self) -> String {
        // JSON strings are YAML strings, whatever they hold.
        let q = |s: &str| serde_json::Value::from(s).to_string();
        let mut user = String::new();
        let _ = match &self.auth {
            Auth::None => write!(user, "    {{}}"),
            Auth::Certificate { cert_pem, key_pem } => write!(
                user,
                "    client-certificate-data: {}\n    client-key-data: {}",
                STANDARD.encode(cert_pem),
                STANDARD.encode(key_pem)
            ),
            Auth::Token(token) => write!(user, "    token: {}", q(token)),
            Auth::Basic { username, password } => {
                write!(user, "    username: {}\n    password: {}", q(username), q(password))
            }
        };
        let mut cluster = String::new();
        if self.insecure {
            cluster.push_str("    insecure-skip-tls-verify: true\n");
        }
        if !self.server_name.is_empty() {
            cluster.push_str(&format!("    tls-server-name: {}\n", q(&self.server_name)));
        }
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: keelson\n  cluster:\n    server: {server}\n    certificate-authority-data: {ca}\n{cluster}users:\n- name: {name}\n  user:\n{user}\ncontexts:\n- name: keelson\n  context:\n    cluster: keelson\n    user: {name}\ncurrent-context: keelson\n",
            server = q(&self.server),
            ca = STANDARD.encode(&self.ca_pem),
            name = q(&self.user),
        )
    }

    /// Writes the file, readable by its owner only; one that is so already is left as it is.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = self.to_yaml();
        let is_secret = |meta: std::fs::Metadata| meta.permissions().mode() & 0o777 == 0o600;
        if std::fs::symlink_metadata(path).is_ok_and(is_secret) && files::read(path)?.as_ref() == Some(&text) {
            return Ok(());
        }
        files::write_secret(path, text.as_bytes())
    }

    pub fn read(path: &Path) -> Result<Self> {
        let text = files::read(path)?.with_context(|| format!("there is no kubeconfig {}", path.display()))?;
        let base = path.parent().unwrap_or(Path::new("."));
        Self::parse(&text, base).with_context(|| format!("reading the kubeconfig {}", path.display()))
    }

    /// The authority in a `cluster-info`, as an unknown server tells it: what stands in the text itself, no file is read.
    pub fn authority_in(cluster_info: &str) -> Result<String> {
        let file: ConfigFile = serde_saphyr::from_str(cluster_info).map_err(|e| anyhow::anyhow!("{e}"))?;
        let cluster = file.clusters.into_iter().next().context("no cluster is named")?.cluster;
        let data = cluster.ca_data.context("no certificate-authority-data is given")?;
        text_of(Some(&data), None, Path::new(""))
    }

    /// Reads the current context; relative file names are looked up in `base`.
    pub fn parse(text: &str, base: &Path) -> Result<Self> {
        let file: ConfigFile = serde_saphyr::from_str(text).map_err(|e| anyhow::anyhow!("{e}"))?;
        let context = file
            .contexts
            .into_iter()
            .find(|c| c.name == file.current_context)
            .with_context(|| format!("no context named {:?}", file.current_context))?
            .context;
        let cluster = file.clusters.into_iter().find(|c| c.name == context.cluster);
        let cluster = cluster
            .with_context(|| format!("no cluster named {:?}", context.cluster))?
            .cluster;
        let user = file.users.into_iter().find(|u| u.name == context.user);
        let user = user
            .with_context(|| format!("no user named {:?}", context.user))?
            .user
            .unwrap_or_default();
        cluster.refuse_unknown()?;
        user.refuse_unknown()?;
        let auth = match (&user.token, &user.token_file, &user.username) {
            (Some(token), ..) => Auth::Token(token.clone()),
            (None, Some(file), _) => Auth::Token(text_of(None, Some(file), base)?.trim().to_string()),
            (None, None, Some(username)) => Auth::Basic {
                username: username.clone(),
                password: user.password.clone().unwrap_or_default(),
            },
            (None, None, None) => {
                let cert_pem = text_of(user.cert_data.as_deref(), user.cert.as_deref(), base)?;
                let key_pem = text_of(user.key_data.as_deref(), user.key.as_deref(), base)?;
                if cert_pem.is_empty() {
                    Auth::None
                } else {
                    Auth::Certificate { cert_pem, key_pem }
                }
            }
        };
        Ok(Kubeconfig {
            ca_pem: text_of(cluster.ca_data.as_deref(), cluster.ca.as_deref(), base)?,
            insecure: cluster.insecure,
            server_name: cluster.server_name.unwrap_or_default(),
            server: cluster.server,
            user: context.user,
            auth,
        })
    }
}

fn text_of(data: Option<&str>, file: Option<&str>, base: &Path) -> Result<String> {
    match (data, file) {
        (Some(data), _) => Ok(String::from_utf8(STANDARD.decode(data.trim()).context("no base64")?)?),
        (None, Some(file)) => {
            let path = base.join(file);
            files::read(&path)?.with_context(|| format!("there is no file {}", path.display()))
        }
        (None, None) => Ok(String::new()),
    }
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(rename = "current-context", default)]
    current_context: String,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
}
#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}
#[derive(Deserialize)]
struct Cluster {
    server: String,
    #[serde(rename = "certificate-authority-data")]
    ca_data: Option<String>,
    #[serde(rename = "certificate-authority")]
    ca: Option<String>,
    #[serde(rename = "insecure-skip-tls-verify", default)]
    insecure: bool,
    #[serde(rename = "tls-server-name")]
    server_name: Option<String>,
    #[serde(rename = "proxy-url")]
    proxy: Option<String>,
}

impl Cluster {
    /// What isn't done here is said, not passed over.
    fn refuse_unknown(&self) -> Result<()> {
        let none = self.proxy.as_deref().unwrap_or_default().is_empty();
        anyhow::ensure!(none, "proxy-url of a cluster is not supported");
        anyhow::ensure!(
            !self.insecure
                || [&self.ca_data, &self.ca]
                    .iter()
                    .all(|ca| ca.as_deref().unwrap_or_default().is_empty()),
            "specifying a root certificates file with the insecure flag is not allowed"
        );
        Ok(())
    }
}
#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: Option<User>,
}
#[derive(Default, Deserialize)]
struct User {
    #[serde(rename = "client-certificate-data")]
    cert_data: Option<String>,
    #[serde(rename = "client-certificate")]
    cert: Option<String>,
    #[serde(rename = "client-key-data")]
    key_data: Option<String>,
    #[serde(rename = "client-key")]
    key: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<String>,
    username: Option<String>,
    password: Option<String>,
    exec: Option<serde_json::Value>,
    #[serde(rename = "auth-provider")]
    auth_provider: Option<serde_json::Value>,
    #[serde(rename = "as")]
    impersonate: Option<String>,
}

impl User {
    fn refuse_unknown(&self) -> Result<()> {
        for (given, name) in [
            (self.exec.is_some(), "exec"),
            (self.auth_provider.is_some(), "auth-provider"),
            (self.impersonate.is_some(), "as"),
        ] {
            anyhow::ensure!(!given, "{name} of a user is not supported");
        }
        Ok(())
    }
}
#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: ContextRef,
}
#[derive(Deserialize)]
struct ContextRef {
    cluster: String,
    user: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for config in [
            Kubeconfig::with_certificate("https://127.0.0.1:6443", "CA\n", "admin", "CERT\n", "KEY\n"),
            Kubeconfig::with_token("https://[::1]:6443", "CA\n", "system:bootstrap:abcdef", "a.b"),
            Kubeconfig {
                server: "https://h".into(),
                ..Kubeconfig::default()
            },
        ] {
            assert_eq!(Kubeconfig::parse(&config.to_yaml(), Path::new(".")).unwrap(), config);
        }
        let basic = Kubeconfig {
            insecure: true,
            server_name: "other".into(),
            auth: Auth::Basic {
                username: "u".into(),
                password: "p".into(),
            },
            ..Kubeconfig::with_token("https://x", "", "u", "t")
        };
        assert_eq!(Kubeconfig::parse(&basic.to_yaml(), Path::new(".")).unwrap(), basic);
        let with = |user: &str| {
            let text = Kubeconfig::with_token("https://x", "", "u", "t").to_yaml();
            Kubeconfig::parse(&text.replace("    token: \"t\"", user), Path::new(".")).unwrap_err()
        };
        assert!(with("    exec: {command: x}").to_string().contains("exec of a user"));
        assert!(with("    as: x").to_string().contains("as of a user"));
        assert!(Kubeconfig::parse("current-context: gone", Path::new(".")).is_err());
    }
}
