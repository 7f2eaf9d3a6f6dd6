//! What a server tells a machine that is to become one: where the datastore is, and by which certificate it is reached.

use crate::etcd::certificates::Certificates;
use crate::etcd::{Place, upkeep};
use crate::store::EtcdChoice;
use anyhow::{Context, ensure};
use keelson_apiserver::joining::Offer;
use keelson_pki::files;
use keelson_store::Etcd;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Datastore {
    pub etcd_servers: Vec<String>,
    pub etcd_prefix: String,
    /// Each server runs a member of it beside itself.
    pub members: bool,
    /// In PEM.
    pub ca: Option<String>,
    pub cert: Option<String>,
    pub key: Option<String>,
}

/// Tells how this server reaches an etcd that somebody else runs, as it is when somebody asks.
pub fn of_given(choice: &EtcdChoice) -> Offer {
    let choice = choice.clone();
    Arc::new(move || {
        let told = given(&choice);
        Box::pin(async move { Ok(serde_json::to_value(told?)?) })
    })
}

fn given(choice: &EtcdChoice) -> anyhow::Result<Datastore> {
    if let Some(here) = choice.servers.iter().find(|server| is_loopback(server)) {
        anyhow::bail!(
            "this server reaches the datastore at {here}, which is another place on any other machine: start it with addresses that all reach"
        );
    }
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let (cert, key) = choice.identity.clone().unzip();
    Ok(Datastore {
        etcd_servers: choice.servers.clone(),
        etcd_prefix: prefix(&choice.root),
        members: false,
        ca: choice.ca_file.as_deref().map(read).transpose()?,
        cert: cert.as_deref().map(read).transpose()?,
        key: key.as_deref().map(read).transpose()?,
    })
}

/// Tells who the members are of the etcd that the servers run, as they are when somebody asks.
pub fn of_members(place: &Place, store: &Arc<Etcd>, root: &str) -> Offer {
    let (place, store, prefix) = (place.clone(), store.clone(), prefix(root));
    Arc::new(move || {
        let (place, store, etcd_prefix) = (place.clone(), store.clone(), prefix.clone());
        Box::pin(async move {
            let members = store.members().await.context("who belongs to etcd")?;
            let client = Certificates::ensure(&place)?.client;
            let told = Datastore {
                etcd_servers: upkeep::addresses(&members, &place.client_url()),
                etcd_prefix,
                members: true,
                ca: files::read(&place.pki().join("ca.crt"))?,
                cert: Some(client.cert_pem),
                key: Some(client.key_pem),
            };
            Ok(serde_json::to_value(told)?)
        })
    })
}

fn prefix(root: &str) -> String {
    if root.is_empty() { "/".into() } else { root.into() }
}

fn is_loopback(server: &str) -> bool {
    let place = server.split_once("://").map_or(server, |(_, place)| place);
    let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Datastore {
    /// What somebody else tells is checked before it is kept.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.etcd_servers.is_empty(), "the server names no datastore");
        ensure!(
            self.cert.is_some() == self.key.is_some(),
            "the server tells half of a certificate and its key"
        );
        ensure!(
            !self.members || (self.ca.is_some() && self.cert.is_some()),
            "the server tells no certificates of its etcd"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_on_this_machine_is_offered_to_nobody() {
        for (server, here) in [
            ("http://127.0.0.1:2379", true),
            ("https://[::1]:2379", true),
            ("https://localhost:2379", true),
            ("127.8.8.8:2379", true),
            ("https://10.0.0.1:2379", false),
            ("https://etcd.example:2379", false),
        ] {
            assert_eq!(is_loopback(server), here, "{server}");
        }
    }
}
