//! What all servers have to be told alike: `<prefix>/keelson/settings` in the datastore. A server that isn't told takes it from
//! there; one that is told something else is refused as long as others run. The only one may change it for all.

use crate::cluster::{Cluster, parts};
use crate::config::{Config, Options};
use anyhow::{Context, bail};
use keelson_store::{Expect, KeyRange, ListRequest, Outcome, Store};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

/// Servers that start, by address, below the store's root.
const STARTING: &str = "/keelson/starting/";
/// How long one may take from its settings to its announcement.
const START: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Settings {
    #[serde(flatten)]
    pub cluster: Cluster,
    /// All servers are behind one service, which has one port.
    pub api_port: String,
}

impl Settings {
    pub fn of(config: &Config) -> Settings {
        Settings {
            cluster: Cluster::of(config),
            api_port: config.api_port.to_string(),
        }
    }

    /// As the others have it, but for what this server is told.
    fn with(&self, own: &Settings, options: &Options) -> Settings {
        let (theirs, mut all) = (self, own.clone());
        let Options {
            cluster_cidr,
            service_cidr,
            cluster_dns,
            cluster_domain,
            network,
            disable,
            api_port,
            ..
        } = options;
        if cluster_cidr.is_none() {
            all.cluster.cluster_cidr.clone_from(&theirs.cluster.cluster_cidr);
        }
        if service_cidr.is_none() {
            all.cluster.service_cidr.clone_from(&theirs.cluster.service_cidr);
        }
        // Follows from the range of services, if that is told.
        if cluster_dns.is_none() && all.cluster.service_cidr == theirs.cluster.service_cidr {
            all.cluster.cluster_dns.clone_from(&theirs.cluster.cluster_dns);
        }
        if cluster_domain.is_none() {
            all.cluster.cluster_domain.clone_from(&theirs.cluster.cluster_domain);
        }
        if network.is_none() {
            all.cluster.network.clone_from(&theirs.cluster.network);
        }
        if disable.is_none() {
            all.cluster.disabled.clone_from(&theirs.cluster.disabled);
        }
        if api_port.is_none() {
            all.api_port.clone_from(&theirs.api_port);
        }
        all
    }

    /// `--option mine (the cluster has theirs)`, for what differs.
    fn differences(&self, theirs: &Settings) -> anyhow::Result<Vec<String>> {
        let (Value::Object(mine), Value::Object(theirs)) = (serde_json::to_value(self)?, serde_json::to_value(theirs)?)
        else {
            bail!("settings are no map");
        };
        let differing = mine.iter().filter(|(name, value)| theirs.get(*name) != Some(value));
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_string();
        let shown = differing.map(|(name, value)| {
            let theirs = text(theirs.get(name));
            let option = if name == "disabled" { "disable" } else { name };
            format!("--{option} {} (the cluster has {theirs})", text(Some(value)))
        });
        Ok(shown.collect())
    }
}

/// Pods and services have addresses of the ranges for as long as they live: one of the other family may come, none may change or go.
fn ranges_stay(before: &Cluster, now: &Cluster) -> anyhow::Result<()> {
    for (option, before, now) in [
        ("--cluster-cidr", &before.cluster_cidr, &now.cluster_cidr),
        ("--service-cidr", &before.service_cidr, &now.service_cidr),
    ] {
        if !parts(now).starts_with(&parts(before)) {
            bail!(
                "{option} {now}: this cluster has {before}, and what is in it has addresses of that. A range of the other family can be put \
                 behind it; none can be changed or left out"
            );
        }
    }
    Ok(())
}

/// A server that has its store alone holds itself to what it said before.
pub async fn remember(store: &dyn Store, root: &str, own: &Settings) -> anyhow::Result<()> {
    let key = format!("{root}/keelson/settings");
    let before = store
        .get(key.as_bytes(), None)
        .await
        .context("this server's settings")?
        .kv;
    if let Some(before) = before {
        let before: Settings = serde_json::from_slice(&before.value)
            .with_context(|| format!("this server's settings ({key} in the store) are not those of this version"))?;
        ranges_stay(&before.cluster, &own.cluster)?;
        if before == *own {
            return Ok(());
        }
    }
    let value = serde_json::to_vec(own)?;
    let put = store.put(key.into(), value.into(), Expect::Any, None).await;
    put.map(drop).context("this server's settings")
}

/// What all servers have from now on. `own`: as this server would have it alone; `address`: its address.
pub async fn agree(
    store: &dyn Store,
    root: &str,
    address: &str,
    options: &Options,
    own: Settings,
) -> anyhow::Result<Settings> {
    let key = format!("{root}/keelson/settings");
    // Who has read the settings and isn't announced yet counts, too.
    let place = format!("{root}{STARTING}{address}");
    let starting = store.put(place.into(), "".into(), Expect::Any, Some(START));
    starting.await.context("the servers that start")?;
    loop {
        let stored = store
            .get(key.as_bytes(), None)
            .await
            .context("the servers' settings")?
            .kv;
        let (wanted, expected) = match &stored {
            None => (own.clone(), Expect::Absent),
            Some(kv) => {
                let theirs: Settings = serde_json::from_slice(&kv.value).with_context(|| {
                    format!("the servers' settings ({key} in the store) are not those of this version")
                })?;
                let wanted = theirs.with(&own, options);
                if wanted == theirs {
                    return Ok(theirs);
                }
                let others = others(store, root, address).await?;
                let differences = wanted.differences(&theirs)?.join(", ");
                if !others.is_empty() {
                    bail!(
                        "{differences}: all servers of a cluster have to be told the same, and {} run. Leave it out, or stop the others to change it",
                        others.join(", ")
                    );
                }
                ranges_stay(&theirs.cluster, &wanted.cluster)?;
                tracing::warn!(differences, "changing the cluster's settings");
                (wanted, Expect::ModRevision(kv.mod_revision))
            }
        };
        let value = serde_json::to_vec(&wanted)?;
        let put = store.put(key.clone().into(), value.into(), expected, None);
        match put.await.context("the servers' settings")? {
            Outcome::Done { .. } => return Ok(wanted),
            Outcome::Conflict { .. } => tracing::debug!("another server has just said what the settings are"),
        }
    }
}

/// The servers that are announced, or start, but for this one.
async fn others(store: &dyn Store, root: &str, address: &str) -> anyhow::Result<Vec<String>> {
    let mut all = BTreeSet::new();
    for place in [format!("{root}/masterleases/"), format!("{root}{STARTING}")] {
        let listed = store.list(ListRequest::new(KeyRange::prefix(place.clone()))).await?;
        let addresses = listed.kvs.iter().filter_map(|kv| kv.key.strip_prefix(place.as_bytes()));
        all.extend(addresses.map(|address| String::from_utf8_lossy(address).into_owned()));
    }
    all.remove(address);
    Ok(all.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_store::Memory;

    fn settings(network: &str) -> Settings {
        Settings {
            cluster: Cluster {
                cluster_cidr: "10.244.0.0/16".into(),
                service_cidr: "10.96.0.0/16".into(),
                cluster_dns: "10.96.0.10".into(),
                cluster_domain: "cluster.local".into(),
                network: network.into(),
                disabled: String::new(),
            },
            api_port: "6443".into(),
        }
    }

    #[tokio::test]
    async fn the_first_decides_and_others_follow_or_are_refused() {
        let store = Memory::new();
        let agree = |address: &'static str, options: Options, own: Settings| {
            let store = store.clone();
            async move { agree(&*store, "/registry", address, &options, own).await }
        };
        let told = |network: &str| Options {
            network: Some(network.into()),
            ..Options::default()
        };
        let first = agree("10.0.0.1", told("host-gw"), settings("host-gw")).await.unwrap();
        store
            .put("/registry/masterleases/10.0.0.1".into(), "".into(), Expect::Any, None)
            .await
            .unwrap();
        // Who isn't told has a default, which doesn't count.
        let second = agree("10.0.0.2", Options::default(), settings("vxlan")).await.unwrap();
        assert_eq!(first, second);
        let refused = agree("10.0.0.2", told("vxlan"), settings("vxlan"))
            .await
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("--network vxlan (the cluster has host-gw)") && refused.contains("10.0.0.1"),
            "{refused}"
        );
        // Components that run everywhere are one of the things to agree on, by the name of their option.
        let without = Options {
            disable: Some(vec!["snapshots".into()]),
            ..Options::default()
        };
        let mut own = settings("host-gw");
        own.cluster.disabled = "snapshots".into();
        let refused = agree("10.0.0.2", without, own).await.unwrap_err().to_string();
        assert!(refused.contains("--disable snapshots (the cluster has "), "{refused}");
        // The other one has read the settings, and may be about to run by them.
        let refused = agree("10.0.0.1", told("vxlan"), settings("vxlan")).await.unwrap_err();
        assert!(refused.to_string().contains("10.0.0.2"), "{refused}");
        store
            .delete("/registry/keelson/starting/10.0.0.2".into(), Expect::Any)
            .await
            .unwrap();
        // The only one may change it, and its own announcement is none of another's.
        let changed = agree("10.0.0.1", told("vxlan"), settings("vxlan")).await.unwrap();
        assert_eq!(changed.cluster.network, "vxlan");
        let kept = agree("10.0.0.1", Options::default(), settings("host-gw"))
            .await
            .unwrap();
        assert_eq!(kept, changed);
    }

    #[tokio::test]
    async fn ranges_grow_by_a_family_and_nothing_else() {
        let store = Memory::new();
        let of = |pods: &str, services: &str| {
            let mut own = settings("vxlan");
            own.cluster.cluster_cidr = pods.into();
            own.cluster.service_cidr = services.into();
            own
        };
        let begun = of("10.244.0.0/16", "10.96.0.0/16");
        remember(&*store, "/registry", &begun).await.unwrap();
        let told = |own: Settings| {
            let store = store.clone();
            async move { remember(&*store, "/registry", &own).await.map_err(|e| e.to_string()) }
        };
        for (pods, services, named) in [
            ("10.200.0.0/16", "10.96.0.0/16", "--cluster-cidr 10.200.0.0/16"),
            ("10.244.0.0/16", "10.97.0.0/16", "--service-cidr 10.97.0.0/16"),
            (
                "fd00:244::/48,10.244.0.0/16",
                "fd00:96::/112,10.96.0.0/16",
                "--cluster-cidr fd00",
            ),
        ] {
            let refused = told(of(pods, services)).await.unwrap_err();
            assert!(
                refused.contains(named) && refused.contains("this cluster has 10."),
                "{refused}"
            );
        }
        let both = of("10.244.0.0/16,fd00:244::/48", "10.96.0.0/16,fd00:96::/112");
        told(both.clone()).await.unwrap();
        assert!(told(begun).await.is_err(), "a family doesn't go");
        // Of several servers, too, though the others have stopped.
        let options = Options {
            cluster_cidr: Some(vec!["10.200.0.0/16".into()]),
            ..Options::default()
        };
        let other = of("10.200.0.0/16", "10.96.0.0/16");
        assert!(agree(&*store, "/registry", "10.0.0.1", &options, other).await.is_err());
        assert_eq!(
            agree(&*store, "/registry", "10.0.0.1", &Options::default(), both.clone())
                .await
                .unwrap(),
            both
        );
    }
}
