//! Extenders: HTTP servers that are asked beside the plug-ins, as upstream's `k8s.io/kube-scheduler/extender/v1` has it. They take
//! nodes away, prefer some, bind pods, and have a say in who goes for another.
//!
//! * [`Settings`]: one of `extenders` of a configuration. [`wire`]: the bodies. [`call`]: one request, its deadline and bounds.
//!   [`plan`]: a decision with them.
//!
//! They are asked in the order of the configuration, those that may fail (`ignorable`) last, and only about pods that use what they
//! manage. An error of one that may not fail is an error of the decision: the pod is tried again later. Prefering is never worth an
//! error.

mod call;
pub mod plan;
pub mod wire;

use crate::pod::PodInfo;
use anyhow::{Context, bail, ensure};
use call::Caller;
use k8s_openapi::api::core::v1::{Container, Node};
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use wire::{Args, BindingArgs, BindingResult, FilterResult, PreemptionArgs, PreemptionResult, Preferences, Victims};

/// What upstream calls whoever of them refused a node.
pub const NAME: &str = "Extender";
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct Settings {
    pub url: String,
    pub filter: String,
    pub prioritize: String,
    pub bind: String,
    pub preempt: String,
    pub weight: i64,
    pub tls: Tls,
    pub timeout: Duration,
    /// It knows the nodes: names do.
    pub knows_nodes: bool,
    /// The resources of pods that it is asked about; none: all pods.
    pub managed: Vec<String>,
    pub may_fail: bool,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Tls {
    pub insecure: bool,
    pub server_name: String,
    pub cert_file: String,
    pub key_file: String,
    pub ca_file: String,
    /// Base64, as in a kubeconfig.
    pub cert_data: String,
    pub key_data: Secret,
    pub ca_data: String,
}

/// A key: it is never told.
#[derive(Clone, Default, Deserialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

pub struct Extender {
    settings: Settings,
    caller: Caller,
}

impl Extender {
    pub async fn new(settings: Settings) -> anyhow::Result<Extender> {
        let caller = Caller::new(&settings).await;
        let caller = caller.with_context(|| format!("the extender {}", settings.url))?;
        Ok(Extender { settings, caller })
    }

    /// Those that may fail come last.
    pub async fn all(settings: &[Settings]) -> anyhow::Result<Arc<[Extender]>> {
        let (last, first): (Vec<&Settings>, Vec<&Settings>) = settings.iter().partition(|s| s.may_fail);
        let mut made = Vec::new();
        for settings in first.into_iter().chain(last) {
            made.push(Extender::new(settings.clone()).await?);
        }
        Ok(made.into())
    }

    pub fn name(&self) -> &str {
        &self.settings.url
    }
    pub fn may_fail(&self) -> bool {
        self.settings.may_fail
    }
    pub fn filters(&self) -> bool {
        !self.settings.filter.is_empty()
    }
    pub fn prefers(&self) -> bool {
        !self.settings.prioritize.is_empty()
    }
    pub fn binds(&self) -> bool {
        !self.settings.bind.is_empty()
    }
    pub fn preempts(&self) -> bool {
        !self.settings.preempt.is_empty()
    }

    /// Whether a container of the pod uses what it manages.
    pub fn cares_for(&self, pod: &PodInfo) -> bool {
        let managed = &self.settings.managed;
        let uses = |container: &Container| {
            let resources = container.resources.as_ref();
            let lists = resources.into_iter().flat_map(|r| r.requests.iter().chain(&r.limits));
            lists.flat_map(BTreeMap::keys).any(|name| managed.contains(name))
        };
        let spec = pod.pod.spec.as_ref();
        managed.is_empty()
            || spec.is_some_and(|s| s.containers.iter().chain(s.init_containers.iter().flatten()).any(uses))
    }

    fn args<'a>(&self, pod: &'a PodInfo, nodes: &[&'a Node]) -> Args<'a> {
        match self.settings.knows_nodes {
            true => Args::names(&pod.pod, nodes),
            false => Args::nodes(&pod.pod, nodes),
        }
    }

    /// Which of the nodes will do, by their places among those given; and why others won't.
    pub async fn filter(&self, pod: &PodInfo, nodes: &[&Node]) -> anyhow::Result<(Vec<usize>, FilterResult)> {
        let result: FilterResult = self.send(&self.settings.filter, &self.args(pod, nodes)).await?;
        if !result.error.is_empty() {
            bail!("{}", result.error);
        }
        let given = nodes
            .iter()
            .enumerate()
            .filter_map(|(at, node)| Some((node.metadata.name.as_deref()?, at)));
        let places: BTreeMap<&str, usize> = given.collect();
        let left = result.left(self.settings.knows_nodes);
        let place = |name: &String| {
            let url = &self.settings.url;
            places.get(name.as_str()).copied().with_context(|| {
                format!("extender {url:?} claims a filtered node {name:?} which is not found in the input node list")
            })
        };
        // Each counts once, however often it is named.
        let left = left.iter().map(place).collect::<anyhow::Result<BTreeSet<_>>>()?;
        Ok((left.into_iter().collect(), result))
    }

    /// What it gives to each node, weighed, on the plug-ins' scale.
    pub async fn preferences(&self, pod: &PodInfo, nodes: &[&Node]) -> anyhow::Result<BTreeMap<String, i64>> {
        let Preferences(given) = self.send(&self.settings.prioritize, &self.args(pod, nodes)).await?;
        let scale = crate::framework::MAX_SCORE / wire::MAX_PREFERENCE;
        let weight = self.settings.weight.saturating_mul(scale);
        let weighed = |(host, score): (String, i64)| (host, score.saturating_mul(weight));
        Ok(given.into_iter().map(weighed).collect())
    }

    pub async fn bind(&self, pod: &PodInfo, node: &str) -> anyhow::Result<()> {
        let result: BindingResult = self.send(&self.settings.bind, &BindingArgs::new(pod, node)).await?;
        ensure!(result.error.is_empty(), "{}", result.error);
        Ok(())
    }

    /// Who would have to go on which node, by its say: uids, and how many budgets that violates.
    pub async fn preempt(
        &self,
        pod: &PodInfo,
        victims: &BTreeMap<String, Victims>,
    ) -> anyhow::Result<PreemptionResult> {
        let args = PreemptionArgs::new(&pod.pod, victims, self.settings.knows_nodes);
        self.send(&self.settings.preempt, &args).await
    }

    async fn send<T: DeserializeOwned>(&self, verb: &str, args: &impl Serialize) -> anyhow::Result<T> {
        self.caller.send(verb, args).await
    }
}
