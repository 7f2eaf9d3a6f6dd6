//! `keelson server`: start by readiness, run until a signal, stop in reverse.

use crate::assemble::Cluster;
use crate::config::{Component, Config, Options};
use crate::follow::{self, Standing};
use crate::process::{Ended, Stopping};
use crate::{doctor, process};
use std::process::ExitCode;

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let options = options.read_file()?;
    let config = options.clone().resolve()?;
    process::run(&config.log, Some(&config.data_dir), async |stopping| {
        run(options, &config, stopping).await
    })
}

async fn run(options: Options, config: &Config, mut stopping: Stopping) -> anyhow::Result<Ended> {
    if config.runs(Component::Agent) {
        doctor::preflight(config)?;
    }
    let began = std::time::Instant::now();
    let watched = crate::watchdog::wanted()?;
    let meanwhile = crate::watchdog::meanwhile(watched);
    tracing::info!(
        version = crate::version::VERSION,
        node = config.node_name,
        address = %config.node_ip(),
        data = %config.data_dir.display(),
        "starting"
    );
    let started = tokio::select! {
        started = Cluster::start(options.clone(), config) => started?,
        () = stopping.wait() => {
            crate::etcd::program::end(&config.data_dir).await?;
            return Ok(Ended::Stopped);
        }
    };
    tracing::info!(after = ?began.elapsed(), kubeconfig = %config.kubeconfig.display(), "all components are started");
    crate::notify::ready();
    // What fails in here is started again in here; that nothing is done any more is what the manager has to see.
    crate::watchdog::start(watched, Vec::new);
    drop(meanwhile);
    let changed = async {
        // What the node's address is to others is in the membership of that etcd, and has to be changed there.
        if started.is_member() {
            return std::future::pending().await;
        }
        let began = Standing::of(&started.config).await;
        follow::changed(began, || options.clone().resolve_as(&started.config)).await;
    };
    let ended = tokio::select! {
        () = stopping.wait() => Ok(Ended::Stopped),
        failure = started.failed() => Err(failure),
        () = changed => Ok(Ended::Again),
    };
    match ended {
        Ok(ended) => Ok(stopping.unless_told(ended, started.stop()).await),
        Err(failure) => {
            stopping.unless_told(Ended::Stopped, started.stop()).await;
            Err(failure)
        }
    }
}
