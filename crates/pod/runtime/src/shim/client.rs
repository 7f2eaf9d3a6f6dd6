//! The server's side of a shim.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;

use keelson_sys::process;

use super::protocol::{self, ContainerState, Exec, Exited, Reply, Request, ShimConfig, Start};

#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The shim did what was asked and it did not work.
    #[error("{0}")]
    Refused(String),
    /// The shim cannot be reached.
    #[error("the shim does not answer: {0}")]
    Gone(#[source] io::Error),
}

impl From<io::Error> for ShimError {
    fn from(error: io::Error) -> Self {
        ShimError::Gone(error)
    }
}

type Result<T> = std::result::Result<T, ShimError>;

/// How long a shim may take to say that it ends.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// How long it may take to find out whether there are user namespaces.
const PROBING: Duration = Duration::from_secs(20);

/// A shim, known by its state directory.
#[derive(Clone, Debug)]
pub struct Shim {
    dir: PathBuf,
}

impl Shim {
    pub fn new(dir: PathBuf) -> Shim {
        Shim { dir }
    }

    /// Starts a shim and waits until it serves.
    pub async fn launch(dir: PathBuf, program: &Path, config: &ShimConfig) -> Result<Shim> {
        let bytes = serde_json::to_vec(config).map_err(io::Error::other)?;
        std::fs::write(dir.join(protocol::CONFIG), bytes)?;
        let output = tokio::process::Command::new(program)
            .arg("shim")
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .env_clear()
            // The allocator would ask for huge pages: megabytes for a process that needs kilobytes.
            .env("MIMALLOC_ALLOW_THP", "0")
            .output()
            .await?;
        if !output.status.success() {
            return Err(ShimError::Refused(
                String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            ));
        }
        Ok(Shim { dir })
    }

    /// Whether pods can have users of their own on this machine, or why not. `dir` is on the images' file system, and there
    /// for the moment only. An error is no answer: of the machine it says nothing.
    pub async fn user_namespaces(program: &Path, dir: &Path) -> io::Result<std::result::Result<(), String>> {
        let mut command = tokio::process::Command::new(program);
        command
            .arg("shim")
            .arg(super::PROBE)
            .arg(dir)
            .env_clear()
            .kill_on_drop(true);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let output = tokio::time::timeout(PROBING, command.output()).await;
        let output = output.map_err(|_| io::Error::other(format!("the kernel did not say so within {PROBING:?}")))?;
        let output = output.map_err(|e| io::Error::new(e.kind(), format!("cannot run {}: {e}", program.display())))?;
        match output.status.code() {
            Some(0) => Ok(Ok(())),
            Some(_) => Ok(Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
            // Somebody else ended it, who had no memory left perhaps.
            None => Err(io::Error::other(format!(
                "who asked the kernel was ended: {}",
                output.status
            ))),
        }
    }

    /// The path of one of the pod's namespaces: "net", "ipc", "uts", "pid" or "user".
    pub fn namespace(&self, name: &str) -> PathBuf {
        self.dir.join(super::namespaces::DIRECTORY).join(name)
    }

    /// How containers ended, as far as the shim has noted it.
    pub fn noted_exits(&self) -> io::Result<Vec<Exited>> {
        let entries = match std::fs::read_dir(self.dir.join(protocol::EXITS)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_none() {
                // One that cannot be read must not take the others with it.
                match std::fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)) {
                    Ok(exited) => found.push(exited),
                    Err(error) => tracing::warn!(path = %path.display(), %error, "a note of a shim cannot be read"),
                }
            }
        }
        Ok(found)
    }

    /// The containers now, and a stream of those that end. Shims of other versions are as good: see [`protocol`].
    pub async fn subscribe(&self) -> Result<(Vec<ContainerState>, Events)> {
        let mut connection = self.connect().await?;
        connection.send(&Request::Subscribe, &[]).await?;
        match connection.receive().await? {
            (
                Reply::State {
                    version, containers, ..
                },
                _,
            ) => {
                if version != protocol::VERSION {
                    tracing::info!(dir = %self.dir.display(), version, "a shim of another version");
                }
                Ok((containers, Events(connection)))
            }
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Whether the shim is proven to have ended. One that cannot be reached for another reason may be alive.
    pub async fn has_ended(&self) -> bool {
        match self.connect().await {
            // It listens from its first moment to its last.
            Err(ShimError::Gone(e)) if e.kind() == io::ErrorKind::ConnectionRefused => true,
            Err(ShimError::Gone(e)) if e.kind() == io::ErrorKind::NotFound => {
                running(&self.dir).is_ok_and(|pids| pids.is_empty())
            }
            _ => false,
        }
    }

    pub async fn start(&self, start: Start) -> Result<i32> {
        match self.call(&Request::Start(start), &[]).await? {
            (Reply::Started { pid }, _) => Ok(pid),
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Starts a process in a container. `streams`: stdin, stdout, stderr, unless it is to have a terminal.
    pub async fn exec(&self, exec: Exec, streams: &[OwnedFd]) -> Result<ExecSession> {
        let mut connection = self.connect().await?;
        connection.send(&Request::Exec(exec), streams).await?;
        match connection.receive().await? {
            (Reply::Started { .. }, mut descriptors) => Ok(ExecSession {
                connection,
                terminal: descriptors.pop(),
            }),
            (other, _) => Err(unexpected(other)),
        }
    }

    pub async fn signal(&self, container: &str, signal: i32, all: bool) -> Result<()> {
        self.simple(Request::Signal {
            container: container.to_owned(),
            signal,
            all,
        })
        .await
    }

    pub async fn reopen_log(&self, container: &str) -> Result<()> {
        self.simple(Request::ReopenLog {
            container: container.to_owned(),
        })
        .await
    }

    /// Copies output to the given descriptors from now on. Returns whether there is a terminal, and the input.
    pub async fn attach(
        &self,
        container: &str,
        stdin: bool,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> Result<(bool, Option<OwnedFd>)> {
        let request = Request::Attach {
            container: container.to_owned(),
            stdout: stdout.is_some(),
            stderr: stderr.is_some(),
            stdin,
        };
        let descriptors: Vec<OwnedFd> = stdout.into_iter().chain(stderr).collect();
        match self.call(&request, &descriptors).await? {
            (Reply::Attached { terminal }, mut descriptors) => Ok((terminal, descriptors.pop())),
            (other, _) => Err(unexpected(other)),
        }
    }

    pub async fn close_stdin(&self, container: &str) -> Result<()> {
        self.simple(Request::CloseStdin {
            container: container.to_owned(),
        })
        .await
    }

    pub async fn delete(&self, container: &str) -> Result<()> {
        self.simple(Request::Delete {
            container: container.to_owned(),
        })
        .await
    }

    /// Ends the shim and what runs under it. One that is gone is fine; one that does not answer is killed.
    pub async fn shutdown(&self) -> Result<()> {
        match tokio::time::timeout(SHUTDOWN, self.simple(Request::Shutdown)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(ShimError::Gone(_))) if self.has_ended().await => Ok(()),
            // It takes its socket away as the last thing it does, and is then given the moment it needs.
            Ok(Err(ShimError::Gone(e))) if e.kind() == io::ErrorKind::NotFound && self.goes().await => Ok(()),
            why => {
                tracing::warn!(dir = %self.dir.display(), ?why, "a shim that does not end by itself is killed");
                for pid in running(&self.dir)? {
                    match process::kill(pid, nix::libc::SIGKILL) {
                        Err(e) if e.raw_os_error() != Some(nix::libc::ESRCH) => return Err(e.into()),
                        _ => {}
                    }
                }
                Ok(())
            }
        }
    }

    /// Waits for the process to end, and not for ever.
    async fn goes(&self) -> bool {
        let ended = async {
            while !self.has_ended().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(SHUTDOWN, ended).await.is_ok()
    }

    async fn simple(&self, request: Request) -> Result<()> {
        match self.call(&request, &[]).await? {
            (Reply::Done, _) => Ok(()),
            (other, _) => Err(unexpected(other)),
        }
    }

    async fn call(&self, request: &Request, descriptors: &[OwnedFd]) -> Result<(Reply, Vec<OwnedFd>)> {
        let mut connection = self.connect().await?;
        connection.send(request, descriptors).await?;
        connection.receive().await
    }

    async fn connect(&self) -> Result<Connection> {
        // A socket's whole path may be too long for its address; by the directory's descriptor it never is.
        let dir = File::open(&self.dir)?;
        let path = format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), protocol::SOCKET);
        Ok(Connection {
            stream: UnixStream::connect(path).await?,
            input: Vec::new(),
            descriptors: Vec::new(),
        })
    }
}

/// Processes that were started as shims of a directory, or of directories in it.
pub fn running(dir: &Path) -> io::Result<Vec<i32>> {
    use std::os::unix::ffi::OsStrExt;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        // It may have ended since.
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let args: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        let below = |arg: &&[u8]| Path::new(std::ffi::OsStr::from_bytes(arg)).starts_with(dir);
        if args.get(1) == Some(&&b"shim"[..]) && args.get(2).is_some_and(below) {
            found.push(pid);
        }
    }
    Ok(found)
}

fn unexpected(reply: Reply) -> ShimError {
    match reply {
        Reply::Failed { error } => ShimError::Refused(error),
        other => ShimError::Refused(format!("it answered {other:?}")),
    }
}

/// Exits of containers, until the shim is gone.
pub struct Events(Connection);

impl Events {
    pub async fn next(&mut self) -> Result<Exited> {
        loop {
            if let (Reply::Exited(exited), _) = self.0.receive().await? {
                return Ok(exited);
            }
        }
    }
}

/// A process in a container.
pub struct ExecSession {
    connection: Connection,
    /// The master of its terminal.
    pub terminal: Option<OwnedFd>,
}

impl ExecSession {
    /// Waits for its exit code. Cancelling this loses nothing: it can be called again.
    pub async fn ended(&mut self) -> Result<i32> {
        match self.connection.receive().await? {
            (Reply::ExecEnded { code }, _) => Ok(code),
            (other, _) => Err(unexpected(other)),
        }
    }

    pub async fn kill(&mut self, signal: i32) -> Result<()> {
        self.connection.send(&Request::KillExec { signal }, &[]).await
    }
}

struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Connection {
    async fn send(&mut self, request: &Request, descriptors: &[OwnedFd]) -> Result<()> {
        let mut bytes = protocol::encode(request)?;
        let mut fds: Vec<RawFd> = descriptors.iter().map(|d| d.as_raw_fd()).collect();
        while !bytes.is_empty() {
            let sent = self
                .stream
                .async_io(Interest::WRITABLE, || {
                    process::send_with_fds(self.stream.as_fd(), &bytes, &fds)
                })
                .await?;
            fds.clear();
            bytes.drain(..sent);
        }
        Ok(())
    }

    async fn receive(&mut self) -> Result<(Reply, Vec<OwnedFd>)> {
        loop {
            if let Some(reply) = protocol::decode(&mut self.input)? {
                return Ok((reply, std::mem::take(&mut self.descriptors)));
            }
            let mut buffer = [0; 4096];
            let (read, descriptors) = self
                .stream
                .async_io(Interest::READABLE, || {
                    process::receive_with_fds(self.stream.as_fd(), &mut buffer)
                })
                .await?;
            if read == 0 {
                return Err(ShimError::Gone(io::ErrorKind::UnexpectedEof.into()));
            }
            self.input.extend_from_slice(&buffer[..read]);
            self.descriptors.extend(descriptors);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_is_ended_has_not_said_that_there_are_no_user_namespaces() {
        let dir = tempfile::tempdir().unwrap();
        let programs = [
            ("can", "exit 0"),
            ("cant", "echo too old >&2; exit 1"),
            ("ended", "kill -9 $$"),
        ];
        for (name, text) in programs {
            // Written by another process: one that this one has open for writing could not be run.
            let script = format!("printf '#!/bin/sh\\n%s\\n' \"$1\" > {name} && chmod 755 {name}");
            let mut shell = std::process::Command::new("sh");
            shell.current_dir(dir.path()).args(["-c", &script, "sh", text]);
            assert!(shell.status().unwrap().success());
        }
        let asked = async |name: &str| Shim::user_namespaces(&dir.path().join(name), dir.path()).await;
        assert_eq!(asked("can").await.unwrap(), Ok(()));
        assert_eq!(asked("cant").await.unwrap(), Err("too old".to_owned()));
        assert!(asked("ended").await.is_err());
        assert!(asked("none").await.is_err());
    }
}
