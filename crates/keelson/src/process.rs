//! What a server and an agent have in common as processes: log, lock, allocator, threads, signals.

use crate::config::Config;
use crate::lock::Lock;
use crate::logging;
use anyhow::Context;
use std::process::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Threads: two suffice for a small node, and each costs memory.
const MOST_THREADS: usize = 4;
const STACK_BYTES: usize = 2 << 20;

/// The signals that ask a process to stop.
pub struct Stopping {
    terminate: Signal,
    interrupt: Signal,
}

impl Stopping {
    pub async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Runs `work` as the one process of the data directory.
pub fn run(config: &Config, work: impl AsyncFnOnce(Stopping) -> anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    logging::start(&config.log, config.log_json)?;
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))?;
    // A connection is a file. Containers have limits of their own, whatever these are.
    let files = keelson_sys::process::raise_file_limit()?;
    tracing::debug!(files, "files that may be open");
    let _lock = Lock::take(&config.data_dir)?;
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
        .block_on(async {
            let stopping = Stopping {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            };
            work(stopping).await
        })?;
    Ok(ExitCode::SUCCESS)
}
