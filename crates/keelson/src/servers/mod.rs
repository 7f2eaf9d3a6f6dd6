//! Several servers as one cluster: what they have alike, and how a machine becomes one of them.
//!
//! Servers meet in the datastore. There the first one puts what all must have alike: authorities and keys ([`shared`]), sealed by
//! the servers' token ([`token`] replaces it), and settings ([`settings`]). The next one takes them from there, before it makes anything of its own. Where
//! the datastore is it is told by its options, or by another server ([`join`], [`offer`]), or it remembers it ([`remembered`]);
//! what runs beside it, if servers run the datastore themselves, is begun by [`beside`].

mod beside;
mod held;
mod join;
mod offer;
mod remembered;
mod settings;
mod shared;
mod steps;
mod token;

pub use beside::Beside;
#[cfg(test)]
pub use held::Held;
pub use held::Shared;
pub use join::forget_what_was_told;
pub use remembered::Remembered;
pub use shared::renew_token;
#[cfg(test)]
pub use shared::settle;
pub use steps::{Steps, Written};
pub use token::{Front, Turning, ready, serving};

use crate::cluster::{Cluster, parts};
use crate::config::{Config, Options};
use crate::store::{Choice, Opened};
use anyhow::{Context, bail, ensure};
use keelson_apiserver::joining::{Borne, Joining};
use keelson_pki::ServerToken;
use keelson_pki::sharing::{ETCD_CA, ITEMS, Item};
use keelson_store::Store;

/// A server that knows what it is among others.
pub struct Met {
    /// With what the others have decided.
    pub config: Config,
    pub store: Opened,
    /// How more servers join.
    pub joining: Joining,
    /// By what their secrets are sealed.
    pub held: Shared,
    /// The member of the datastore that runs beside it.
    pub beside: Option<Beside>,
}

/// Opens the datastore, and takes from it what the other servers have put there, or puts it there for them. `None`: the store is
/// this machine's own.
pub async fn meet(options: Options, alone: &Config) -> anyhow::Result<Option<Met>> {
    options.check_joining()?;
    let given: Option<ServerToken> = options
        .token
        .as_deref()
        .map(str::parse)
        .transpose()
        .map_err(bad_token)?;
    if options.etcd_servers.as_ref().is_some_and(|servers| !servers.is_empty()) {
        return of_given(options, given).await.map(Some);
    }
    let known = match (Remembered::read(&alone.data_dir)?, options.server.as_deref()) {
        (Some(known), _) => Some(known),
        (None, Some(server)) => Some(join::ask_for_datastore(server, &options, alone).await?),
        (None, None) => None,
    };
    match known {
        Some(known) if known.member.is_none() => of_given(join::reaching(options, &alone.data_dir, known), given)
            .await
            .map(Some),
        Some(known) => beside::again(options, alone, known, given).await.map(Some),
        None if options.cluster_init == Some(true) => beside::begin(options, alone, given).await.map(Some),
        None => {
            ensure!(
                options.token.is_none() && options.etcd_program.is_none(),
                "--token and --etcd-program are for several servers: give --server, --etcd-servers or --cluster-init too, or leave them out"
            );
            Ok(None)
        }
    }
}

/// With a datastore that somebody else runs.
async fn of_given(options: Options, given: Option<ServerToken>) -> anyhow::Result<Met> {
    let alone = options.clone().resolve()?;
    let Choice::Etcd(choice) = &alone.store else {
        bail!("no etcd server is named")
    };
    let store = Opened::open(&alone.store).await?;
    let (config, held) = agree(&options, &alone, &store, &items(false), given).await?;
    Ok(Met {
        joining: joining(&held, offer::of_given(choice))?,
        held,
        config,
        store,
        beside: None,
    })
}

/// A server that has its store alone, open; with the ranges that its cluster has.
pub async fn alone(options: &Options, alone: &Config) -> anyhow::Result<(Config, Opened)> {
    let store = Opened::open(&alone.store).await?;
    let config = settings::alone(store.store().as_ref(), alone.store.root(), options).await?;
    Ok((config, store))
}

/// What it says of ranges holds for the cluster's life.
pub async fn remember(store: &dyn Store, config: &Config) -> anyhow::Result<()> {
    settings::remember(store, config.store.root(), &settings::Settings::of(config)).await
}

fn joining(held: &Shared, offer: keelson_apiserver::joining::Offer) -> anyhow::Result<Joining> {
    Ok(Joining {
        token: Borne::new(held.lock().token()?.clone()),
        offer,
        turns: None,
    })
}

/// What servers share. `etcd`: they run one themselves.
pub fn items(etcd: bool) -> Vec<&'static Item> {
    let own: Option<&Item> = etcd.then_some(&ETCD_CA);
    ITEMS.iter().chain(own).collect()
}

/// What all servers have alike: from the store, or into it.
async fn agree(
    options: &Options,
    alone: &Config,
    store: &Opened,
    items: &[&Item],
    given: Option<ServerToken>,
) -> anyhow::Result<(Config, Shared)> {
    let (store, root) = (store.store(), alone.store.root());
    let held = shared::settle(store.as_ref(), root, &alone.data_dir, items, given).await?;
    let (address, own) = (alone.node_ip().to_string(), settings::Settings::of(alone));
    let agreed = settings::agree(store.as_ref(), root, &address, options, own).await?;
    Ok((options.clone().resolve_among(&agreed)?, held.shared()))
}

fn bad_token(why: String) -> anyhow::Error {
    anyhow::anyhow!("--token: {why}")
}

impl Options {
    /// Everything decided, as the other servers have decided it.
    fn resolve_among(self, agreed: &settings::Settings) -> anyhow::Result<Config> {
        let options = Options {
            api_port: Some(agreed.api_port.parse().context("the servers' API port")?),
            ..self
        };
        options.resolve_in(&agreed.cluster)
    }

    /// Everything decided once more, in the cluster of which this server is one.
    pub fn resolve_as(self, running: &Config) -> anyhow::Result<Config> {
        self.resolve_in(&Cluster::of(running))
    }

    fn resolve_in(self, cluster: &Cluster) -> anyhow::Result<Config> {
        let left_out = cluster.disabled().map(str::to_owned);
        let disable: Vec<String> = self.disable.iter().flatten().cloned().chain(left_out).collect();
        let Cluster {
            cluster_cidr,
            service_cidr,
            cluster_dns,
            cluster_domain,
            network,
            disabled: _,
        } = cluster.clone();
        let options = Options {
            cluster_cidr: Some(parts(&cluster_cidr)),
            service_cidr: Some(parts(&service_cidr)),
            cluster_dns: Some(parts(&cluster_dns)),
            cluster_domain: Some(cluster_domain),
            network: Some(network),
            disable: Some(disable),
            ..self
        };
        options.resolve()
    }

    /// Refuses what can't be meant.
    fn check_joining(&self) -> anyhow::Result<()> {
        let etcd = self.etcd_servers.as_ref().is_some_and(|servers| !servers.is_empty());
        let init = self.cluster_init == Some(true);
        ensure!(
            !(self.server.is_some() && etcd),
            "--server asks another server where the datastore is, --etcd-servers says it: give one of them"
        );
        ensure!(
            !(init && etcd),
            "--cluster-init runs an etcd, --etcd-servers names one that runs already: give one of them"
        );
        ensure!(
            !(init && self.server.is_some()),
            "--cluster-init begins a cluster, --server joins one: give one of them"
        );
        ensure!(
            self.server.is_none() || self.token.is_some(),
            "--server needs --token: pki/server-token in that server's data directory"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_be_meant_together_is_refused() {
        let etcd = || Some(vec!["https://10.0.0.1:2379".to_string()]);
        let server = || Some("https://10.0.0.1:6443".to_string());
        let refused = |options: Options| options.check_joining().is_err();
        let none = Options::default;
        assert!(refused(Options {
            server: server(),
            ..none()
        }));
        assert!(refused(Options {
            server: server(),
            token: Some("t".into()),
            etcd_servers: etcd(),
            ..none()
        }));
        assert!(refused(Options {
            server: server(),
            token: Some("t".into()),
            cluster_init: Some(true),
            ..none()
        }));
        assert!(refused(Options {
            etcd_servers: etcd(),
            cluster_init: Some(true),
            ..none()
        }));
        assert!(!refused(Options {
            server: server(),
            token: Some("t".into()),
            ..none()
        }));
        assert!(!refused(none()));
    }
}
