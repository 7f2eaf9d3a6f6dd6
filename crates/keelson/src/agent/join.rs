//! How a machine becomes a node: from a token to a client certificate.
//!
//! Nothing is trusted on first use. The authority is read without trust and taken only if its hash is the token's; the
//! token's secret is sent only after that, over a connection that this authority vouches for.

use super::keys::{Purpose, Slot, Wanted};
use super::servers::{Link, Servers};
use super::trust::Told;
use anyhow::{Context, bail};
use http::{HeaderValue, Method, header};
use keelson_apiserver::serve::tls;
use keelson_client::rest::{JSON, Rest};
use keelson_pki::verify::Live;
use keelson_pki::verify::tls::Servers as Trusted;
use keelson_pki::{BootstrapToken, authority, files};
use rustls::ClientConfig;
use std::path::Path;
use std::sync::Arc;

/// How far the server's minor version may be behind this program's, and before it: a kubelet may be older than its server
/// by three (upstream's rule), and newer by one while a cluster is upgraded nodes first.
const BEHIND: u32 = 1;
const AHEAD: u32 = 3;

fn client_config(
    trusted: Arc<Trusted>,
) -> anyhow::Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>> {
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    let builder = ClientConfig::builder_with_provider(tls::provider()).with_protocol_versions(&versions)?;
    Ok(builder.dangerous().with_custom_certificate_verifier(trusted))
}

/// TLS towards servers that an authority vouches for, proving this machine by `identity` if it has one already.
pub fn trusting(roots: Live, identity: Option<Arc<Slot>>) -> anyhow::Result<ClientConfig> {
    let builder = client_config(Trusted::trusting(roots))?;
    Ok(match identity {
        Some(slot) => builder.with_client_cert_resolver(slot),
        None => builder.with_no_client_auth(),
    })
}

/// The cluster's authorities: from the file, or from the cluster if the token's `hash` says which is the right one.
pub async fn authority(file: &Path, servers: &Arc<Servers>, hash: Option<&str>) -> anyhow::Result<String> {
    if let Some(ca) = files::read(file)? {
        return Ok(ca);
    }
    let wanted = hash.context("this machine has not joined a cluster yet: give --token (keelson token create)")?;
    // Only for reading what is then checked against the token's hash: nothing secret is sent.
    let config = client_config(Trusted::anyone())?.with_no_client_auth();
    let told = Told::ask(servers, config).await?;
    let Some(ca) = told.pinned(wanted)? else {
        let hash = authority::fingerprint(&told.authorities)?;
        return Err(anyhow::Error::new(WrongCluster(format!(
            "the server's authority has the hash {hash}, the token says {wanted}: this is not the server of the token, or somebody stands between; \
             or the authority was replaced since the token was made: keelson token create makes another"
        ))));
    };
    files::write_public(file, ca.as_bytes())?;
    Ok(ca)
}

/// Whether a token is of the cluster that a machine has joined.
pub fn check(file: &Path, trusted: &str, hash: Option<&str>) -> anyhow::Result<()> {
    let Some(hash) = hash else { return Ok(()) };
    if authority::fingerprints(trusted).iter().any(|one| one == hash) {
        return Ok(());
    }
    bail!(
        "the token is another cluster's than {}, which this machine has joined (keelson uninstall forgets that one), or is of before its \
         authority was replaced (keelson token create makes another)",
        file.display()
    );
}

/// The first client certificate, by the token.
pub async fn certificate(
    servers: &Arc<Servers>,
    token: &BootstrapToken,
    slot: &Slot,
    wanted: &Wanted,
) -> anyhow::Result<()> {
    let link = Link::new(servers.clone(), trusting(wanted.trusted.roots(), None)?, "")?;
    let mut bearer = HeaderValue::from_str(&format!("Bearer {token}")).context("the token is no header value")?;
    bearer.set_sensitive(true);
    let rest = Rest::new(
        link.with([(header::AUTHORIZATION, bearer)].into_iter().collect()),
        "keelson-agent",
    );
    check_version(&rest).await?;
    slot.request(&rest, Purpose::Client, wanted).await?;
    Ok(())
}

/// Whether this program may be a node of that server's cluster.
async fn check_version(rest: &Rest) -> anyhow::Result<()> {
    let answer = rest
        .call(Method::GET, "/version", JSON, Vec::new())
        .await
        .context("asking for the server's version")?;
    let answer: serde_json::Value = serde_json::from_slice(&answer)?;
    let version = answer["gitVersion"].as_str().unwrap_or_default();
    match skew(version, crate::config::KUBERNETES_VERSION) {
        Some(true) => Ok(()),
        Some(false) => Err(anyhow::Error::new(WrongCluster(format!(
            "the server is Kubernetes {version}, this program v{}: a node may be {AHEAD} minor versions older than its server and {BEHIND} newer",
            crate::config::KUBERNETES_VERSION
        )))),
        None => bail!("the server's version {version:?} can't be read"),
    }
}

/// Whether a node of the one version goes with a server of the other; `None` for what is no version.
fn skew(server: &str, node: &str) -> Option<bool> {
    let parts = |text: &str| {
        let mut parts = text.trim_start_matches('v').split('.');
        Some((parts.next()?.parse::<u32>().ok()?, parts.next()?.parse::<u32>().ok()?))
    };
    let (server, node) = (parts(server)?, parts(node)?);
    Some(server.0 == node.0 && server.1 + BEHIND >= node.1 && server.1 <= node.1 + AHEAD)
}

/// Trying again leads nowhere.
#[derive(Debug)]
pub struct WrongCluster(String);

impl std::fmt::Display for WrongCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for WrongCluster {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_may_be_older_than_its_server_and_a_little_newer() {
        for (server, node, goes) in [
            ("v1.37.2", "1.37.2", true),
            ("v1.36.0", "1.37.2", true),
            ("v1.35.0", "1.37.2", false),
            ("v1.40.1", "1.37.2", true),
            ("v1.41.0", "1.37.2", false),
            ("v2.37.0", "1.37.2", false),
        ] {
            assert_eq!(skew(server, node), Some(goes), "{server} with {node}");
        }
        assert_eq!(skew("", "1.37.2"), None);
    }
}
