//! Webhooks that a kubeconfig names: those that authenticate and authorise. A review is posted to the server's URL as it
//! stands there; what may be a passing failure is tried again, as upstream tries it.

use crate::config::file;
use crate::connect::{ClientTls, Kept, Target, Trust};
use crate::webhook::refusal;
use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use keelson_api::{Map, Value};
use keelson_pki::Kubeconfig;
use keelson_pki::kubeconfig::Auth;
use rand::Rng;
use std::path::Path;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Calls at once; more wait. Strangers can cause them, so they have to be few.
const AT_ONCE: usize = 64;
/// The most that a webhook may answer.
const MAX_BYTES: usize = 1 << 20;
/// Upstream's: the first pause, what the next one is longer, how many calls there are, and by how much pauses vary.
const PAUSE: Duration = Duration::from_millis(500);
const FACTOR: f64 = 1.5;
const STEPS: usize = 5;
const JITTER: f64 = 0.2;

/// A webhook.
pub struct Remote {
    url: String,
    kept: Kept,
    path: String,
    authorization: Option<HeaderValue>,
    timeout: Duration,
    /// After the first call that failed.
    pause: Duration,
    calls: Semaphore,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.url)
    }
}

/// Why a call yielded nothing.
#[derive(Clone, Debug)]
pub struct Failure {
    pub said: String,
    /// Under which name it is counted: `timeout` or `error`.
    pub result: &'static str,
    may_pass: bool,
}

impl Remote {
    /// The server of a kubeconfig's current context. Certificates and tokens in files are read now.
    pub fn open(kubeconfig: &Path, timeout: Duration) -> Result<Remote> {
        let text = file::read(kubeconfig)?;
        let base = kubeconfig.parent().unwrap_or(Path::new("."));
        let config =
            Kubeconfig::parse(&text, base).with_context(|| format!("the kubeconfig {}", kubeconfig.display()))?;
        Remote::of(&config, timeout).with_context(|| format!("the kubeconfig {}", kubeconfig.display()))
    }

    pub fn of(config: &Kubeconfig, timeout: Duration) -> Result<Remote> {
        let uri: Uri = config
            .server
            .parse()
            .with_context(|| format!("server {:?}", config.server))?;
        let host = uri.host().context("the server's URL names no host")?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => anyhow::bail!("the server's URL {:?} is neither https nor http", config.server),
        };
        let identity = match &config.auth {
            Auth::Certificate { cert_pem, key_pem } => Some((cert_pem.as_str(), key_pem.as_str())),
            _ => None,
        };
        let secret = |text: String| {
            let mut value = HeaderValue::from_str(&text).context("the token is no header value")?;
            value.set_sensitive(true);
            Ok::<_, anyhow::Error>(value)
        };
        let authorization = match &config.auth {
            Auth::Token(token) => Some(secret(format!("Bearer {token}"))?),
            Auth::Basic { username, password } => Some(secret(format!(
                "Basic {}",
                STANDARD.encode(format!("{username}:{password}"))
            ))?),
            Auth::None | Auth::Certificate { .. } => None,
        };
        ensure!(
            secure || authorization.is_none() && identity.is_none(),
            "the server's URL {:?} is not https: credentials are not sent in the clear",
            config.server
        );
        let trust = match config.insecure {
            true => Trust::Anyone,
            false => Trust::bundle(Some(&config.ca_pem)),
        };
        let name = Some(config.server_name.as_str())
            .filter(|n| !n.is_empty())
            .unwrap_or(host);
        let tls = match secure {
            true => Some(ClientTls::to(ClientTls::config(trust, identity)?, name)?),
            false => None,
        };
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        Ok(Remote {
            url: config.server.clone(),
            kept: Kept::to(Target {
                address: format!("{host}:{port}"),
                host: uri.authority().map_or(host, |a| a.as_str()).to_string(),
                tls,
            }),
            path: uri.path_and_query().map_or("/", |p| p.as_str()).to_string(),
            authorization,
            timeout,
            pause: PAUSE,
            calls: Semaphore::new(AT_ONCE),
        })
    }

    /// The same, with another first pause.
    pub fn pausing(self, pause: Duration) -> Remote {
        Remote { pause, ..self }
    }

    /// Posts a review and reads what is answered. `counted` is told of each call.
    pub async fn ask(&self, review: &Value, counted: impl Fn(&Result<Map, Failure>, Duration)) -> Result<Map, Failure> {
        let mut pause = self.pause;
        for step in 1.. {
            let _place = self.calls.acquire().await;
            let started = tokio::time::Instant::now();
            let answer = self.once(review).await;
            counted(&answer, started.elapsed());
            match answer {
                Err(failure) if failure.may_pass && step < STEPS => {}
                decided => return decided,
            }
            let varied = pause.mul_f64(1.0 + JITTER * rand::rng().random::<f64>());
            drop(_place);
            tokio::time::sleep(varied).await;
            pause = pause.mul_f64(FACTOR);
        }
        unreachable!("the last step returns")
    }

    async fn once(&self, review: &Value) -> Result<Map, Failure> {
        match tokio::time::timeout(self.timeout, self.exchange(review)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure {
                said: format!(
                    "Post \"{}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
                    self.url
                ),
                result: "timeout",
                may_pass: false,
            }),
        }
    }

    async fn exchange(&self, review: &Value) -> Result<Map, Failure> {
        let failed = |said: String, may_pass| Failure {
            said,
            result: "error",
            may_pass,
        };
        let body = serde_json::to_vec(review).map_err(|e| failed(e.to_string(), false))?;
        let says = |text| HeaderValue::from_static(text);
        let mut headers = HeaderMap::from_iter([
            (header::CONTENT_TYPE, says("application/json")),
            (header::ACCEPT, says("application/json, */*")),
            (header::USER_AGENT, says(concat!("keelson/", env!("CARGO_PKG_VERSION")))),
        ]);
        if let Some(authorization) = &self.authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        let sent = self.kept.post(&self.path, headers, body.into()).await;
        let (head, body) = sent.map_err(|e| self.unsent(&e))?.into_parts();
        let body = Limited::new(body, MAX_BYTES).collect().await;
        let body = body
            .map_err(|e| failed(format!("Post \"{}\": {e}", self.url), false))?
            .to_bytes();
        if !head.status.is_success() {
            let may_pass = head.headers.contains_key(header::RETRY_AFTER)
                || matches!(
                    head.status,
                    StatusCode::INTERNAL_SERVER_ERROR | StatusCode::GATEWAY_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
                );
            let result = match head.status {
                StatusCode::GATEWAY_TIMEOUT => "timeout",
                _ => "error",
            };
            return Err(Failure {
                said: refusal(head.status, &body),
                result,
                may_pass,
            });
        }
        let answer: Value = serde_json::from_slice(&body)
            .map_err(|e| failed(format!("couldn't get version/kind; json parse error: {e}"), false))?;
        let same = |field: &str| {
            let said = answer.get(field).and_then(Value::as_str).unwrap_or_default();
            said.is_empty() || review.get(field).and_then(Value::as_str) == Some(said)
        };
        let text = |field: &str| {
            answer
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_string()
        };
        match answer {
            _ if !same("kind") || !same("apiVersion") => Err(failed(
                format!(
                    "no kind \"{}\" is registered for version \"{}\" in what was asked for",
                    text("kind"),
                    text("apiVersion")
                ),
                false,
            )),
            Value::Object(map) => Ok(map),
            _ => Err(failed("the webhook's answer is no object".into(), false)),
        }
    }

    fn unsent(&self, error: &anyhow::Error) -> Failure {
        let reset = error.chain().any(|cause| {
            let io = cause.downcast_ref::<std::io::Error>();
            io.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset)
        });
        Failure {
            said: format!("Post \"{}\": {error:#}", self.url),
            result: match error.to_string().contains("i/o timeout") {
                true => "timeout",
                false => "error",
            },
            may_pass: reset,
        }
    }
}
