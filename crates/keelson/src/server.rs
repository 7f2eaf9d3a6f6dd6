//! `keelson server`: start by readiness, run until a signal, stop in reverse.

use crate::assemble::Cluster;
use crate::config::{Component, Config, Options};
use crate::process::Stopping;
use crate::{doctor, process};
use std::process::ExitCode;

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let options = options.read_file()?;
    let config = options.clone().resolve()?;
    process::run(&config.log, Some(&config.data_dir), async |stopping| {
        run(options, &config, stopping).await
    })
}

async fn run(options: Options, config: &Config, mut stopping: Stopping) -> anyhow::Result<()> {
    if config.runs(Component::Agent) {
        doctor::preflight(config)?;
    }
    let began = std::time::Instant::now();
    tracing::info!(
        version = crate::version::VERSION,
        node = config.node_name,
        address = %config.node_ip(),
        data = %config.data_dir.display(),
        "starting"
    );
    let started = tokio::select! {
        started = Cluster::start(options, config) => started?,
        () = stopping.wait() => return crate::etcd::program::end(&config.data_dir).await,
    };
    tracing::info!(after = ?began.elapsed(), kubeconfig = %config.kubeconfig.display(), "all components are started");
    crate::notify::ready();
    let failure = tokio::select! {
        () = stopping.wait() => None,
        failure = started.failed() => Some(failure),
    };
    tracing::info!("stopping; pods go on running");
    crate::notify::stopping();
    started.stop().await;
    match failure {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
