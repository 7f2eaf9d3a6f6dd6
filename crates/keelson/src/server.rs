//! `keelson server`: start by readiness, run until a signal, stop in reverse.

use crate::assemble::Cluster;
use crate::config::{Component, Config, Options};
use crate::lock::Lock;
use crate::{doctor, logging};
use anyhow::Context;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Threads of the server: two suffice for a small node, and each costs memory.
const MOST_THREADS: usize = 4;
const STACK_BYTES: usize = 2 << 20;

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let config = options.resolve()?;
    logging::start(&config.log, config.log_json)?;
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))?;
    let _lock = Lock::take(&config.data_dir)?;
    if config.runs(Component::Agent) {
        doctor::preflight(&config)?;
    }
    // Memory that nobody uses goes back also while nothing happens. Not in a shim: it has to have one thread.
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        tracing::warn!(%error, "the allocator gives memory back only while it is used");
    }
    let threads = std::thread::available_parallelism()
        .map_or(2, usize::from)
        .clamp(2, MOST_THREADS);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(64)
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(run(config))?;
    Ok(ExitCode::SUCCESS)
}

async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let began = std::time::Instant::now();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = config.node_name,
        address = %config.node_ip,
        data = %config.data_dir.display(),
        "starting"
    );
    let started = tokio::select! {
        started = Cluster::start(&config) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    tracing::info!(after = ?began.elapsed(), kubeconfig = %config.kubeconfig.display(), "all components are started");
    crate::notify::ready();
    let failure = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
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
