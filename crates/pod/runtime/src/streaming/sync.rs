//! ExecSync: a command with its output and exit code, as probes and hooks run them.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use keelson_cri::v1::ExecSyncResponse;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use crate::shim::protocol::Exec;
use crate::shim::{ExecSession, Shim, ShimError};

/// More output of a stream is dropped, as upstream's runtimes do.
const MAX_OUTPUT: usize = 16 << 20;
/// How long after the command's end somebody may still hold its output open.
const DRAIN: Duration = Duration::from_secs(10);

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
    // Given up with the call: what the command left behind may hold its output open for as long as it lives.
    let outputs = async move { tokio::join!(read(stdout), read(stderr)) };
    let mut outputs = AbortOnDropHandle::new(tokio::spawn(outputs));
    let code = match deadline {
        None => session.ended().await,
        Some(deadline) => match tokio::time::timeout_at(deadline, session.ended()).await {
            Ok(code) => code,
            Err(_) => return Err(timed_out(&mut session, timeout.unwrap_or_default()).await),
        },
    };
    let code = code.map_err(|e| Status::unknown(format!("failed to exec in container: {e}")))?;
    let drain = tokio::time::Instant::now() + DRAIN;
    let until = deadline.map_or(drain, |d| {
        d.max(tokio::time::Instant::now() + Duration::from_millis(100))
            .min(drain)
    });
    let (stdout, stderr) = match tokio::time::timeout_at(until, &mut outputs).await {
        Ok(outputs) => outputs.map_err(|e| Status::unknown(e.to_string()))?,
        Err(_) => {
            return Err(Status::deadline_exceeded(
                "the command ended, but its output is still held open",
            ));
        }
    };
    Ok(ExecSyncResponse {
        stdout: stdout.into(),
        stderr: stderr.into(),
        exit_code: code,
    })
}

async fn timed_out(session: &mut ExecSession, timeout: Duration) -> Status {
    if let Err(error) = session.kill(nix::libc::SIGKILL).await {
        return Status::unknown(format!("cannot kill the command after its timeout: {error}"));
    }
    let gone = tokio::time::timeout(DRAIN, session.ended()).await;
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

/// Everything up to the bound; the rest is read and dropped, so that the command is not held up.
async fn read(mut from: pipe::Receiver) -> Vec<u8> {
    let mut output = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return output,
            Ok(n) => output.extend_from_slice(&buffer[..n.min(MAX_OUTPUT - output.len())]),
        }
    }
}
