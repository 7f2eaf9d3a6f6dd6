//! The scheduler.

use super::front::{Front, secure};
use super::reach::Reach;
use super::upstream::{Others, Scheduler};
use super::{Elect, Gates, LogOptions};
use crate::supervise::Supervisor;
use crate::{config, traces};
use anyhow::Context;
use clap::Args;
use keelson_scheduler::Config;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Upstream's.
const PORT: u16 = 10259;

pub fn spawn(components: &mut Supervisor, client: kube::Client, settings: Config) {
    components.spawn("scheduler", move |stop| {
        keelson_scheduler::run(client.clone(), settings.clone(), stop)
    });
}

/// What a `KubeSchedulerConfiguration` says, or what stands without one.
pub fn settings(file: Option<&Path>) -> anyhow::Result<Config> {
    Ok(match config::read_file(file)? {
        Some(content) => keelson_scheduler::configuration::read(content)?,
        None => Config::default(),
    })
}

#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    reach: Reach,
    /// YAML file that says how pods are scheduled: KubeSchedulerConfiguration, kubescheduler.config.k8s.io/v1
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// YAML file that says where traces are sent, and how many (TracingConfiguration)
    #[arg(long, value_name = "FILE")]
    tracing_config_file: Option<PathBuf>,
    #[command(flatten)]
    elect: Elect,
    #[command(flatten)]
    secure: secure::Options,
    #[command(flatten)]
    _others: Others<Scheduler>,
    #[command(flatten)]
    _gates: Gates,
    #[command(flatten)]
    log: LogOptions,
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let settings = Config {
        leader_election: options.elect.candidate("kube-scheduler")?,
        ..settings(options.config.as_deref()).context("--config")?
    };
    let tracing = traces::settings(options.tracing_config_file.as_deref())?;
    super::run(&options.log, None, async || {
        let client = options.reach.client().await?;
        let mut components = Supervisor::default();
        let telling = options.reach.telling().await?;
        let front = Front::whole(components.health(), &telling.measures).with_pages("kube-scheduler");
        let secure = &options.secure;
        secure
            .start(&mut components, &options.reach.kubeconfig, PORT, front)
            .await?;
        let tracer = traces::tracer(&mut components, tracing.as_ref(), "scheduler", &config::host_name()?)?;
        let settings = Config {
            telling,
            tracer,
            ..settings
        };
        spawn(&mut components, client, settings);
        Ok(components)
    })
}
