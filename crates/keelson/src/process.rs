//! What all that run long have in common as processes: log, lock, allocator, threads, signals.

use crate::lock::Lock;
use crate::logging;
use crate::supervise::Supervisor;
use anyhow::Context;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Threads: two suffice for a small node, and each costs memory.
const MOST_THREADS: usize = 4;
const STACK_BYTES: usize = 2 << 20;
/// What threads are in the middle of, when all else has stopped: an image that is unpacked is unpacked anew at the next start.
const LAST: Duration = Duration::from_secs(2);

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

/// What a process logs, and in which form.
#[derive(Clone, Debug)]
pub struct Log {
    pub filter: String,
    pub json: bool,
}

/// Runs `work`, as the one process of the data directory if there is one.
pub fn run(
    log: &Log,
    data_dir: Option<&Path>,
    work: impl AsyncFnOnce(Stopping) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    logging::start(&log.filter, log.json)?;
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))?;
    // A connection is a file. Containers have limits of their own, whatever these are.
    let files = keelson_sys::process::raise_file_limit()?;
    tracing::debug!(files, "files that may be open");
    let _lock = data_dir.map(Lock::take).transpose()?;
    // Memory that nobody uses goes back also while nothing happens. Not in a shim: it has to have one thread.
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        tracing::warn!(%error, "the allocator gives memory back only while it is used");
    }
    let threads = std::thread::available_parallelism()
        .map_or(2, usize::from)
        .clamp(2, MOST_THREADS);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(64)
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let ended = runtime.block_on(async {
        let stopping = Stopping {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        };
        work(stopping).await
    });
    runtime.shutdown_timeout(LAST);
    ended.map(|()| ExitCode::SUCCESS)
}

/// Runs what `start` starts until a signal, and stops it then. A signal while it starts ends that.
pub async fn until_stopped(
    mut stopping: Stopping,
    start: impl Future<Output = anyhow::Result<Supervisor>>,
) -> anyhow::Result<()> {
    let began = std::time::Instant::now();
    let started = tokio::select! {
        started = start => started?,
        () = stopping.wait() => return Ok(()),
    };
    tracing::info!(after = ?began.elapsed(), "all components are started");
    crate::notify::ready();
    stopping.wait().await;
    tracing::info!("stopping; pods go on running");
    crate::notify::stopping();
    started.stop().await;
    Ok(())
}
