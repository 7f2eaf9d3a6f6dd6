//! Which protocol a client and this server have in common, and the streams it yields.

use std::time::Duration;

use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderName, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::channel::{Incoming, Sender, Streams};
use super::websocket::{self, Encoding};
use super::{Answer, datagrams, spdy};

pub const SPDY: &str = "SPDY/3.1";
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// Of commands over SPDY, the best first.
const COMMAND_SPDY: [&str; 4] = [
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];
const COMMAND_WEBSOCKET: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];
const FORWARD_SPDY: [&str; 1] = ["portforward.k8s.io"];
const FORWARD_TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const FORWARD_WEBSOCKET: [&str; 4] = [
    FORWARD_TUNNEL,
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    datagrams::PROTOCOL,
];

/// What carries the streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Carrier {
    /// With resizing from version 3, and a JSON status from version 4.
    Spdy {
        version: u8,
    },
    WebSocket {
        encoding: Encoding,
        json_status: bool,
    },
    /// SPDY in WebSocket messages.
    Tunnel,
    /// WebSocket messages that are datagrams.
    Datagrams,
}

/// What was agreed on.
#[derive(Debug)]
pub struct Offer {
    pub carrier: Carrier,
    protocol: Option<&'static str>,
    /// Of a WebSocket handshake.
    accept: Option<String>,
}

type Refusal = (StatusCode, String);

impl Offer {
    pub fn of_command(headers: &HeaderMap) -> Result<Offer, Refusal> {
        if let Some(key) = websocket_key(headers)? {
            let protocol = choose(headers, SEC_WEBSOCKET_PROTOCOL, &COMMAND_WEBSOCKET)?;
            let name = protocol.unwrap_or_default();
            let encoding = if name.contains("base64") {
                Encoding::Base64
            } else {
                Encoding::Binary
            };
            let json_status = name.starts_with("v4.") || name.starts_with("v5.");
            let carrier = Carrier::WebSocket { encoding, json_status };
            return Ok(Offer {
                carrier,
                protocol,
                accept: Some(derive_accept_key(key.as_bytes())),
            });
        }
        require_spdy(headers)?;
        let protocol = choose(headers, STREAM_PROTOCOL, &COMMAND_SPDY)?;
        let version = match protocol {
            Some("v4.channel.k8s.io") => 4,
            Some("v3.channel.k8s.io") => 3,
            Some("v2.channel.k8s.io") => 2,
            _ => 1,
        };
        Ok(Offer {
            carrier: Carrier::Spdy { version },
            protocol,
            accept: None,
        })
    }

    pub fn of_port_forward(headers: &HeaderMap) -> Result<Offer, Refusal> {
        if let Some(key) = websocket_key(headers)? {
            let protocol = choose(headers, SEC_WEBSOCKET_PROTOCOL, &FORWARD_WEBSOCKET)?;
            let name = protocol.unwrap_or_default();
            let encoding = if name.contains("base64") {
                Encoding::Base64
            } else {
                Encoding::Binary
            };
            let carrier = match name {
                FORWARD_TUNNEL => Carrier::Tunnel,
                datagrams::PROTOCOL => Carrier::Datagrams,
                _ => Carrier::WebSocket {
                    encoding,
                    json_status: false,
                },
            };
            return Ok(Offer {
                carrier,
                protocol,
                accept: Some(derive_accept_key(key.as_bytes())),
            });
        }
        require_spdy(headers)?;
        let protocol = choose(headers, STREAM_PROTOCOL, &FORWARD_SPDY)?;
        Ok(Offer {
            carrier: Carrier::Spdy { version: 1 },
            protocol,
            accept: None,
        })
    }

    /// 101 with what was agreed on.
    pub fn response(&self) -> Answer {
        let mut response = Answer::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        let mut set = |name: HeaderName, value: &str| {
            // All values are our own constants or base64.
            if let Ok(value) = value.parse() {
                headers.insert(name, value);
            }
        };
        set(CONNECTION, "Upgrade");
        match &self.accept {
            Some(accept) => {
                set(UPGRADE, "websocket");
                set(SEC_WEBSOCKET_ACCEPT, accept);
            }
            None => set(UPGRADE, SPDY),
        }
        if let Some(protocol) = self.protocol {
            set(
                if self.accept.is_some() {
                    SEC_WEBSOCKET_PROTOCOL
                } else {
                    STREAM_PROTOCOL
                },
                protocol,
            );
        }
        response
    }
}

fn header_has(headers: &HeaderMap, name: HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values
        .flat_map(|v| v.split(','))
        .any(|v| v.trim().eq_ignore_ascii_case(wanted))
}

fn websocket_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    if !header_has(headers, UPGRADE, "websocket") {
        return Ok(None);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).and_then(|k| k.to_str().ok());
    let missing = || {
        (
            StatusCode::BAD_REQUEST,
            "a WebSocket request without Sec-WebSocket-Key".to_owned(),
        )
    };
    key.map(|k| Some(k.to_owned())).ok_or_else(missing)
}

fn require_spdy(headers: &HeaderMap) -> Result<(), Refusal> {
    if header_has(headers, CONNECTION, "upgrade") && header_has(headers, UPGRADE, SPDY) {
        return Ok(());
    }
    let found = format!("{:?}", headers.get(UPGRADE));
    Err((
        StatusCode::BAD_REQUEST,
        format!("unable to upgrade: missing upgrade headers in request: {found}"),
    ))
}

/// The first of the client's wishes that we know. Without wishes there is the oldest protocol, which has no name.
fn choose(headers: &HeaderMap, name: HeaderName, known: &[&'static str]) -> Result<Option<&'static str>, Refusal> {
    let values = headers.get_all(&name).iter().filter_map(|v| v.to_str().ok());
    let wished: Vec<&str> = values
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .filter(|v| !v.is_empty())
        .collect();
    if wished.is_empty() {
        return Ok(None);
    }
    let chosen = wished.iter().find_map(|wish| known.iter().find(|k| *k == wish));
    let refusal = || {
        let why = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {wished:?}, server accepts {known:?}"
        );
        (StatusCode::FORBIDDEN, format!("{why} ({ACCEPTED})"))
    };
    chosen.map(|c| Some(*c)).ok_or_else(refusal)
}

/// The streams of a command: `wanted` are stdin, stdout and stderr.
pub async fn open<IO>(carrier: Carrier, io: IO, wanted: [bool; 3], tty: bool, patience: Duration) -> Option<Streams>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match carrier {
        Carrier::WebSocket { encoding, json_status } => {
            let channels = websocket::channels(io, 5, encoding).await;
            open_channels(channels, wanted, tty, json_status).await
        }
        Carrier::Spdy { version } => {
            let opened = open_spdy(io, wanted, tty, version);
            match tokio::time::timeout(patience, opened).await {
                Ok(streams) => streams,
                Err(_) => {
                    tracing::debug!("timed out waiting for client to create streams");
                    None
                }
            }
        }
        Carrier::Tunnel | Carrier::Datagrams => None,
    }
}

async fn open_channels(
    mut channels: websocket::Channels,
    [stdin, stdout, stderr]: [bool; 3],
    tty: bool,
    json_status: bool,
) -> Option<Streams> {
    let streams = Streams {
        stdin: channels.receiver(0).filter(|_| stdin),
        stdout: stdout.then(|| channels.sender(1)),
        stderr: (stderr && !tty).then(|| channels.sender(2)),
        error: channels.sender(3),
        resize: channels.receiver(4).filter(|_| tty),
        json_status,
    };
    // An empty message tells the client that it is connected.
    let first = streams
        .stdout
        .as_ref()
        .or(streams.stderr.as_ref())
        .unwrap_or(&streams.error);
    first.send("").await.ok()?;
    Some(streams)
}

async fn open_spdy<IO>(io: IO, [stdin, stdout, stderr]: [bool; 3], tty: bool, version: u8) -> Option<Streams>
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut incoming = spdy::serve(io);
    let wants_resize = tty && version >= 3;
    let expected = 1 + usize::from(stdin) + usize::from(stdout) + usize::from(stderr) + usize::from(wants_resize);
    let (mut input, mut sizes): (Option<Incoming>, Option<Incoming>) = (None, None);
    let (mut output, mut errors, mut error): (Option<Sender>, Option<Sender>, Option<Sender>) = (None, None, None);
    for _ in 0..expected {
        let opened = incoming.recv().await?;
        match opened.headers.get("streamtype").map(String::as_str) {
            Some("stdin") => input = Some(opened.receiver),
            Some("resize") => sizes = Some(opened.receiver),
            Some("stdout") => output = Some(opened.sender),
            Some("stderr") => errors = Some(opened.sender),
            Some("error") => error = Some(opened.sender),
            other => {
                tracing::debug!(?other, "unexpected stream type");
                return None;
            }
        }
    }
    // More streams than these are not expected, but the connection ends when nobody takes them.
    tokio::spawn(async move { while incoming.recv().await.is_some() {} });
    Some(Streams {
        stdin: input,
        stdout: output,
        stderr: errors,
        error: error?,
        resize: sizes,
        json_status: version >= 4,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(k, v)| (HeaderName::from_static(k), v.parse().unwrap()))
            .collect()
    }

    fn websocket(protocols: &str) -> HeaderMap {
        headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", protocols),
        ])
    }

    #[test]
    fn kubectl_gets_version_5_and_its_tunnel() {
        let offer = Offer::of_command(&websocket("v5.channel.k8s.io")).unwrap();
        assert_eq!(
            offer.carrier,
            Carrier::WebSocket {
                encoding: Encoding::Binary,
                json_status: true
            }
        );
        let response = offer.response();
        assert_eq!(
            response.headers()["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
        let tunnel = Offer::of_port_forward(&websocket("SPDY/3.1+portforward.k8s.io")).unwrap();
        assert_eq!(tunnel.carrier, Carrier::Tunnel);
        let datagrams = Offer::of_port_forward(&websocket(datagrams::PROTOCOL)).unwrap();
        assert_eq!(datagrams.carrier, Carrier::Datagrams);
        assert!(Offer::of_command(&websocket(datagrams::PROTOCOL)).is_err());
    }

    #[test]
    fn spdy_takes_the_clients_first_known_wish() {
        let mut request = headers(&[("connection", "upgrade"), ("upgrade", "SPDY/3.1")]);
        assert_eq!(
            Offer::of_command(&request).unwrap().carrier,
            Carrier::Spdy { version: 1 }
        );
        for wish in ["v9.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io"] {
            request.append(STREAM_PROTOCOL, wish.parse().unwrap());
        }
        let offer = Offer::of_command(&request).unwrap();
        assert_eq!(offer.carrier, Carrier::Spdy { version: 4 });
        assert_eq!(offer.response().headers()[STREAM_PROTOCOL], "v4.channel.k8s.io");
    }

    #[test]
    fn others_are_refused() {
        assert_eq!(
            Offer::of_command(&HeaderMap::new()).unwrap_err().0,
            StatusCode::BAD_REQUEST
        );
        assert_eq!(
            Offer::of_command(&websocket("v99")).unwrap_err().0,
            StatusCode::FORBIDDEN
        );
    }
}
