//! ExecSync: a command with its output and exit code, as probes and hooks run them.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use keelson_cri::v1::ExecSyncResponse;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use crate::shim::protocol::Exec;
use crate::shim::{ExecSession, Shim, ShimError};

/// More output of a stream is dropped, as upstream's runtimes do.
const MAX_OUTPUT: usize = 16 << 20;
/// How long after the command's end its output is waited for. What it wrote itself is there by then; children that
/// hold it open may live for ever, and are not what the call is about.
const DRAIN: Duration = Duration::from_millis(500);
/// How long after SIGKILL the command's end is waited for.
const KILLED: Duration = Duration::from_secs(1);

pub async fn exec_sync(
    shim: &Shim,
    container: &str,
    args: Vec<String>,
    timeout: Option<Duration>,
) -> Result<ExecSyncResponse, Status> {
    if args.is_empty() {
        return Err(Status::invalid_argument("no command specified"));
    }
    let failed = |e: std::io::Error| Status::unknown(e.to_string());
    let (stdout_end, stdout) = pipe::pipe().map_err(failed)?;
    let (stderr_end, stderr) = pipe::pipe().map_err(failed)?;
    let (stdout_end, stderr_end): (OwnedFd, OwnedFd) = (
        stdout_end.into_blocking_fd().map_err(failed)?,
        stderr_end.into_blocking_fd().map_err(failed)?,
    );
    let stdin: OwnedFd = File::open("/dev/null").map_err(failed)?.into();
    let exec = Exec {
        container: container.to_owned(),
        args,
        terminal: false,
    };
    let mut session = {
        let streams = [stdin, stdout_end, stderr_end];
        shim.exec(exec, &streams).await.map_err(exec_error)?
    };
    let deadline = timeout.map(|t| tokio::time::Instant::now() + t);
    let (stdout, stderr) = (Output::read(stdout), Output::read(stderr));
    let code = match deadline {
        None => session.ended().await,
        Some(deadline) => match tokio::time::timeout_at(deadline, session.ended()).await {
            Ok(code) => code,
            Err(_) => return Err(timed_out(&mut session, timeout.unwrap_or_default()).await),
        },
    };
    let code = code.map_err(|e| Status::unknown(format!("failed to exec in container: {e}")))?;
    let drained = tokio::time::Instant::now() + DRAIN;
    Ok(ExecSyncResponse {
        stdout: stdout.until(drained).await.into(),
        stderr: stderr.until(drained).await.into(),
        exit_code: code,
    })
}

async fn timed_out(session: &mut ExecSession, timeout: Duration) -> Status {
    if let Err(error) = session.kill(nix::libc::SIGKILL).await {
        return Status::unknown(format!("cannot kill the command after its timeout: {error}"));
    }
    let gone = tokio::time::timeout(KILLED, session.ended()).await;
    if gone.is_err() {
        tracing::warn!("a command outlives SIGKILL");
    }
    Status::deadline_exceeded(format!(
        "failed to exec in container: timeout {timeout:?} exceeded: context deadline exceeded"
    ))
}

pub fn exec_error(error: ShimError) -> Status {
    match error {
        ShimError::Refused(why) => Status::unknown(format!(
            "failed to exec in container: failed to start exec: OCI runtime exec failed: exec failed: unable to start \
             container process: {why}"
        )),
        gone => Status::unavailable(gone.to_string()),
    }
}

/// A stream's output as far as it has come. Reading ends with the call: what the command left behind may hold it open
/// for as long as it lives.
struct Output {
    come: Arc<Mutex<Vec<u8>>>,
    last: CancellationToken,
    reading: AbortOnDropHandle<()>,
}

/// What is read of a pipe that somebody still writes to, when its time is over: what it can hold at most.
const LEFT: usize = 1 << 20;

impl Output {
    /// Everything up to the bound; the rest is read and dropped, so that the command is not held up.
    fn read(mut from: pipe::Receiver) -> Output {
        let come = Arc::new(Mutex::new(Vec::new()));
        let to = come.clone();
        let last = CancellationToken::new();
        let over = last.clone();
        let reading = tokio::spawn(async move {
            let mut buffer = vec![0; 16 << 10];
            let keep = |bytes: &[u8]| {
                let mut to = to.lock();
                let room = MAX_OUTPUT - to.len();
                to.extend_from_slice(&bytes[..bytes.len().min(room)]);
            };
            loop {
                tokio::select! {
                    read = from.read(&mut buffer) => match read {
                        Ok(n @ 1..) => keep(&buffer[..n]),
                        _ => return,
                    },
                    () = over.cancelled() => break,
                }
            }
            // What the command wrote before it ended is in the pipe, however late this task comes to it.
            let mut left = LEFT;
            while let Ok(n @ 1..) = from.try_read(&mut buffer) {
                keep(&buffer[..n]);
                left = left.saturating_sub(n);
                if left == 0 {
                    return;
                }
            }
        });
        Output {
            last,
            come,
            reading: AbortOnDropHandle::new(reading),
        }
    }

    async fn until(self, instant: tokio::time::Instant) -> Vec<u8> {
        let mut reading = self.reading;
        if tokio::time::timeout_at(instant, &mut reading).await.is_err() {
            self.last.cancel();
            if let Err(panic) = reading.await {
                tracing::error!("reading a command's output ended early: {panic}");
            }
        }
        std::mem::take(&mut *self.come.lock())
    }
}
