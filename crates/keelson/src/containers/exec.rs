//! `keelson exec`: a command in a container, with the caller's input, output and terminal.

use super::Reach;
use super::node::Node;
use super::select::{self, Instance, Wanted};
use super::terminal::{self, Ends, Raw};
use crate::client::block_on;
use crate::history::plain::UNREAD;
use anyhow::{Context, anyhow};
use bytes::Bytes;
use clap::Args;
use keelson_cri::CriClients;
use keelson_cri::v1::ExecRequest;
use keelson_kubelet::rpc_text;
use keelson_runtime::streams::{self, Incoming, Sender, Streams};
use std::io::ErrorKind;
use std::process::ExitCode;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

#[derive(Args)]
pub struct Options {
    /// Pass this program's input on
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// The pod's namespace [default: any]
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    wanted: Wanted,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub const AFTER_HELP: &str = "\
The exit code is the command's. Nobody is asked for leave: whoever reaches the runtime's socket is root on this node anyway.
  keelson exec -it shop/web-0 -- sh
  keelson exec 3f1c2a -- cat /etc/hosts";

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    block_on(async {
        let cri = options.reach.connect().await?;
        let node = Node::read(&cri).await?;
        let meant = options.wanted.meant(options.namespace.as_deref())?;
        let container = select::one(&node, &meant, Instance::Running)?;
        let tty = options.tty && has_terminal(options.stdin);
        let streams = begin(&cri, &container.id, options.command, options.stdin, tty).await?;
        run(streams, tty && options.stdin).await
    })
}

/// A terminal whose keys come from somewhere else would wait for answers that never come.
fn has_terminal(stdin: bool) -> bool {
    if stdin && !terminal::is_interactive() {
        eprintln!("keelson: no terminal for the command: the input isn't one");
        return false;
    }
    true
}

async fn begin(
    cri: &CriClients,
    container: &str,
    command: Vec<String>,
    stdin: bool,
    tty: bool,
) -> anyhow::Result<Streams> {
    let request = ExecRequest {
        container_id: container.to_string(),
        cmd: command,
        tty,
        stdin,
        stdout: true,
        stderr: !tty,
    };
    let answer = cri.runtime.clone().exec(request).await;
    let answer = answer.map_err(|error| anyhow!(rpc_text(&error)))?;
    streams::open(&answer.into_inner().url, stdin, tty).await
}

async fn run(mut streams: Streams, raw: bool) -> anyhow::Result<ExitCode> {
    let held = match raw {
        true => Some((Raw::enter().context("this terminal")?, Ends::new()?)),
        false => None,
    };
    if let Some(resize) = streams.resize.take() {
        tokio::spawn(sizes(resize));
    }
    if let Some(stdin) = streams.stdin.take() {
        tokio::spawn(feed(terminal::input(), stdin));
    }
    let (stdout, stderr) = (streams.stdout.take(), streams.stderr.take());
    let command = async {
        // All at once: what the command wrote has come when its end is told, and the connection goes with that.
        let done = tokio::try_join!(
            show(stdout, tokio::io::stdout()),
            show(stderr, tokio::io::stderr()),
            streams.ended(),
        );
        match done {
            Ok(((), (), code)) => Ok(code),
            Err(error) if is_unread(&error) => Ok(UNREAD.into()),
            Err(error) => Err(error),
        }
    };
    let Some((_raw, mut ends)) = held else {
        return Ok(code(command.await?));
    };
    tokio::select! {
        ended = command => Ok(code(ended?)),
        came = ends.come() => Ok(ExitCode::from(came)),
    }
}

/// As a shell has it: the lowest eight bits.
fn code(code: i32) -> ExitCode {
    ExitCode::from((code & 0xff) as u8)
}

async fn feed(mut from: mpsc::Receiver<Bytes>, to: Sender) {
    while let Some(piece) = from.recv().await {
        if to.send(piece).await.is_err() {
            return;
        }
    }
    to.end().await;
}

/// Nobody reads the output any more.
fn is_unread(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<std::io::Error>();
    cause.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// Until the stream ends.
async fn show(stream: Option<Incoming>, mut to: impl AsyncWrite + Unpin) -> anyhow::Result<()> {
    let Some(mut stream) = stream else { return Ok(()) };
    while let Some(piece) = stream.recv().await {
        to.write_all(&piece).await?;
        to.flush().await?;
    }
    Ok(())
}

/// The terminal's size, now and whenever it changes.
async fn sizes(to: Sender) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else {
        return;
    };
    loop {
        if let Some((columns, rows)) = terminal::size()
            && to.send(streams::size(columns, rows)).await.is_err()
        {
            return;
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}
