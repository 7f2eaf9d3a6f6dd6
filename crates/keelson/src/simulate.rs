//! `keelson simulate`: the command around [`keelson_simulate`].

use crate::client::kubeconfig;
use crate::components::LogOptions;
use crate::process::{self, Ended};
use crate::wait::duration;
use anyhow::{Context, bail, ensure};
use clap::Args;
use keelson_api::quantity::Quantity;
use keelson_client::Rest;
use keelson_simulate::fleet::Progress;
use keelson_simulate::stages::Stage;
use keelson_simulate::stages::spec::LARGEST;
use keelson_simulate::{Manner, Plan, Size};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub const AFTER_HELP: &str = "\
Annotations of pods (simulate.keelson.dev/…) say what their containers do:
  start-seconds, run-seconds, exit-code, stop-seconds    how long they take and how they end
  ready-seconds, failing-probes                          when readiness probes pass; kinds of probes that fail
  sandbox-error, pull-error                              why the pod doesn't start
Annotations of nodes: down, not-ready (\"true\").
Without annotations `sleep N`, `exit N`, `true` and `false` of a container's command are understood; all else runs for ever.";

#[derive(Args)]
pub struct Options {
    /// How many nodes
    #[arg(long, value_name = "N")]
    nodes: usize,
    /// Kubeconfig of the cluster [default: $KUBECONFIG, or /var/lib/keelson/admin.kubeconfig]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context [default: its current one]
    #[arg(long)]
    context: Option<String>,
    /// Nodes are called by this and their number
    #[arg(long, default_value = "hollow-", value_name = "TEXT")]
    name_prefix: String,
    /// CPUs of each node
    #[arg(long, default_value = "32", value_name = "N")]
    cpu: i64,
    /// Memory of each node
    #[arg(long, default_value = "256Gi", value_name = "QUANTITY")]
    memory: String,
    /// How many pods a node takes
    #[arg(long, default_value = "110", value_name = "N")]
    pods: u32,
    /// Labels of the nodes
    #[arg(long, value_name = "KEY=VALUE,…", value_delimiter = ',')]
    labels: Vec<String>,
    /// Taints of the nodes; may be given several times
    #[arg(long, value_name = "KEY=VALUE:EFFECT,…", value_delimiter = ',')]
    taints: Vec<String>,
    /// How long it takes to start a pod: a time, or a range of times
    #[arg(long, default_value = "0s", value_name = "TIME[..TIME]")]
    delay: String,
    /// How long containers of Jobs run whose pods and commands say nothing of it; none: for ever
    #[arg(long, value_name = "TIME", value_parser = duration)]
    job_time: Option<Duration>,
    /// How long a node's silence may last; it is heard four times as often
    #[arg(long, default_value = "40s", value_name = "TIME", value_parser = duration)]
    lease_duration: Duration,
    /// How many nodes start in a second
    #[arg(long, default_value = "100", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    starts: u32,
    /// How many requests there are at a time, watches aside
    #[arg(long, default_value = "64", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    requests: u16,
    /// Delete the nodes when the command ends; else they stay, and fall silent
    #[arg(long)]
    delete_nodes_on_exit: bool,
    /// Nodes without kubelets, played by KWOK's Stage objects of these YAML files, or of the cluster: api
    #[arg(long, value_name = "FILE|api")]
    stages: Vec<PathBuf>,
    #[command(flatten)]
    log: LogOptions,
}

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

impl Options {
    fn plan(&self) -> anyhow::Result<Plan> {
        let memory = Quantity::parse(&self.memory).ok().map(|q| q.value());
        let memory = memory.and_then(|bytes| u64::try_from(bytes).ok());
        let memory = memory.with_context(|| format!("--memory {}: no amount of memory", self.memory))?;
        ensure!(
            self.cpu > 0 && memory > 0 && self.pods > 0,
            "a node without anything takes no pods"
        );
        ensure!(
            self.lease_duration >= Duration::from_secs(4) && self.lease_duration.subsec_nanos() == 0,
            "--lease-duration has to be whole seconds, at least 4"
        );
        let seconds = self.lease_duration.as_secs();
        ensure!(
            i32::try_from(seconds).is_ok(),
            "--lease-duration: no lease says {seconds} seconds"
        );
        ensure!(
            self.stages.is_empty() || self.delay == "0s" && self.job_time.is_none(),
            "--delay and --job-time are for kubelets: with --stages the stages say how long things take"
        );
        let (start, start_most) = match self.delay.split_once("..") {
            Some((least, most)) => (duration(least), duration(most)),
            None => (duration(&self.delay), duration(&self.delay)),
        };
        let wrong = |e: String| anyhow::anyhow!("--delay {}: {e}", self.delay);
        let (start, start_most) = (start.map_err(wrong)?, start_most.map_err(wrong)?);
        // The kubelet gives a sandbox no more.
        ensure!(
            start <= start_most && start_most <= Duration::from_secs(200),
            "--delay {}: from the lesser to the greater time, at most 200s",
            self.delay
        );
        Ok(Plan {
            nodes: self.nodes,
            prefix: self.name_prefix.clone(),
            size: Size {
                cpus: self.cpu,
                memory,
                pods: self.pods,
            },
            labels: self.labels.iter().map(|l| label(l)).collect::<anyhow::Result<_>>()?,
            taints: self.taints.iter().map(|t| taint(t)).collect::<anyhow::Result<_>>()?,
            manner: Manner {
                start,
                start_most,
                job: self.job_time,
                takes_ranges: true,
            },
            lease: self.lease_duration,
            requests: self.requests.into(),
            starts: self.starts,
            delete: self.delete_nodes_on_exit,
            stages: None,
        })
    }
}

fn label(text: &str) -> anyhow::Result<(String, String)> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let (key, value) = pair.with_context(|| format!("--labels {text}: not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

fn taint(text: &str) -> anyhow::Result<String> {
    let parts = text.rsplit_once(':');
    let good = parts.is_some_and(|(pair, effect)| !pair.is_empty() && EFFECTS.contains(&effect));
    ensure!(
        good,
        "--taints {text}: not KEY=VALUE:EFFECT, with an effect of {}",
        EFFECTS.join(", ")
    );
    Ok(text.to_owned())
}

/// Where the cluster keeps stages.
const STAGES: &str = "/apis/kwok.x-k8s.io/v1alpha1/stages";

async fn stages(places: &[PathBuf], client: &kube::Client) -> anyhow::Result<Option<Vec<Stage>>> {
    let mut all = Vec::new();
    for place in places {
        let text = if place.as_os_str() == "api" {
            let rest = Rest::new(client.clone(), "keelson-simulate");
            let list = rest.get(STAGES, keelson_client::rest::JSON).await;
            let list = list.context("reading the cluster's stages (is KWOK's definition of them there?)")?;
            String::from_utf8_lossy(&list).into_owned()
        } else {
            let size = std::fs::metadata(place)
                .with_context(|| place.display().to_string())?
                .len();
            ensure!(size <= LARGEST, "{} is larger than {LARGEST} bytes", place.display());
            std::fs::read_to_string(place).with_context(|| place.display().to_string())?
        };
        let read = keelson_simulate::stages::read(&text);
        all.extend(read.map_err(|e| anyhow::anyhow!("--stages {}: {e}", place.display()))?);
    }
    Ok((!places.is_empty()).then_some(all))
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let mut plan = options.plan()?;
    let path = kubeconfig(options.kubeconfig.clone());
    process::run(&options.log.resolve()?, None, async |mut stopping| {
        let client = keelson_client::from_kubeconfig(&path, options.context.as_deref()).await?;
        plan.stages = tokio::select! {
            read = stages(&options.stages, &client) => read?,
            () = stopping.wait() => return Ok(Ended::Stopped),
        };
        let stop = CancellationToken::new();
        let mut last = usize::MAX;
        let tell = |p: Progress| {
            if p.ready != std::mem::replace(&mut last, p.ready) {
                println!("{} of {} nodes are ready after {:.1?}", p.ready, p.of, p.since);
            }
        };
        let mut running = std::pin::pin!(keelson_simulate::run(client, plan, tell, stop.clone()));
        tokio::select! {
            ended = &mut running => ended?,
            () = stopping.wait() => {
                tracing::info!("stopping");
                stop.cancel();
                tokio::select! {
                    ended = &mut running => ended?,
                    () = stopping.wait() => bail!("told twice to stop: nodes may be left as they are"),
                }
            }
        }
        Ok(Ended::Stopped)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::collections::BTreeMap;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        options: Options,
    }

    fn plan(words: &[&str]) -> Result<Plan, String> {
        let words = ["simulate", "--nodes", "3"].iter().chain(words).copied();
        let options = Words::try_parse_from(words).map_err(|e| e.to_string())?.options;
        options.plan().map_err(|e| e.to_string())
    }

    #[test]
    fn options_become_a_plan() {
        let plan = plan(&[
            "--memory",
            "4Gi",
            "--labels",
            "a=b,c=",
            "--taints",
            "x=y:NoSchedule,z:NoExecute",
            "--delay",
            "1s..2500ms",
        ]);
        let plan = plan.unwrap();
        assert_eq!((plan.size.cpus, plan.size.memory, plan.size.pods), (32, 4 << 30, 110));
        assert_eq!(
            plan.labels,
            BTreeMap::from([("a".into(), "b".into()), ("c".into(), String::new())])
        );
        assert_eq!(plan.taints, ["x=y:NoSchedule", "z:NoExecute"]);
        assert_eq!(plan.manner.start_most, Duration::from_millis(2500));
    }

    #[test]
    fn what_makes_no_node_is_refused() {
        for (words, why) in [
            (["--memory", "much"], "no amount"),
            (["--cpu", "0"], "takes no pods"),
            (["--labels", "a"], "KEY=VALUE"),
            (["--taints", "a:Never"], "NoSchedule"),
            (["--delay", "2s..1s"], "from the lesser"),
            (["--lease-duration", "1s"], "at least 4"),
            (["--requests", "0"], "1..=1024"),
            (["--lease-duration", "1000000h"], "no lease"),
            (["--job-time", "99999999999999999999h"], "invalid duration"),
        ] {
            let error = plan(&words).unwrap_err();
            assert!(error.contains(why), "{words:?}: {error}");
        }
    }
}
