//! Which registries to ask, and as whom: a YAML file in the form that k3s made known.
//!
//! ```yaml
//! mirrors:
//!   docker.io:
//!     endpoint: ["http://10.0.0.1:5000", "https://mirror.example"]   # asked in this order, then the registry itself
//!     rewrite: { "^library/(.*)": "mirror/$1" }                      # of repositories' names, for mirrors only
//!   "*":
//!     endpoint: ["http://127.0.0.1:5000/v2/hub"]                     # for every registry without an entry
//! configs:
//!   mirror.example:
//!     auth: { username: u, password: p }                             # or auth: <base64>, token, identity_token
//!     tls: { ca_file: /etc/ssl/own.pem, cert_file: …, key_file: …, insecure_skip_verify: false }
//! policy:                                                            # beyond k3s: whose signatures images need
//!   - images: registry.example/team                                  # a registry, or what repositories begin with; the longest counts
//!     keys: [/etc/keelson/cosign.pub]                                # one of them
//!     mode: enforce                                                  # or warn, or off
//! ```
//!
//! Credentials go to one place each: those of this file to the host they stand under, those that come with a pull to the
//! registry that the image names. A mirror never gets what is meant for the registry.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use base64::Engine;
use serde::Deserialize;

use crate::signature::Key;

/// What of Docker's hub is asked.
const DOCKER_HUB: &str = "registry-1.docker.io";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registries {
    mirrors: BTreeMap<String, Mirror>,
    configs: BTreeMap<String, Access>,
    policy: Vec<Rule>,
    /// Registries that have mirrors are not asked themselves.
    #[serde(skip)]
    mirrors_only: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Mirror {
    endpoint: Vec<String>,
    rewrite: BTreeMap<Pattern, String>,
}

/// Which images need a signature, and whose.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    images: String,
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    mode: Mode,
}

/// What becomes of an image that isn't signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It isn't pulled.
    #[default]
    Enforce,
    /// It is pulled, and the log says so.
    Warn,
    Off,
}

/// Whose signature an image needs.
#[derive(Debug)]
pub struct Policy {
    pub keys: Vec<Key>,
    pub mode: Mode,
}

/// A regular expression; in a file, and so checked when it is read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(transparent)]
struct Pattern(String);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Access {
    auth: Option<Auth>,
    tls: Tls,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Auth {
    username: String,
    password: String,
    auth: String,
    token: String,
    identity_token: String,
}

/// Without secrets.
impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Tls {
    ca_file: Option<String>,
    cert_file: Option<String>,
    key_file: Option<String>,
    insecure_skip_verify: bool,
}

/// A place to ask for an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Host and port.
    pub host: String,
    /// What stands before names of repositories: `/v2`, or what a mirror's address says.
    pub path: String,
    pub plain_http: bool,
    /// Of a mirror: the registry it stands for, which it is told.
    pub stands_for: Option<String>,
    /// The repository as it is called there.
    pub repository: String,
    pub ca: Option<Vec<u8>>,
    /// Certificate and key to show, PEM.
    pub identity: Option<Identity>,
    pub skip_verify: bool,
    /// Of the file.
    pub credentials: Credentials,
}

/// A client's certificate and its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity(pub Vec<u8>);

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(…)")
    }
}

#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    #[default]
    None,
    Basic(String, String),
    /// A token that is exchanged for others.
    Identity(String),
    /// A token to show as it is.
    Bearer(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Credentials::None => "None",
            Credentials::Basic(..) => "Basic(…)",
            Credentials::Identity(_) => "Identity(…)",
            Credentials::Bearer(_) => "Bearer(…)",
        })
    }
}

impl Credentials {
    /// From the parts that files and pull secrets give; the first that is there counts, in containerd's order.
    pub fn from_parts(
        username: &str,
        password: &str,
        identity_token: &str,
        auth: &str,
        token: &str,
    ) -> anyhow::Result<Credentials> {
        if !username.is_empty() {
            return Ok(Credentials::Basic(username.to_owned(), password.to_owned()));
        }
        if !identity_token.is_empty() {
            return Ok(Credentials::Identity(identity_token.to_owned()));
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
    /// Reads the file, which has to be there: without it no image would need a signature any more.
    pub fn load(path: &Path) -> anyhow::Result<Registries> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let read = Registries::parse(&text).and_then(|registries| {
            // What can't be read now would be found out when an image isn't pulled.
            registries.policy.iter().try_for_each(|rule| rule.read().map(drop))?;
            Ok(registries)
        });
        read.with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Registries> {
        if text.trim().is_empty() {
            return Ok(Registries::default());
        }
        let registries: Registries = serde_saphyr::from_str(text)?;
        for (registry, mirror) in &registries.mirrors {
            let of = || format!("mirror of {registry}");
            for endpoint in &mirror.endpoint {
                Address::parse(endpoint).with_context(of)?;
            }
            for pattern in mirror.rewrite.keys() {
                regex::Regex::new(&pattern.0).with_context(of)?;
            }
        }
        registries.policy.iter().try_for_each(Rule::check)?;
        Ok(registries)
    }

    /// Whose signature images of a repository need, which is named with its registry. The keys are read now: they may have been replaced.
    pub fn policy(&self, name: &str) -> anyhow::Result<Option<Policy>> {
        let name = canonical(name);
        let fitting = self.policy.iter().filter(|rule| rule.fits(&name));
        let Some(rule) = fitting.max_by_key(|rule| rule.beginning().len()) else {
            return Ok(None);
        };
        Ok(Some(rule.read()?).filter(|policy| policy.mode != Mode::Off))
    }

    /// Registries that have mirrors (`"*"` counts) are not asked themselves.
    pub fn mirrors_only(mut self, only: bool) -> Registries {
        self.mirrors_only = only;
        self
    }

    /// Where to ask for a repository of a registry, in order.
    pub fn endpoints(&self, registry: &str, repository: &str) -> anyhow::Result<Vec<Endpoint>> {
        let mirror = self.mirrors.get(registry).or_else(|| self.mirrors.get("*"));
        let mut found: Vec<Endpoint> = Vec::new();
        for address in mirror.iter().flat_map(|m| &m.endpoint) {
            let address = Address::parse(address)?;
            let renamed = mirror.map_or_else(|| Ok(repository.to_owned()), |m| m.rewritten(repository))?;
            let mut endpoint = self.endpoint(&address, &renamed)?;
            endpoint.stands_for = (address.host != host_of(registry)).then(|| registry.to_owned());
            found.push(endpoint);
        }
        let host = host_of(registry);
        // Named among its own mirrors, it is asked the way that says.
        let named = found.iter().any(|e| e.host == host && e.repository == repository);
        if !named && (mirror.is_none() || !self.mirrors_only) {
            let itself = Address {
                host: host.to_owned(),
                path: "/v2".to_owned(),
                plain_http: is_plain_loopback(host),
            };
            let mut endpoint = self.endpoint(&itself, repository)?;
            // As containerd: nobody checks who this machine is.
            endpoint.skip_verify |= is_loopback(host);
            found.push(endpoint);
        }
        Ok(found)
    }

    fn endpoint(&self, address: &Address, repository: &str) -> anyhow::Result<Endpoint> {
        let host = &address.host;
        let config = self.configs.get(host);
        // What people write for Docker's hub is its name.
        let config = config.or_else(|| self.configs.get("docker.io").filter(|_| host == DOCKER_HUB));
        let access = config.cloned().unwrap_or_default();
        let auth = access.auth.unwrap_or_default();
        let read = |file: &str| std::fs::read(file).with_context(|| format!("cannot read {file}"));
        let ca = access.tls.ca_file.as_deref().map(read).transpose()?;
        let identity = match (&access.tls.cert_file, &access.tls.key_file) {
            (Some(certificate), key) => {
                let mut pem = read(certificate)?;
                if let Some(key) = key {
                    pem.push(b'\n');
                    pem.extend(read(key)?);
                }
                Some(Identity(pem))
            }
            (None, Some(_)) => bail!("{host}: a key_file without cert_file"),
            (None, None) => None,
        };
        Ok(Endpoint {
            host: host.clone(),
            path: address.path.clone(),
            plain_http: address.plain_http,
            stands_for: None,
            repository: repository.to_owned(),
            ca,
            identity,
            skip_verify: access.tls.insecure_skip_verify,
            credentials: Credentials::from_parts(
                &auth.username,
                &auth.password,
                &auth.identity_token,
                &auth.auth,
                &auth.token,
            )
            .with_context(|| format!("credentials of {host}"))?,
        })
    }
}

impl Rule {
    fn check(&self) -> anyhow::Result<()> {
        let beginning = self.images.trim_end_matches('*');
        if self.images.is_empty()
            || beginning.contains(['*', '@', ' '])
            || (self.images != beginning && !beginning.is_empty() && !beginning.ends_with('/'))
        {
            bail!(
                "policy: {:?} is no registry or repository, nor the beginning of one: a/b, a/b/*, or * for all",
                self.images
            );
        }
        if self.keys.is_empty() && self.mode != Mode::Off {
            bail!(
                "policy of {}: no key, and so no image could ever be pulled: name keys, or mode: off",
                self.images
            );
        }
        let registry = beginning.split('/').next().unwrap_or_default();
        if !beginning.is_empty() && !registry.contains(['.', ':']) && registry != "localhost" {
            bail!(
                "policy of {0}: {registry:?} is no registry, and so no image would be meant: docker.io/{0}, or as it is called",
                self.images
            );
        }
        Ok(())
    }

    /// What names of images begin with, spelt as [`canonical`] spells them.
    fn beginning(&self) -> String {
        canonical(self.images.trim_end_matches('*').trim_end_matches('/'))
    }

    /// Whether a name is meant that is spelt as [`canonical`] spells it.
    fn fits(&self, name: &str) -> bool {
        let beginning = self.beginning();
        match name.strip_prefix(beginning.as_str()) {
            Some(rest) => beginning.is_empty() || rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }

    fn read(&self) -> anyhow::Result<Policy> {
        let keys = self.keys.iter().map(|file| {
            let pem = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
            Key::read(file, &pem)
        });
        let keys = keys.collect::<anyhow::Result<_>>();
        Ok(Policy {
            keys: keys.with_context(|| format!("policy of {}", self.images))?,
            mode: self.mode,
        })
    }
}

impl Mirror {
    /// The repository's name by the first pattern that fits, in the order of their texts.
    fn rewritten(&self, repository: &str) -> anyhow::Result<String> {
        for (pattern, replacement) in &self.rewrite {
            let pattern = regex::Regex::new(&pattern.0)?;
            if pattern.is_match(repository) {
                return Ok(pattern.replace_all(repository, replacement.as_str()).into_owned());
            }
        }
        Ok(repository.to_owned())
    }
}

/// A mirror's address.
struct Address {
    host: String,
    path: String,
    plain_http: bool,
}

impl Address {
    /// `[http[s]://]host[:port][/path]`. A path is taken as it is; without one it is `/v2`.
    fn parse(text: &str) -> anyhow::Result<Address> {
        let (plain_http, rest) = match text.split_once("://") {
            Some(("http", rest)) => (true, rest),
            Some(("https", rest)) => (false, rest),
            Some((scheme, _)) => bail!("endpoint {text:?}: {scheme} is neither http nor https"),
            None => (is_plain_loopback(text.split('/').next().unwrap_or(text)), text),
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() || host.contains(['@', '?', '#', ' ']) || path.contains(['?', '#', ' ']) {
            bail!("endpoint {text:?} has to be an address: host, port and path");
        }
        let path = path.trim_end_matches('/');
        Ok(Address {
            host: host_of(host).to_owned(),
            path: if path.is_empty() {
                "/v2".to_owned()
            } else {
                format!("/{path}")
            },
            plain_http,
        })
    }
}

/// Registry and repository in one spelling: as a registry is asked whatever the case of its name, with its usual port or without, and
/// whoever writes a policy thinks of one of them.
fn canonical(name: &str) -> String {
    let (host, repository) = match name.split_once('/') {
        Some((host, repository)) => (host, Some(repository)),
        None => (name, None),
    };
    let url = reqwest::Url::parse(&format!("https://{host}/")).ok();
    let asked = url.as_ref().and_then(|url| Some((url.host_str()?, url.port())));
    let host = match asked {
        Some((DOCKER_HUB | "index.docker.io", None)) => "docker.io".to_owned(),
        Some((host, None)) => host.to_owned(),
        Some((host, Some(port))) => format!("{host}:{port}"),
        None => host.to_ascii_lowercase(),
    };
    match repository {
        Some(repository) => format!("{host}/{repository}"),
        None => host,
    }
}

/// Where a registry is that goes by a name.
fn host_of(registry: &str) -> &str {
    match registry {
        "docker.io" => DOCKER_HUB,
        host => host,
    }
}

fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let ip = name
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<std::net::IpAddr>();
    name == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

/// Registries on this machine speak plain HTTP unless they are at the port of HTTPS, as with other runtimes.
fn is_plain_loopback(host: &str) -> bool {
    let port = host
        .rsplit_once(':')
        .map(|(_, port)| port)
        .filter(|p| !p.ends_with(']'));
    is_loopback(host) && port.is_some_and(|p| p != "443")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
mirrors:
  docker.io:
    endpoint: ["http://10.0.0.1:5000/v2/hub", "https://m.example/v2/", "docker.io"]
    rewrite: {"^library/(.*)": "mirror/$1"}
  "*": {endpoint: ["http://any:1"]}
configs:
  m.example: {auth: {auth: dTpw}}
  docker.io: {auth: {identity_token: t}}
"#;

    #[test]
    fn mirrors_come_before_the_registry() {
        let registries = Registries::parse(FILE).unwrap();
        let asked = |registry: &str, repository: &str| {
            let found = registries.endpoints(registry, repository).unwrap();
            let show = |e: &Endpoint| {
                let ns = e.stands_for.as_deref().map(|r| format!("?ns={r}")).unwrap_or_default();
                format!("{}{}/{}{ns}", e.host, e.path, e.repository)
            };
            found.iter().map(show).collect::<Vec<_>>()
        };
        assert_eq!(
            asked("docker.io", "library/a"),
            [
                "10.0.0.1:5000/v2/hub/mirror/a?ns=docker.io",
                "m.example/v2/mirror/a?ns=docker.io",
                "registry-1.docker.io/v2/mirror/a",
                "registry-1.docker.io/v2/library/a"
            ]
        );
        assert_eq!(asked("quay.io", "x/b"), ["any:1/v2/x/b?ns=quay.io", "quay.io/v2/x/b"]);
        let docker = registries.endpoints("docker.io", "a/b").unwrap();
        assert!(docker[0].plain_http && !docker[1].plain_http && !docker[2].plain_http);
        assert_eq!(docker[0].credentials, Credentials::None);
        assert_eq!(docker[1].credentials, Credentials::Basic("u".into(), "p".into()));
        assert_eq!(docker[2].credentials, Credentials::Identity("t".into()));
        // Rewriting changed nothing, and so the registry stands among its mirrors already.
        assert_eq!(docker.len(), 3);
        let only = registries.clone().mirrors_only(true);
        assert_eq!(only.endpoints("quay.io", "x/b").unwrap().len(), 1);
        let none = Registries::default().mirrors_only(true);
        assert_eq!(none.endpoints("quay.io", "x/b").unwrap()[0].host, "quay.io");
    }

    #[test]
    fn this_machine_speaks_http() {
        for (host, plain) in [
            ("127.0.0.1:5000", true),
            ("localhost:5000", true),
            ("[::1]:5000", true),
            ("127.0.0.1", false),
            ("127.0.0.1:443", false),
            ("10.0.0.1:5000", false),
            ("localhost.example:5000", false),
        ] {
            let found = Registries::default().endpoints(host, "a").unwrap();
            assert_eq!(found[0].plain_http, plain, "{host}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for (text, why) in [
            ("mirror: {}", "mirror"),
            ("mirrors: {a: {endpoints: []}}", "endpoints"),
            ("configs: {a: {tls: {ca: x}}}", "ca"),
            ("configs: {a: {auth: {user: x}}}", "user"),
            (r#"mirrors: {a: {endpoint: ["ftp://x"]}}"#, "ftp"),
            (r#"mirrors: {a: {endpoint: ["http:///v2"]}}"#, "http:///v2"),
            (r#"mirrors: {a: {rewrite: {"(": "x"}}}"#, "mirror of a"),
            ("policy: [{images: a}]", "no key"),
            ("policy: [{images: \"a*\", keys: [k]}]", "a*"),
            ("policy: [{images: team/app, keys: [k]}]", "docker.io/team/app"),
            ("policy: [{images: a, keys: [k], mode: maybe}]", "maybe"),
        ] {
            let error = format!("{:#}", Registries::parse(text).unwrap_err());
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(Registries::parse("").is_ok());
    }

    #[test]
    fn the_longest_beginning_says_whose_signature_is_needed() {
        let dir = std::env::temp_dir().join(format!("keelson-policy-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let key = dir.join("k.pub");
        std::fs::write(&key, include_str!("golden/cosign.pub")).unwrap();
        let text = format!(
            "policy: [{{images: r.example, keys: [{0}]}}, {{images: r.example/team/, keys: [{0}], mode: warn}}, \
             {{images: r.example/team/free/*, mode: \"off\"}}, {{images: broken.example, keys: [/nowhere]}}, \
             {{images: \"docker.io/*\", keys: [{0}]}}, {{images: 10.0.0.1, keys: [{0}]}}]",
            key.display()
        );
        let registries = Registries::parse(&text).unwrap();
        let mode = |name: &str| registries.policy(name).unwrap().map(|p| p.mode);
        assert_eq!(mode("r.example/a"), Some(Mode::Enforce));
        assert_eq!(mode("r.example.evil/a"), None);
        assert_eq!(mode("r.example/team/a"), Some(Mode::Warn));
        assert_eq!(mode("r.example/teams/a"), Some(Mode::Enforce));
        assert_eq!(mode("r.example/team/free/a"), None);
        assert_eq!(mode("quay.io/library/a"), None);
        // However a registry is spelt, it is the same one.
        for name in [
            "R.Example/a",
            "r.example:443/a",
            "docker.io/library/a",
            "registry-1.docker.io/library/a",
            "10.1/a",
            "0x0a.0.0.1/a",
        ] {
            assert_eq!(mode(name), Some(Mode::Enforce), "{name}");
        }
        assert_eq!(mode("r.example:5000/a"), None, "another port is another registry");
        assert!(format!("{:#}", registries.policy("broken.example/a").unwrap_err()).contains("/nowhere"));
        assert!(
            Registries::load(&dir.join("none.yaml")).is_err(),
            "a policy that isn't there is none"
        );
        let file = dir.join("registries.yaml");
        std::fs::write(&file, &text).unwrap();
        assert!(format!("{:#}", Registries::load(&file).unwrap_err()).contains("/nowhere"));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn secrets_are_not_shown() {
        let text = "configs: {a: {auth: {username: u, password: hidden, token: hidden, identity_token: hidden}}}";
        let registries = Registries::parse(text).unwrap();
        assert!(!format!("{registries:?}").contains("hidden"));
        assert!(!format!("{:?}", registries.endpoints("a", "b").unwrap()).contains("hidden"));
    }
}
