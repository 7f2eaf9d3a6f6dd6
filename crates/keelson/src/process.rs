//! What all that run long have in common as processes: log, lock, allocator, threads, signals.

use crate::lock::Lock;
use crate::logging;
use crate::supervise::Supervisor;
use anyhow::Context;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::pin::pin;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Threads: two suffice for a small node, and each costs memory.
const MOST_THREADS: usize = 4;
const STACK_BYTES: usize = 2 << 20;
/// What threads are in the middle of, when all else has stopped: an image that is unpacked is unpacked anew at the next start.
const LAST: Duration = Duration::from_secs(2);

/// So long after the start what only a start runs is let go.
const STARTED: Duration = Duration::from_secs(30);

/// Who has run for so long isn't begun anew in a row.
const CALM: Duration = Duration::from_secs(10 * 60);
/// From one beginning to the next.
const ANEW: &str = "KEELSON_BEGUN_ANEW";

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

    /// Stops what runs. Who is to begin anew is not to, if it is told to stop meanwhile.
    pub async fn unless_told(&mut self, ended: Ended, stop: impl Future<Output = ()>) -> Ended {
        tracing::info!("stopping; pods go on running");
        let mut stop = pin!(stop);
        if ended == Ended::Again {
            tokio::select! {
                () = &mut stop => return Ended::Again,
                () = self.wait() => {}
            }
        }
        crate::notify::stopping();
        stop.await;
        Ended::Stopped
    }
}

/// What a process logs, and in which form.
#[derive(Clone, Debug)]
pub struct Log {
    pub filter: String,
    pub form: logging::Form,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// For good.
    Stopped,
    /// To begin anew, by other facts.
    Again,
}

/// How many times in a row this program was begun anew soon after its start: whoever is about to ask for it again can be slower.
pub fn times_begun_anew() -> u32 {
    let told = std::env::var(ANEW).ok();
    told.and_then(|times| times.parse().ok()).unwrap_or(0)
}

/// Runs `work`, as the one process of the data directory if there is one. What is to begin anew is this program once more, in this
/// process: nothing of before is left in it but its number.
pub fn run(
    log: &Log,
    data_dir: Option<&Path>,
    work: impl AsyncFnOnce(Stopping) -> anyhow::Result<Ended>,
) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    match run_once(log, data_dir, work)? {
        Ended::Stopped => Ok(ExitCode::SUCCESS),
        Ended::Again => {
            let mut words = std::env::args_os();
            let name = words.next().unwrap_or_default();
            let mut next = Command::new("/proc/self/exe");
            next.arg0(name).args(words);
            let times = if began.elapsed() < CALM { times_begun_anew() } else { 0 };
            next.env(ANEW, times.saturating_add(1).to_string());
            keelson_sys::handed::pass_on(&mut next).context("sockets for this program, started anew")?;
            Err(next.exec()).context("this program can't be started anew")
        }
    }
}

fn run_once(
    log: &Log,
    data_dir: Option<&Path>,
    work: impl AsyncFnOnce(Stopping) -> anyhow::Result<Ended>,
) -> anyhow::Result<Ended> {
    logging::start(&log.filter, log.form)?;
    // Whoever judged the options may have needed it already; there is no other (ARCHITECTURE.md, "The build").
    let _already = rustls::crypto::ring::default_provider().install_default();
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
    runtime.spawn(async {
        tokio::time::sleep(STARTED).await;
        let_go();
    });
    let ended = runtime.block_on(async {
        let stopping = Stopping {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        };
        work(stopping).await
    });
    runtime.shutdown_timeout(LAST);
    ended
}

/// After work that the program seldom does: what only that needed of it needn't stay in memory.
pub fn let_go() {
    match keelson_sys::text::let_go() {
        Ok(bytes) => tracing::debug!(bytes, "what of the program is needed no more is let go"),
        Err(error) => tracing::debug!(%error, "the program stays in memory as a whole"),
    }
}

/// Runs what `start` starts until a signal, or until `changed`, and stops it then. A signal while it starts ends that.
pub async fn until_stopped<T>(
    mut stopping: Stopping,
    start: impl Future<Output = anyhow::Result<(Supervisor, T)>>,
    changed: impl AsyncFnOnce(T),
) -> anyhow::Result<Ended> {
    let began = Instant::now();
    let watched = crate::watchdog::wanted()?;
    let meanwhile = crate::watchdog::meanwhile(watched);
    let (started, told) = tokio::select! {
        started = start => started?,
        () = stopping.wait() => return Ok(Ended::Stopped),
    };
    tracing::info!(after = ?began.elapsed(), "all components are started");
    crate::notify::ready();
    let health = started.health();
    // Others wait for what isn't there, which no restart brings.
    let of_node = move || health.failing().into_iter().filter(|name| *name == "kubelet").collect();
    crate::watchdog::start(watched, of_node);
    drop(meanwhile);
    let ended = tokio::select! {
        () = stopping.wait() => Ended::Stopped,
        () = changed(told) => Ended::Again,
    };
    Ok(stopping.unless_told(ended, started.stop()).await)
}
