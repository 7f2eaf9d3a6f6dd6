//! Which registries to ask, and as whom: a YAML file in the form that k3s made known.
//!
//! ```yaml
//! mirrors:
//!   docker.io:
//!     endpoint: ["http://10.0.0.1:5000", "https://mirror.example"]   # asked in this order, then the registry itself
//!   "*":
//!     endpoint: ["http://127.0.0.1:5000"]                            # for every registry without an entry
//! configs:
//!   mirror.example:
//!     auth: { username: u, password: p }                             # or auth: <base64>, or token: <bearer token>
//!     tls: { ca_file: /etc/ssl/own.pem, insecure_skip_verify: false }
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use base64::Engine;
use serde::Deserialize;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registries {
    mirrors: BTreeMap<String, Mirror>,
    configs: BTreeMap<String, Access>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Mirror {
    endpoint: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Access {
    auth: Option<Auth>,
    tls: Tls,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Auth {
    username: String,
    password: String,
    auth: String,
    token: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Tls {
    ca_file: Option<String>,
    insecure_skip_verify: bool,
}

/// A place to ask for an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Host and port.
    pub host: String,
    pub plain_http: bool,
    pub ca: Option<Vec<u8>>,
    pub skip_verify: bool,
    /// Of the file; what a pod brings along goes first.
    pub credentials: Credentials,
}

#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    #[default]
    None,
    Basic(String, String),
    Bearer(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Credentials::None => "None",
            Credentials::Basic(..) => "Basic(…)",
            Credentials::Bearer(_) => "Bearer(…)",
        })
    }
}

impl Credentials {
    /// From the parts that files and pull secrets give.
    pub fn from_parts(username: &str, password: &str, auth: &str, token: &str) -> anyhow::Result<Credentials> {
        if !username.is_empty() {
            return Ok(Credentials::Basic(username.to_owned(), password.to_owned()));
        }
        if !auth.is_empty() {
            let decoded = base64::engine::general_purpose::STANDARD
                .decode(auth.trim())
                .context("auth is not base64")?;
            let decoded = String::from_utf8(decoded).context("auth is not text")?;
            let Some((user, password)) = decoded.split_once(':') else {
                bail!("auth has no colon")
            };
            return Ok(Credentials::Basic(
                user.to_owned(),
                password.trim_end_matches('\0').to_owned(),
            ));
        }
        Ok(if token.is_empty() {
            Credentials::None
        } else {
            Credentials::Bearer(token.to_owned())
        })
    }
}

impl Registries {
    /// Reads the file; one that does not exist is an empty one.
    pub fn load(path: &Path) -> anyhow::Result<Registries> {
        let text = match std::fs::read_to_string(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Registries::default()),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        Registries::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Registries> {
        if text.trim().is_empty() {
            return Ok(Registries::default());
        }
        Ok(serde_saphyr::from_str(text)?)
    }

    /// Where to ask for images of a registry, in order.
    pub fn endpoints(&self, registry: &str) -> anyhow::Result<Vec<Endpoint>> {
        let mirror = self.mirrors.get(registry).or_else(|| self.mirrors.get("*"));
        let mut found = Vec::new();
        for url in mirror.iter().flat_map(|m| &m.endpoint) {
            let (host, plain_http) = match url.split_once("://") {
                Some(("http", host)) => (host, true),
                Some(("https", host)) => (host, false),
                None => (url.as_str(), is_loopback(url)),
                Some(_) => bail!("mirror {url:?} is neither http nor https"),
            };
            let host = host.trim_end_matches('/').trim_end_matches("/v2");
            if host.is_empty() || host.contains('/') {
                bail!("mirror {url:?} has to be a host, without path");
            }
            found.push(self.endpoint(host, plain_http)?);
        }
        if !found.iter().any(|e| e.host == registry) {
            found.push(self.endpoint(registry, is_loopback(registry))?);
        }
        Ok(found)
    }

    fn endpoint(&self, host: &str, plain_http: bool) -> anyhow::Result<Endpoint> {
        let access = self.configs.get(host).cloned().unwrap_or_default();
        let auth = access.auth.unwrap_or_default();
        let ca = match &access.tls.ca_file {
            Some(file) => Some(std::fs::read(file).with_context(|| format!("cannot read {file}"))?),
            None => None,
        };
        Ok(Endpoint {
            host: host.to_owned(),
            plain_http,
            ca,
            skip_verify: access.tls.insecure_skip_verify,
            credentials: Credentials::from_parts(&auth.username, &auth.password, &auth.auth, &auth.token)
                .with_context(|| format!("credentials of {host}"))?,
        })
    }
}

/// Registries on this machine speak plain HTTP, as with other runtimes.
fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_come_before_the_registry() {
        let text = r#"
mirrors:
  docker.io: {endpoint: ["http://10.0.0.1:5000", "https://m.example/v2/"]}
  "*": {endpoint: ["http://any:1"]}
configs:
  m.example: {auth: {auth: dTpw}}
"#;
        let registries = Registries::parse(text).unwrap();
        let hosts = |r: &str| {
            registries
                .endpoints(r)
                .unwrap()
                .iter()
                .map(|e| e.host.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(hosts("docker.io"), ["10.0.0.1:5000", "m.example", "docker.io"]);
        assert_eq!(hosts("quay.io"), ["any:1", "quay.io"]);
        let docker = registries.endpoints("docker.io").unwrap();
        assert!(docker[0].plain_http && !docker[1].plain_http);
        assert_eq!(docker[1].credentials, Credentials::Basic("u".into(), "p".into()));
    }

    #[test]
    fn unknown_fields_are_refused() {
        assert!(Registries::parse("mirror: {}").is_err());
        assert!(Registries::parse("").is_ok());
    }
}
