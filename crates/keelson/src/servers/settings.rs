//! What all servers have to be told alike: `<prefix>/keelson/settings` in the datastore. A server that isn't told takes it from
//! there; one that is told something else is refused as long as others run. The only one may change it for all.

use crate::cluster::{self, Cluster, parts};
use crate::config::{Config, Options};
use anyhow::{Context, bail};
use ipnet::IpNet;
use keelson_api::builtin::builtin_kind_at;
use keelson_api::codec::proto;
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

/// Ranges that a cluster has, as far as they are known.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ranges {
    pods: Option<String>,
    services: Option<String>,
}

impl Ranges {
    fn of(cluster: &Cluster) -> Ranges {
        Ranges {
            pods: Some(cluster.cluster_cidr.clone()),
            services: Some(cluster.service_cidr.clone()),
        }
    }

    /// Of a store that no settings are in: one of an earlier version, whose servers wrote them for agents, or another server's.
    ///
    /// # Errors
    ///
    /// If they are there and can't be read, unless the server is `told` them: it would take its defaults for the cluster's ranges.
    async fn found(store: &dyn Store, root: &str, told: &Options) -> anyhow::Result<Ranges> {
        let is_told = told.cluster_cidr.is_some() && told.service_cidr.is_some();
        let read = async |place: String, api_version, kind| -> anyhow::Result<Option<Value>> {
            let key = format!("{root}/{place}");
            let found = store.get(key.as_bytes(), None).await;
            let Some(kv) = found.context("the cluster's ranges")?.kv else {
                return Ok(None);
            };
            let object = object(&kv.value, api_version, kind);
            if object.is_none() && !is_told {
                bail!(
                    "{key} in the store, which says what ranges this cluster has, is damaged, sealed, or of a later version: give \
                     --cluster-cidr and --service-cidr as the cluster has had them"
                );
            }
            if object.is_none() {
                tracing::error!(
                    key,
                    "what ranges the cluster has can't be read; going on with those of the options"
                );
            }
            Ok(object)
        };
        let place = format!("configmaps/{}/{}", cluster::NAMESPACE, cluster::NAME);
        let told = read(place, "v1", "ConfigMap").await?;
        let of = |name: &str| Some(normal(told.as_ref()?.get("data")?.get(name)?.as_str()?));
        if let (Some(pods), Some(services)) = (of("cluster-cidr"), of("service-cidr")) {
            return Ok(Ranges {
                pods: Some(pods),
                services: Some(services),
            });
        }
        let place = "servicecidrs/kubernetes".to_owned();
        let range = read(place, "networking.k8s.io/v1", "ServiceCIDR").await?;
        let cidrs = range
            .as_ref()
            .and_then(|range| range.pointer("/spec/cidrs")?.as_array());
        let cidrs = cidrs.map(|list| list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","));
        Ok(Ranges {
            pods: None,
            services: cidrs.filter(|c| !c.is_empty()).map(|c| normal(&c)),
        })
    }

    /// Pods and services have addresses of the ranges for as long as they live: one of the other family may come, none may change or go.
    fn stay(&self, now: &Cluster) -> anyhow::Result<()> {
        for (option, before, now) in [
            ("--cluster-cidr", &self.pods, &now.cluster_cidr),
            ("--service-cidr", &self.services, &now.service_cidr),
        ] {
            if let Some(before) = before.as_ref().filter(|before| !parts(now).starts_with(&parts(before))) {
                bail!(
                    "{option} {now}: this cluster has {before}, and what is in it has addresses of that. A range of the other family can be put \
                     behind it; none can be changed or left out"
                );
            }
        }
        Ok(())
    }
}

/// Ranges as options have them once they are read.
fn normal(ranges: &str) -> String {
    let one = |text: &str| match text.trim().parse::<IpNet>() {
        Ok(range) => range.trunc().to_string(),
        Err(_) => text.to_owned(),
    };
    ranges.split(',').map(one).collect::<Vec<_>>().join(",")
}

/// An object as it is stored; `None`: it can't be read, or is sealed.
fn object(bytes: &[u8], api_version: &str, kind: &str) -> Option<Value> {
    if !bytes.starts_with(proto::MAGIC) {
        return serde_json::from_slice(bytes).ok();
    }
    let object = proto::open(bytes)
        .ok()?
        .decode(&builtin_kind_at(api_version, kind)?)
        .ok()?;
    keelson_api::Value::Object(object.0).to_deserialize().ok()
}

fn key(root: &str) -> String {
    format!("{root}/keelson/settings")
}

fn read(key: &str, bytes: &[u8]) -> anyhow::Result<Settings> {
    let read = serde_json::from_slice::<Settings>(bytes);
    let mut read = read.with_context(|| format!("the settings ({key} in the store) are not those of this version"))?;
    for ranges in [&mut read.cluster.cluster_cidr, &mut read.cluster.service_cidr] {
        *ranges = normal(ranges);
    }
    Ok(read)
}

async fn stored(store: &dyn Store, root: &str) -> anyhow::Result<Option<Settings>> {
    let key = key(root);
    let found = store
        .get(key.as_bytes(), None)
        .await
        .context("this server's settings")?;
    found.kv.map(|kv| read(&key, &kv.value)).transpose()
}

/// How a server that has its store alone goes on: with the ranges that its cluster has, where it isn't told any.
pub async fn alone(store: &dyn Store, root: &str, options: &Options) -> anyhow::Result<Config> {
    let before = match stored(store, root).await? {
        Some(settings) => Ranges::of(&settings.cluster),
        None => Ranges::found(store, root, options).await?,
    };
    let or = |told: &Option<Vec<String>>, has: &Option<String>| told.clone().or_else(|| has.as_deref().map(parts));
    let options = Options {
        cluster_cidr: or(&options.cluster_cidr, &before.pods),
        service_cidr: or(&options.service_cidr, &before.services),
        ..options.clone()
    };
    let config = options.resolve()?;
    before.stay(&Cluster::of(&config))?;
    Ok(config)
}

/// What such a server holds itself to from now on.
pub async fn remember(store: &dyn Store, root: &str, own: &Settings) -> anyhow::Result<()> {
    if stored(store, root).await?.as_ref() == Some(own) {
        return Ok(());
    }
    let value = serde_json::to_vec(own)?;
    let put = store.put(key(root).into(), value.into(), Expect::Any, None).await;
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
    let key = key(root);
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
                let theirs = read(&key, &kv.value)?;
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
                Ranges::of(&theirs.cluster).stay(&wanted.cluster)?;
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

    /// A server that has its store alone, told these ranges, at this address.
    async fn start(store: &dyn Store, pods: &str, services: &str, node: &str) -> Result<Cluster, String> {
        let told = |list: &str| Some(parts(list)).filter(|_| !list.is_empty());
        let options = Options {
            cluster_cidr: told(pods),
            service_cidr: told(services),
            node_ip: told(node),
            node_name: Some("n".into()),
            ..Options::default()
        };
        let config = alone(store, "/registry", &options)
            .await
            .map_err(|e| format!("{e:#}"))?;
        let own = Settings::of(&config);
        remember(store, "/registry", &own).await.unwrap();
        Ok(own.cluster)
    }

    const BOTH: (&str, &str) = ("10.244.0.0/16,fd00:244::/48", "10.96.0.0/16,fd00:96::/112");
    const NODE: &str = "192.0.2.1,2001:db8::1";

    #[tokio::test]
    async fn ranges_grow_by_a_family_and_nothing_else() {
        let store = Memory::new();
        let begun = start(&*store, "", "", "192.0.2.1").await.unwrap();
        for (pods, services, named) in [
            ("10.200.0.0/16", "", "--cluster-cidr 10.200.0.0/16"),
            ("", "10.97.0.0/16", "--service-cidr 10.97.0.0/16"),
            (
                "fd00:244::/48,10.244.0.0/16",
                "fd00:96::/112,10.96.0.0/16",
                "--cluster-cidr fd00",
            ),
        ] {
            let refused = start(&*store, pods, services, NODE).await.unwrap_err();
            assert!(
                refused.contains(named) && refused.contains("this cluster has 10."),
                "{refused}"
            );
        }
        // As it was, in other words.
        assert_eq!(start(&*store, "10.244.7.7/16", "", "192.0.2.1").await.unwrap(), begun);
        let both = start(&*store, BOTH.0, BOTH.1, NODE).await.unwrap();
        assert_eq!(both.cluster_cidr, BOTH.0);
        let gone = start(&*store, &begun.cluster_cidr, &begun.service_cidr, NODE).await;
        assert!(gone.is_err(), "a family doesn't go");
        // Of several servers, too, though the others have stopped.
        let options = Options {
            cluster_cidr: Some(vec!["10.200.0.0/16".into()]),
            ..Options::default()
        };
        let of = |cluster: &Cluster| Settings {
            cluster: cluster.clone(),
            api_port: "6443".into(),
        };
        let other = of(&Cluster {
            cluster_cidr: "10.200.0.0/16".into(),
            ..begun
        });
        assert!(agree(&*store, "/registry", "10.0.0.1", &options, other).await.is_err());
        let agreed = agree(&*store, "/registry", "10.0.0.1", &Options::default(), of(&both)).await;
        assert_eq!(agreed.unwrap(), of(&both));
    }

    #[tokio::test]
    async fn who_is_told_no_ranges_goes_on_with_those_of_the_cluster() {
        // A machine that got IPv4 later.
        let store = Memory::new();
        let begun = start(&*store, "", "", "2001:db8::1").await.unwrap();
        assert_eq!(begun.cluster_cidr, "fd00:244::/48");
        assert_eq!(start(&*store, "", "", NODE).await.unwrap(), begun);
        assert_eq!(begun.cluster_dns, "fd00:96::a");

        // A store of an earlier version, or another server's.
        let map = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": cluster::NAME, "namespace": cluster::NAMESPACE},
            "data": {"cluster-cidr": "10.8.1.0/16", "service-cidr": "10.9.0.0/16"}});
        let range = serde_json::json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.9.0.0/16"]}});
        let message = |object: &Value, api_version: &str, kind: &str| {
            let object = keelson_api::Value::from_serialize(object).unwrap();
            let object = keelson_api::Object(object.as_object().unwrap().clone());
            proto::encode(&object, &builtin_kind_at(api_version, kind).unwrap()).unwrap()
        };
        let (map_at, range_at) = ("configmaps/kube-system/keelson-cluster", "servicecidrs/kubernetes");
        for (place, value, pods) in [
            (map_at, map.to_string().into_bytes(), "10.8.0.0/16"),
            (map_at, message(&map, "v1", "ConfigMap"), "10.8.0.0/16"),
            (
                range_at,
                message(&range, "networking.k8s.io/v1", "ServiceCIDR"),
                "10.244.0.0/16",
            ),
        ] {
            let store = Memory::new();
            let key = format!("/registry/{place}");
            store.put(key.into(), value.into(), Expect::Any, None).await.unwrap();
            let refused = start(&*store, "", "10.96.0.0/16", "192.0.2.1").await.unwrap_err();
            assert!(refused.contains("this cluster has 10.9.0.0/16"), "{refused}");
            let found = start(&*store, "", "", "192.0.2.1").await.unwrap();
            assert_eq!(
                (found.cluster_cidr.as_str(), found.service_cidr.as_str()),
                (pods, "10.9.0.0/16")
            );
        }
        // One that can't be read isn't none: its cluster has ranges, which somebody has to tell then.
        for (place, value) in [
            (map_at, &b"k8s:enc:x"[..]),
            (map_at, &b"k8s\0\xff"[..]),
            (map_at, &b"{"[..]),
            (range_at, &b"\0"[..]),
        ] {
            let store = Memory::new();
            let put = store.put(
                format!("/registry/{place}").into(),
                value.to_vec().into(),
                Expect::Any,
                None,
            );
            put.await.unwrap();
            for (pods, services) in [("", ""), ("10.8.0.0/16", ""), ("", "10.9.0.0/16")] {
                let refused = start(&*store, pods, services, "192.0.2.1").await.unwrap_err();
                assert!(
                    refused.contains(place) && refused.contains("--cluster-cidr"),
                    "{refused}"
                );
            }
            let told = start(&*store, "10.8.0.0/16", "10.9.0.0/16", "192.0.2.1").await.unwrap();
            assert_eq!(told.cluster_cidr, "10.8.0.0/16");
        }
    }
}
