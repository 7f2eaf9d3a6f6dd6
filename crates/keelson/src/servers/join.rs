//! How a machine learns from another server where the datastore is. Nothing is trusted on first use: the authority that the server
//! shows is taken if its hash is the token's, and the token is sent after that only. What was told is kept: a server that has
//! joined asks nobody again.

use super::offer::Datastore;
use super::{Remembered, bad_token};
use crate::agent::servers::{Link, Servers};
use crate::agent::{join as trust, status, until_done};
use crate::config::{Config, Options};
use anyhow::{Context, bail, ensure};
use http::{HeaderMap, HeaderValue, Method, header};
use keelson_apiserver::joining::PATH;
use keelson_apiserver::serve::tls;
use keelson_client::rest::{JSON, Rest};
use keelson_pki::{ServerToken, files};
use std::path::{Path, PathBuf};

/// Where the certificate is by which the datastore is reached, as it was told.
fn place(data_dir: &Path) -> PathBuf {
    data_dir.join("pki/datastore")
}

/// Asks the server that the options name, and keeps what it says.
pub async fn ask_for_datastore(server: &str, options: &Options, alone: &Config) -> anyhow::Result<Remembered> {
    ensure!(
        !alone.data_dir.join("store").exists(),
        "{} has a cluster of its own in it, which can't become part of another: give another --data-dir",
        alone.data_dir.display()
    );
    let token: ServerToken = options
        .token
        .as_deref()
        .unwrap_or_default()
        .parse()
        .map_err(bad_token)?;
    let hash = token.ca_hash().context(
        "--token: to join by --server the whole token is needed, whose last part tells that cluster from another: pki/server-token in the \
         data directory of any server",
    )?;
    let place = place(&alone.data_dir);
    let servers = Servers::open(&place.join("servers.json"), Some(server))?;
    let asked = until_done(|| async {
        let ca = trust::authority(&place.join("server-ca.crt"), &servers, Some(hash)).await?;
        let roots = tls::roots(&ca)?.into();
        ask(Link::new(servers.clone(), trust::trusting(roots, None)?, "")?, &token).await
    });
    let told = asked
        .await
        .with_context(|| format!("asking {server} for the datastore"))?;
    told.check()?;
    let pem = |name: &str, text: &Option<String>, secret: bool| match text {
        Some(text) if secret => files::write_secret(&place.join(name), text.as_bytes()),
        Some(text) => files::write_public(&place.join(name), text.as_bytes()),
        None => Ok(()),
    };
    pem("ca.crt", &told.ca, false)?;
    pem("client.key", &told.key, true)?;
    pem("client.crt", &told.cert, false)?;
    let known = Remembered {
        etcd_servers: told.etcd_servers,
        etcd_prefix: told.etcd_prefix,
        member: told.members.then(|| alone.node_name.clone()),
    };
    // Last: with it the server has joined.
    known.write(&alone.data_dir)?;
    tracing::info!(server, datastore = ?known.etcd_servers, "joined the cluster's servers");
    Ok(known)
}

async fn ask(link: Link, token: &ServerToken) -> anyhow::Result<Datastore> {
    let mut bearer =
        HeaderValue::from_str(&format!("Bearer {}", token.bearer())).context("the token is no header value")?;
    bearer.set_sensitive(true);
    let headers: HeaderMap = [(header::AUTHORIZATION, bearer)].into_iter().collect();
    let rest = Rest::new(link.with(headers), "keelson-server");
    let answer = rest.call(Method::GET, PATH, JSON, Vec::new()).await;
    let answer = answer
        .map_err(anyhow::Error::new)
        .map_err(|error| match status(&error) {
            Some(401) => error.context("--token is not the one of that cluster's servers"),
            Some(404) => error.context("that server has its store for itself, where no other server can join"),
            _ => error,
        })?;
    let Ok(told) = serde_json::from_slice(&answer) else {
        bail!("what the server says of its datastore is of another version");
    };
    Ok(told)
}

/// Removes what was told: the key among it outlives the machine's membership.
pub fn forget_what_was_told(data_dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(place(data_dir)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The options that reach it, by the certificate that was told.
pub fn reaching(options: Options, data_dir: &Path, known: Remembered) -> Options {
    let place = place(data_dir);
    let there = |name: &str| Some(place.join(name)).filter(|path| path.exists());
    Options {
        etcd_servers: Some(known.etcd_servers),
        etcd_prefix: Some(known.etcd_prefix),
        etcd_cafile: there("ca.crt"),
        etcd_certfile: there("client.crt"),
        etcd_keyfile: there("client.key"),
        ..options
    }
}
