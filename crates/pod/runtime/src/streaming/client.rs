//! A command's streams, from the side of whoever runs it in a container: over SPDY, which every runtime serves, and which can say that the
//! input has ended.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

pub use super::channel::{Incoming, Sender};
use super::spdy::client::{self, Connection};

const PROTOCOL: &str = "v4.channel.k8s.io";
const VERSION: &str = "x-stream-protocol-version";
/// How long the runtime may take to let this side in.
const PATIENCE: Duration = Duration::from_secs(30);
/// Of an answer that refuses, and of what tells how the command ended.
const MAX_TOLD: usize = 64 << 10;

/// The streams of a command that runs. What isn't taken is dropped when it comes; the command is left alone when this is dropped.
pub struct Streams {
    pub stdin: Option<Sender>,
    pub stdout: Option<Incoming>,
    /// None with a terminal: it has one output.
    pub stderr: Option<Incoming>,
    /// Where a terminal's size goes; see [`size`].
    pub resize: Option<Sender>,
    error: Incoming,
    _connection: Connection,
}

/// Takes up what a runtime serves at `url` after a call of `Exec` with its output wanted, and its errors unless there is a terminal.
pub async fn open(url: &str, stdin: bool, tty: bool) -> anyhow::Result<Streams> {
    let io = timeout(PATIENCE, connect(url)).await;
    let io = io.with_context(|| format!("the runtime's streams at {url} don't open within {PATIENCE:?}"))??;
    let wanted = [
        ("error", true),
        ("stdin", stdin),
        ("stdout", true),
        ("stderr", !tty),
        ("resize", tty),
    ];
    let kinds: Vec<&'static str> = wanted
        .iter()
        .filter(|(_, wanted)| *wanted)
        .map(|(kind, _)| *kind)
        .collect();
    let (streams, connection) = client::open(io, &kinds).await;
    let (mut input, mut sizes) = (None, None);
    let (mut error, mut output, mut errors) = (None, None, None);
    for (kind, stream) in kinds.into_iter().zip(streams) {
        match kind {
            "stdin" => input = Some(stream.sender),
            "resize" => sizes = Some(stream.sender),
            "stdout" => output = Some(stream.receiver),
            "stderr" => errors = Some(stream.receiver),
            _ => error = Some(stream.receiver),
        }
    }
    Ok(Streams {
        stdin: input,
        stdout: output,
        stderr: errors,
        resize: sizes,
        error: error.context("no stream for how the command ends")?,
        _connection: connection,
    })
}

async fn connect(url: &str) -> anyhow::Result<TokioIo<hyper::upgrade::Upgraded>> {
    let uri: Uri = url
        .parse()
        .with_context(|| format!("{url:?} is where the runtime serves streams, it says"))?;
    ensure!(
        uri.scheme_str() == Some("http"),
        "the runtime serves its streams at {url}; only plain http is spoken here: its TLS for streams has to be off"
    );
    let host = uri.host().with_context(|| format!("{url} names no host"))?;
    let address = (host.trim_matches(['[', ']']), uri.port_u16().unwrap_or(80));
    let socket = TcpStream::connect(address).await;
    let socket = socket.with_context(|| format!("the runtime's streams at {url} can't be reached"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "the connection to the runtime's streams ended");
        }
    });
    let request = Request::post(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(
            HOST,
            uri.authority().map_or("localhost", |authority| authority.as_str()),
        )
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, super::negotiate::SPDY)
        .header(VERSION, PROTOCOL)
        .body(Empty::<Bytes>::new())?;
    let mut response = sender.send_request(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = response.status();
        let told = Limited::new(response.into_body(), MAX_TOLD).collect().await;
        let told = told.map(|body| body.to_bytes()).unwrap_or_default();
        bail!(
            "the runtime refuses the streams: {status}: {}",
            String::from_utf8_lossy(&told).trim()
        );
    }
    let agreed = response
        .headers()
        .get(VERSION)
        .and_then(|version| version.to_str().ok());
    ensure!(
        agreed == Some(PROTOCOL),
        "the runtime speaks version {:?} of the protocol for commands, and not {PROTOCOL}",
        agreed.unwrap_or("1")
    );
    Ok(TokioIo::new(hyper::upgrade::on(&mut response).await?))
}

impl Streams {
    /// The command's exit code, once it has ended. What it wrote has come by then, and outputs end after it even where the runtime doesn't say
    /// that they do.
    pub async fn ended(mut self) -> anyhow::Result<i32> {
        let mut told = Vec::new();
        while let Some(piece) = self.error.recv().await {
            ensure!(
                told.len() + piece.len() <= MAX_TOLD,
                "the runtime tells too much of the command's end"
            );
            told.extend_from_slice(&piece);
        }
        exit_code(&told)
    }
}

/// How a terminal's new size is said.
pub fn size(columns: u16, rows: u16) -> Bytes {
    format!("{{\"Width\":{columns},\"Height\":{rows}}}\n").into()
}

fn exit_code(told: &[u8]) -> anyhow::Result<i32> {
    #[derive(Deserialize)]
    struct Status {
        status: String,
        #[serde(default)]
        reason: String,
        #[serde(default)]
        message: String,
        #[serde(default)]
        details: Details,
    }
    #[derive(Default, Deserialize)]
    struct Details {
        #[serde(default)]
        causes: Vec<Cause>,
    }
    #[derive(Deserialize)]
    struct Cause {
        #[serde(default)]
        reason: String,
        #[serde(default)]
        message: String,
    }
    ensure!(
        !told.is_empty(),
        "the connection to the runtime ended before the command did"
    );
    let status: Status = serde_json::from_slice(told)
        .with_context(|| format!("how the command ended: {:?}", String::from_utf8_lossy(told)))?;
    if status.status == "Success" {
        return Ok(0);
    }
    let cause = status.details.causes.iter().find(|cause| cause.reason == "ExitCode");
    let code = cause.and_then(|cause| cause.message.parse().ok());
    match code.filter(|_| status.reason == "NonZeroExitCode") {
        Some(code) => Ok(code),
        None => bail!("{}", status.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_command_ended_is_a_code_or_a_reason() {
        let of = |told: &str| exit_code(told.as_bytes());
        assert_eq!(of(r#"{"metadata":{},"status":"Success"}"#).unwrap(), 0);
        let failed = r#"{"metadata":{},"status":"Failure","message":"command terminated","reason":"NonZeroExitCode",
            "details":{"causes":[{"reason":"ExitCode","message":"137"}]}}"#;
        assert_eq!(of(failed).unwrap(), 137);
        let refused =
            r#"{"metadata":{},"status":"Failure","message":"no such file","reason":"InternalError","code":500}"#;
        assert_eq!(of(refused).unwrap_err().to_string(), "no such file");
        assert!(of("").unwrap_err().to_string().contains("before the command did"));
        assert!(of("oh").is_err());
    }

    #[tokio::test]
    async fn streams_are_asked_for_over_plain_http_only() {
        let refused = open("https://127.0.0.1:1/exec/x", false, false).await.err().unwrap();
        assert!(refused.to_string().contains("TLS"), "{refused}");
    }
}
