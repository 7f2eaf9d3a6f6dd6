//! Exec and attach: a client's streams joined to those of a process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keelson_cri::v1::{AttachRequest, ExecRequest};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde_json::json;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

use super::channel::{Incoming, Sender, Streams};
use crate::runtime::Inner;
use crate::shim::Shim;
use crate::shim::protocol::Exec;

/// How long after the command's end somebody may still hold its output open.
const DRAIN: Duration = Duration::from_secs(5);

/// How long after the end of a client's input its attachment goes on, if the container's input stays open.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Runs a command, and tells how it ended.
pub async fn exec(runtime: &Arc<Inner>, request: ExecRequest, streams: Streams) {
    let shim = match shim_of(runtime, &request.container_id) {
        Ok(shim) => shim,
        Err(error) => {
            return streams
                .tell_failure("error executing command in container", &error)
                .await;
        }
    };
    let (error, json_status) = (streams.error.clone(), streams.json_status);
    let outputs = streams.outputs();
    let args = request.cmd.clone();
    let result = if request.tty {
        exec_terminal(&shim, request, streams).await
    } else {
        exec_pipes(&shim, request, streams).await
    };
    let end = End { error, json_status };
    match result {
        Ok(0) => end.success().await,
        Ok(code) => end.exit_code(&args, code).await,
        Err(why) => {
            end_all(outputs).await;
            end.failure("error executing command in container", &why).await;
        }
    }
}

/// Joins a running container.
pub async fn attach(runtime: &Arc<Inner>, request: AttachRequest, streams: Streams) {
    let (error, json_status) = (streams.error.clone(), streams.json_status);
    let outputs = streams.outputs();
    let end = End { error, json_status };
    let attached = attach_streams(runtime, request, streams).await;
    end_all(outputs).await;
    match attached {
        Ok(()) => end.success().await,
        Err(why) => end.failure("error attaching to container", &why).await,
    }
}

fn shim_of(runtime: &Arc<Inner>, container: &str) -> Result<Shim, String> {
    let container = runtime
        .container(container)
        .ok_or_else(|| format!("container \"{container}\" not found"))?;
    let sandbox = runtime.sandbox(&container.sandbox).ok_or("its sandbox is gone")?;
    Ok(sandbox.shim.clone())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

async fn exec_pipes(shim: &Shim, request: ExecRequest, streams: Streams) -> Result<i32, String> {
    let (stdin, input): (OwnedFd, Option<pipe::Sender>) = match streams.stdin {
        Some(_) => {
            let (ours, theirs) = pipe::pipe().map_err(text)?;
            (theirs.into_blocking_fd().map_err(text)?, Some(ours))
        }
        None => (File::open("/dev/null").map_err(text)?.into(), None),
    };
    let (stdout_end, stdout) = pipe::pipe().map_err(text)?;
    let (stderr_end, stderr) = pipe::pipe().map_err(text)?;
    let descriptors = [
        stdin,
        stdout_end.into_blocking_fd().map_err(text)?,
        stderr_end.into_blocking_fd().map_err(text)?,
    ];
    let exec = Exec {
        container: request.container_id,
        args: request.cmd,
        terminal: false,
    };
    let mut session = shim.exec(exec, &descriptors).await.map_err(text)?;
    drop(descriptors);
    let feeding = tokio::spawn(feed(streams.stdin, input));
    let outputs = tokio::spawn(async move {
        tokio::join!(copy_out(stdout, streams.stdout), copy_out(stderr, streams.stderr));
    });
    let code = session.ended().await.map_err(text);
    feeding.abort();
    drain(outputs).await;
    code
}

async fn exec_terminal(shim: &Shim, request: ExecRequest, streams: Streams) -> Result<i32, String> {
    let exec = Exec {
        container: request.container_id,
        args: request.cmd,
        terminal: true,
    };
    let mut session = shim.exec(exec, &[]).await.map_err(text)?;
    let terminal = session.terminal.take().ok_or("the command got no terminal")?;
    let terminal = Arc::new(Terminal::new(terminal).map_err(text)?);
    let feeding = tokio::spawn(feed_terminal(terminal.clone(), streams.stdin));
    let resizing = tokio::spawn(resize(terminal.clone(), streams.resize));
    let output = tokio::spawn(async move { terminal.copy_out(streams.stdout).await });
    let code = session.ended().await.map_err(text);
    feeding.abort();
    drain(output).await;
    resizing.abort();
    code
}

async fn attach_streams(runtime: &Arc<Inner>, request: AttachRequest, streams: Streams) -> Result<(), String> {
    let id = &request.container_id;
    let container = runtime
        .container(id)
        .ok_or_else(|| format!("container \"{id}\" not found"))?;
    let shim = shim_of(runtime, id)?;
    let (tty, stdin_once) = {
        let record = container.record.lock();
        (record.config.tty, record.config.stdin_once)
    };
    let mut ends = Vec::new();
    let mut output = |wanted: bool| -> Result<Option<pipe::Receiver>, String> {
        if !wanted {
            return Ok(None);
        }
        let (end, output) = pipe::pipe().map_err(text)?;
        ends.push(end.into_blocking_fd().map_err(text)?);
        Ok(Some(output))
    };
    let stdout = output(streams.stdout.is_some())?;
    let stderr = output(streams.stderr.is_some() && !tty)?;
    let mut ends = ends.into_iter();
    let stdout_end = stdout.as_ref().and_then(|_| ends.next());
    let stderr_end = stderr.as_ref().and_then(|_| ends.next());
    let (_, input) = shim
        .attach(id, streams.stdin.is_some(), stdout_end, stderr_end)
        .await
        .map_err(text)?;
    let mut tasks = Vec::new();
    let has_stdin = streams.stdin.is_some();
    // Whoever attached to write, and has written all, leaves, unless the container's input ends with his.
    let (leaving, left) = tokio::sync::oneshot::channel::<()>();
    if tty {
        if let Some(master) = input {
            let terminal = Arc::new(Terminal::new(master).map_err(text)?);
            let (feeding, stdin) = (terminal.clone(), streams.stdin);
            tasks.push(tokio::spawn(async move {
                feed_terminal(feeding, stdin).await;
                drop(leaving);
            }));
            tasks.push(tokio::spawn(resize(terminal, streams.resize)));
        }
    } else if let Some(mut stdin) = streams.stdin {
        let input = input.map(pipe_sender).transpose().map_err(text)?;
        let (shim, id) = (shim.clone(), id.clone());
        tasks.push(tokio::spawn(async move {
            if let Some(mut input) = input {
                copy_in(&mut stdin, &mut input).await;
            }
            if !stdin_once {
                drop(leaving);
                return;
            }
            if let Err(error) = shim.close_stdin(&id).await {
                tracing::debug!(container = id, %error, "standard input not closed");
            }
            // Held until the attachment ends.
            std::future::pending::<()>().await;
            drop(leaving);
        }));
    }
    let outputs = async {
        tokio::join!(
            async {
                if let Some(from) = stdout {
                    copy_out(from, streams.stdout).await;
                }
            },
            async {
                if let Some(from) = stderr {
                    copy_out(from, streams.stderr).await;
                }
            }
        );
    };
    // The output ends with the container, or with the client.
    let error = streams.error;
    let detached = async {
        if !has_stdin || left.await.is_ok() {
            std::future::pending::<()>().await;
        }
        // What answers the last of the input is likely on its way.
        tokio::time::sleep(LAST_WORDS).await;
    };
    tokio::select! {
        () = async { tokio::join!(outputs, container.ended()); } => {}
        () = detached => {}
        () = error.gone() => {}
    }
    tasks.iter().for_each(|t| t.abort());
    Ok(())
}

async fn drain(mut outputs: tokio::task::JoinHandle<()>) {
    if tokio::time::timeout(DRAIN, &mut outputs).await.is_err() {
        outputs.abort();
    }
}

async fn feed(stdin: Option<Incoming>, input: Option<pipe::Sender>) {
    if let (Some(mut stdin), Some(mut input)) = (stdin, input) {
        copy_in(&mut stdin, &mut input).await;
    }
}

/// Until the client's end of the stream, or the process's.
async fn copy_in(from: &mut Incoming, to: &mut pipe::Sender) {
    use tokio::io::AsyncWriteExt;
    while let Some(data) = from.recv().await {
        if to.write_all(&data).await.is_err() {
            return;
        }
    }
}

/// Until the end of the output. A client that is gone stops it, so that the process gets SIGPIPE.
async fn copy_out(mut from: pipe::Receiver, to: Option<Sender>) {
    use tokio::io::AsyncReadExt;
    let mut buffer = vec![0; 32 << 10];
    loop {
        let read = match &to {
            Some(to) => tokio::select! {
                read = from.read(&mut buffer) => read,
                () = to.gone() => return,
            },
            None => from.read(&mut buffer).await,
        };
        match (read, &to) {
            (Ok(0) | Err(_), _) => break,
            (Ok(n), Some(to)) => {
                if to.send(Bytes::copy_from_slice(&buffer[..n])).await.is_err() {
                    return;
                }
            }
            (Ok(_), None) => {}
        }
    }
    if let Some(to) = to {
        to.end().await;
    }
}

fn pipe_sender(fd: OwnedFd) -> io::Result<pipe::Sender> {
    nonblocking(&fd)?;
    pipe::Sender::from_owned_fd_unchecked(fd)
}

fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// The master of a terminal.
struct Terminal(AsyncFd<File>);

impl Terminal {
    // Deprecated for types whose descriptor may change; a file's does not, and the replacement is `unsafe`.
    #[expect(deprecated)]
    fn new(master: OwnedFd) -> io::Result<Terminal> {
        nonblocking(&master)?;
        Ok(Terminal(AsyncFd::new(File::from(master))?))
    }

    async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        use std::io::Write;
        while !data.is_empty() {
            let n = self.0.async_io(Interest::WRITABLE, |mut file| file.write(data)).await?;
            data = &data[n..];
        }
        Ok(())
    }

    /// Until nobody has the terminal open any more (the kernel says EIO), or the client is gone.
    async fn copy_out(&self, to: Option<Sender>) {
        use std::io::Read;
        let mut buffer = vec![0; 32 << 10];
        loop {
            let reading = self.0.async_io(Interest::READABLE, |mut file| file.read(&mut buffer));
            let read = match &to {
                Some(to) => tokio::select! {
                    read = reading => read,
                    () = to.gone() => return,
                },
                None => reading.await,
            };
            match (read, &to) {
                (Ok(0) | Err(_), _) => break,
                (Ok(n), Some(to)) => {
                    if to.send(Bytes::copy_from_slice(&buffer[..n])).await.is_err() {
                        return;
                    }
                }
                (Ok(_), None) => {}
            }
        }
        if let Some(to) = to {
            to.end().await;
        }
    }
}

async fn feed_terminal(terminal: Arc<Terminal>, stdin: Option<Incoming>) {
    let Some(mut stdin) = stdin else { return };
    while let Some(data) = stdin.recv().await {
        if terminal.write_all(&data).await.is_err() {
            return;
        }
    }
}

/// Messages such as `{"Width":80,"Height":24}`; a stream cuts them as it likes.
async fn resize(terminal: Arc<Terminal>, sizes: Option<Incoming>) {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Size {
        width: u16,
        height: u16,
    }
    const MAX_SIZE: usize = 1024;
    let Some(mut sizes) = sizes else { return };
    let mut buffer = Vec::new();
    while let Some(data) = sizes.recv().await {
        buffer.extend_from_slice(&data);
        let mut parsed = serde_json::Deserializer::from_slice(&buffer).into_iter::<Size>();
        let mut last = None;
        while let Some(Ok(size)) = parsed.next() {
            last = Some(size);
        }
        let used = parsed.byte_offset();
        buffer.drain(..used);
        if buffer.len() > MAX_SIZE {
            return;
        }
        if let Some(size) = last
            && let Err(error) = keelson_sys::tty::resize(terminal.0.as_fd(), size.width, size.height)
        {
            tracing::debug!(%error, fd = terminal.0.as_raw_fd(), "terminal not resized");
        }
    }
}

/// Tells a client how it ended.
struct End {
    error: Sender,
    json_status: bool,
}

/// What ends before its outputs did ends them: over SPDY a client waits for that before it looks at how it went.
async fn end_all(outputs: [Option<Sender>; 2]) {
    for output in outputs.into_iter().flatten() {
        output.end().await;
    }
}

impl Streams {
    fn outputs(&self) -> [Option<Sender>; 2] {
        [self.stdout.clone(), self.stderr.clone()]
    }

    pub async fn tell_failure(self, context: &str, why: &str) {
        end_all(self.outputs()).await;
        End {
            error: self.error,
            json_status: self.json_status,
        }
        .failure(context, why)
        .await;
    }
}

impl End {
    async fn success(self) {
        let status = json!({"metadata": {}, "status": "Success"});
        self.tell(self.json_status.then(|| status.to_string())).await;
    }

    async fn exit_code(self, args: &[String], code: i32) {
        let message = format!(
            "command terminated with non-zero exit code: error executing command [{}], exit code {code}",
            args.join(" ")
        );
        let status = json!({
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        });
        self.tell(Some(if self.json_status { status.to_string() } else { message }))
            .await;
    }

    async fn failure(self, context: &str, why: &str) {
        let cause = format!("{context}: {why}");
        let message = format!("Internal error occurred: {cause}");
        let status = json!({
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": "InternalError",
            "details": {"causes": [{"message": cause}]},
            "code": 500,
        });
        self.tell(Some(if self.json_status { status.to_string() } else { message }))
            .await;
    }

    async fn tell(&self, what: Option<String>) {
        if let Some(what) = what {
            // A client that is gone does not want to know.
            let _ = self.error.send(what).await;
        }
        self.error.end().await;
    }
}
