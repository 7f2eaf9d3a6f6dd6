//! The pod network by CNI plug-ins: [`config`] says which, [`call`] what each is told, [`invoke`] runs it, [`result`] reads what
//! it answers. As containerd and libcni do it, CNI 0.1.0 to 1.1.0.
//!
//! A record on disk a sandbox, written before the first plug-in is asked: what was made is taken back by the configuration that it
//! was made with, whatever stands in the directory by then. This program makes nothing of its own in a pod's namespace but
//! the loopback, and has no rules for pods' links: they are the plug-ins' matter, as are network policies.

mod call;
mod config;
mod invoke;
mod result;

use crate::{Config, PodNetwork, PodNetworkRequest, PodNetworkResult, link, neighbours, ports, routed, sysctl};
use anyhow::{Context, bail};
use async_trait::async_trait;
use call::{Attachment, LINK, Verb};
use config::Network;
use futures::{StreamExt, stream};
use ipnet::IpNet;
use keelson_sys::nft::{self, Family};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the cluster's own runtime says while there is no configuration, as containerd does.
const NOT_THERE: &str = "cni plugin not initialized";

/// How long the start of the runtime waits for checks, of all pods together: they mend nothing.
const CHECKED: Duration = Duration::from_secs(30);

/// Pods that have gone while nobody looked, of which so many are taken back at a time: a plug-in that hangs delays few others.
const AT_ONCE: usize = 8;

/// Where plug-ins and their configuration are.
#[derive(Clone, Debug)]
pub struct Directories {
    pub configurations: PathBuf,
    pub programs: PathBuf,
}

impl Default for Directories {
    fn default() -> Directories {
        Directories {
            configurations: "/etc/cni/net.d".into(),
            programs: "/opt/cni/bin".into(),
        }
    }
}

pub struct Plugins {
    config: Config,
    directories: Directories,
    records: PathBuf,
    ranges: Mutex<Vec<IpNet>>,
}

/// What a sandbox was given, and by what.
#[derive(serde::Serialize, serde::Deserialize)]
struct Record {
    network: Network,
    attachment: Attachment,
    /// Which namespace it was: the path may lead to another one by then.
    namespace: (u64, u64),
    /// `None`: it is being made, or that failed half way.
    result: Option<Value>,
}

impl Plugins {
    /// Has the host forward, as services need it, and takes away the rules that the built-in network had here.
    pub fn new(config: Config, directories: Directories) -> anyhow::Result<Plugins> {
        let records = config.state_dir.join("cni");
        fs::create_dir_all(&records).with_context(|| format!("cannot create {}", records.display()))?;
        neighbours::remove()?;
        for family in [Family::Ip, Family::Ip6] {
            nft::remove(family, ports::TABLE)?;
        }
        for range in &config.cluster_cidrs {
            sysctl::switch_forwarding_on(&config.state_dir, Family::of(range.addr()))?;
        }
        let known = fs::read_to_string(config.state_dir.join("pod-cidr")).unwrap_or_default();
        let ranges = match config.pod_cidrs.as_slice() {
            [] => routed::ranges(&known).unwrap_or_default(),
            given => given.to_vec(),
        };
        Ok(Plugins {
            config,
            directories,
            records,
            ranges: Mutex::new(ranges),
        })
    }

    /// Whether plug-ins made the network of pods whose records are in this directory.
    pub fn were_used(state_dir: &Path) -> bool {
        fs::read_dir(state_dir.join("cni")).is_ok_and(|mut records| records.next().is_some())
    }

    fn path(&self, sandbox: &str) -> PathBuf {
        self.records.join(sandbox)
    }

    fn record(&self, sandbox: &str) -> anyhow::Result<Option<Record>> {
        match fs::read(self.path(sandbox)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            read => {
                let text = read.with_context(|| format!("the network's record of {sandbox}"))?;
                Ok(Some(
                    serde_json::from_slice(&text).with_context(|| format!("the network's record of {sandbox}"))?,
                ))
            }
        }
    }

    /// Whole or not at all.
    fn save(&self, record: &Record) -> anyhow::Result<()> {
        let path = self.path(&record.attachment.sandbox);
        let beside = path.with_extension("new");
        let written = || -> anyhow::Result<()> {
            let mut file = fs::File::create(&beside)?;
            file.write_all(&serde_json::to_vec(record)?)?;
            file.sync_all()?;
            Ok(fs::rename(&beside, &path)?)
        };
        written().with_context(|| format!("remembering the network of {}", record.attachment.sandbox))
    }

    fn sandboxes(&self) -> anyhow::Result<Vec<String>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.records)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !name.ends_with(".new") {
                all.push(name);
            }
        }
        Ok(all)
    }

    fn load(&self) -> anyhow::Result<Option<Network>> {
        config::load(&self.directories.configurations)
    }

    async fn ask(
        &self,
        verb: Verb,
        network: &Network,
        plugin: &Map<String, Value>,
        attachment: Option<&Attachment>,
        before: Option<&Value>,
        more: Option<(&str, Value)>,
    ) -> anyhow::Result<Vec<u8>> {
        let none = Map::new();
        let capabilities = attachment.map_or(&none, |a| &a.capabilities);
        let mut told = call::configuration(network, plugin, capabilities, before);
        told.extend(more.map(|(name, value)| (name.to_owned(), value)));
        let programs = &self.directories.programs;
        let environment = call::environment(verb, attachment, &programs.to_string_lossy());
        let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
        let answer = invoke::invoke(programs, kind, told, environment).await;
        answer.with_context(|| format!("plugin type={kind:?} failed ({})", verb.word().to_lowercase()))
    }

    /// One plug-in after the other, each told what the ones before it made.
    async fn attach(&self, network: &Network, attachment: &Attachment) -> anyhow::Result<Value> {
        let mut result = None;
        for plugin in &network.plugins {
            let answer = self
                .ask(Verb::Add, network, plugin, Some(attachment), result.as_ref(), None)
                .await?;
            let answer: Value = serde_json::from_slice(&answer).context("a plug-in's result is no JSON")?;
            result = Some(answer);
        }
        result.context("no plug-in was asked")
    }

    /// In the reverse order. A record goes when all of them are done.
    async fn detach(&self, record: &Record) -> anyhow::Result<()> {
        let before = record
            .result
            .as_ref()
            .filter(|_| record.network.is_at_least(config::CHECKS));
        let mut attachment = record.attachment.clone();
        let there = match namespace(Path::new(&attachment.netns)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("whether {} is still there", attachment.netns));
            }
            found => found.is_ok_and(|found| found == record.namespace),
        };
        if !there {
            // With the namespace its links have gone. Plug-ins take back what is outside of it.
            attachment.netns.clear();
        }
        for plugin in record.network.plugins.iter().rev() {
            let pod = Some(&attachment);
            self.ask(Verb::Del, &record.network, plugin, pod, before, None).await?;
        }
        match fs::remove_file(self.path(&record.attachment.sandbox)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn check(&self, record: &Record) -> anyhow::Result<()> {
        let Some(result) = &record.result else { return Ok(()) };
        let (network, attachment) = (&record.network, &record.attachment);
        if network.disable_check || !network.is_at_least(config::CHECKS) {
            return Ok(());
        }
        for plugin in &network.plugins {
            self.ask(Verb::Check, network, plugin, Some(attachment), Some(result), None)
                .await?;
        }
        Ok(())
    }

    /// Tells which aren't as they were made.
    async fn check_all(&self, sandboxes: &[String]) {
        for sandbox in sandboxes {
            let checked = match self.record(sandbox) {
                Ok(Some(record)) => self.check(&record).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = checked {
                tracing::warn!(
                    sandbox,
                    error = format!("{error:#}"),
                    "a pod's network isn't as it was made"
                );
            }
        }
    }

    /// Plug-ins give up what belongs to none of these.
    async fn collect(&self, live: &[String]) -> anyhow::Result<()> {
        let Some(network) = self
            .load()?
            .filter(|n| !n.disable_gc && n.is_at_least(config::COLLECTS))
        else {
            return Ok(());
        };
        let valid: Value = live
            .iter()
            .map(|id| json!({"containerID": id, "ifname": LINK}))
            .collect();
        let mut failed = Ok(());
        for plugin in &network.plugins {
            let valid = Some(("cni.dev/valid-attachments", valid.clone()));
            let done = self.ask(Verb::Gc, &network, plugin, None, None, valid).await;
            failed = failed.and(done.map(drop));
        }
        failed
    }

    async fn status(&self) -> anyhow::Result<()> {
        let Some(network) = self.load()? else { bail!(NOT_THERE) };
        if network.is_at_least(config::COLLECTS) {
            for plugin in &network.plugins {
                self.ask(Verb::Status, &network, plugin, None, None, None).await?;
            }
        }
        Ok(())
    }

    /// The pod's addresses, those of the cluster's primary family first.
    fn given(&self, result: &Value) -> anyhow::Result<PodNetworkResult> {
        let mut ips = result::addresses(result);
        if ips.is_empty() {
            bail!("the plug-ins gave the pod no address");
        }
        let four = self
            .config
            .cluster_cidrs
            .first()
            .is_none_or(|range| range.addr().is_ipv4());
        ips.sort_by_key(|ip: &IpAddr| ip.is_ipv4() != four);
        Ok(PodNetworkResult { ips, gateway: None })
    }
}

fn namespace(path: &Path) -> std::io::Result<(u64, u64)> {
    let found = fs::metadata(path)?;
    Ok((found.dev(), found.ino()))
}

#[async_trait]
impl PodNetwork for Plugins {
    async fn setup(&self, request: &PodNetworkRequest) -> anyhow::Result<PodNetworkResult> {
        let attachment = Attachment::of(request, &self.ranges.lock());
        if let Some(record) = self.record(&request.sandbox_id)? {
            match &record.result {
                Some(result) if record.attachment.netns == attachment.netns => return self.given(result),
                // What has been begun is not added to.
                _ => self.detach(&record).await?,
            }
        }
        let network = self.load()?.context(NOT_THERE)?;
        link::in_namespace(request.netns.clone(), |handle| async move {
            link::loopback_up(&handle).await
        })
        .await?;
        let mut record = Record {
            network,
            attachment,
            namespace: namespace(&request.netns).context("the pod's network namespace is gone")?,
            result: None,
        };
        self.save(&record)?;
        let result = self.attach(&record.network, &record.attachment).await?;
        let given = self.given(&result);
        record.result = Some(result);
        self.save(&record)?;
        given
    }

    async fn teardown(&self, sandbox_id: &str) -> anyhow::Result<()> {
        match self.record(sandbox_id)? {
            Some(record) => self.detach(&record).await,
            None => Ok(()),
        }
    }

    async fn gc(&self, live_sandboxes: &[String]) -> anyhow::Result<()> {
        let all = self.sandboxes()?.into_iter();
        let (live, gone): (Vec<String>, Vec<String>) = all.partition(|sandbox| live_sandboxes.contains(sandbox));
        let ends: Vec<_> = gone.iter().map(|sandbox| self.teardown(sandbox)).collect();
        let ends: Vec<anyhow::Result<()>> = stream::iter(ends).buffer_unordered(AT_ONCE).collect().await;
        if tokio::time::timeout(CHECKED, self.check_all(&live)).await.is_err() {
            tracing::warn!("not all pods' networks are checked after {CHECKED:?}: nobody waits longer for that");
        }
        let failed: anyhow::Result<()> = ends.into_iter().collect();
        failed.and(self.collect(live_sandboxes).await)
    }

    async fn set_pod_cidr(&self, cidr: &str) -> anyhow::Result<()> {
        let ranges = routed::ranges(cidr)?;
        fs::write(self.config.state_dir.join("pod-cidr"), cidr)?;
        *self.ranges.lock() = ranges;
        Ok(())
    }

    async fn ready(&self) -> Result<(), String> {
        let status = self.status().await;
        status.map_err(|error| format!("Network plugin returns error: {error:#}"))
    }
}
