//! The kubelet's own server, who may use it, and what it tells.

use super::super::show;
use super::*;
use crate::config::Logging;
use std::net::IpAddr;

const TLS: &str = "certificates are the program's business, it renews them by itself";
const HEALTH: &str = "health is told at /healthz of the kubelet's port";

pub(super) const FIELDS: &[Field] = &[
    field(
        "enableServer",
        "enable-server",
        Kind::Bool,
        true,
        only("true", "the API server reaches pods by it"),
    ),
    field(
        "address",
        "address",
        Kind::Text,
        false,
        set(
            |c, v| {
                let ip = address(v)?;
                if let Some(at) = &mut c.listen {
                    at.set_ip(ip);
                }
                Ok(())
            },
            |c| c.listen.map_or(json!(""), |at| json!(at.ip().to_string())),
        ),
    ),
    field(
        "port",
        "port",
        Kind::Int,
        false,
        set(
            |c, v| {
                c.port = int(v, 1, 65_535)? as u16;
                if let Some(at) = &mut c.listen {
                    at.set_port(c.port);
                }
                Ok(())
            },
            |c| json!(c.port),
        ),
    ),
    field(
        "readOnlyPort",
        "read-only-port",
        Kind::Int,
        false,
        only("0", "nothing is served without identity"),
    ),
    field(
        "tlsCertFile",
        "tls-cert-file",
        Kind::Path,
        false,
        alone(
            |c, v| own(c, |alone| alone.cert = path(v)),
            |c| {
                json!(
                    c.alone
                        .as_ref()
                        .and_then(|alone| alone.cert.clone())
                        .unwrap_or_default()
                )
            },
            "",
            TLS,
        ),
    ),
    field(
        "tlsPrivateKeyFile",
        "tls-private-key-file",
        Kind::Path,
        false,
        alone(
            |c, v| own(c, |alone| alone.key = path(v)),
            |c| json!(c.alone.as_ref().and_then(|alone| alone.key.clone()).unwrap_or_default()),
            "",
            TLS,
        ),
    ),
    field(
        "tlsCipherSuites",
        "tls-cipher-suites",
        Kind::Texts,
        false,
        only("[]", "all suites that are spoken are safe ones"),
    ),
    field(
        "tlsCurvePreferences",
        "",
        Kind::List,
        false,
        only("[]", "all curves that are spoken are safe ones"),
    ),
    field(
        "tlsMinVersion",
        "tls-min-version",
        Kind::Text,
        false,
        What::Only {
            default: "",
            others: &["VersionTLS12"],
            why: "TLS 1.2 and 1.3 are spoken",
        },
    ),
    field(
        "rotateCertificates",
        "rotate-certificates",
        Kind::Bool,
        false,
        set(
            |c, v| rotated(c, v, "the kubeconfig's certificate is used as it is there"),
            |c| json!(c.alone.is_none()),
        ),
    ),
    field(
        "serverTLSBootstrap",
        "rotate-server-certificates",
        Kind::Bool,
        false,
        set(
            |c, v| {
                rotated(
                    c,
                    v,
                    "tlsCertFile and tlsPrivateKeyFile say by which certificate it is known",
                )
            },
            |c| json!(c.alone.is_none()),
        ),
    ),
    field(
        "authentication",
        "",
        Kind::Object,
        // Parts of it are pointers.
        true,
        set(authentication, show::authentication),
    ),
    field(
        "authorization",
        "",
        Kind::Object,
        false,
        set(authorization, show::authorization),
    ),
    field(
        "enableDebuggingHandlers",
        "enable-debugging-handlers",
        Kind::Bool,
        true,
        set(put!(debugging_handlers, |v| Ok::<_, String>(truth(v))), |c| {
            json!(c.debugging_handlers)
        }),
    ),
    field(
        "enableContentionProfiling",
        "contention-profiling",
        Kind::Bool,
        false,
        only("false", "profiles aren't served"),
    ),
    field(
        "enableProfilingHandler",
        "",
        Kind::Bool,
        true,
        unmet("true", &["false"], "profiles and flags aren't served"),
    ),
    field(
        "enableDebugFlagsHandler",
        "",
        Kind::Bool,
        true,
        unmet("true", &["false"], "profiles and flags aren't served"),
    ),
    field(
        "enableSystemLogHandler",
        "",
        Kind::Bool,
        true,
        set(put!(system_logs, |v| Ok::<_, String>(truth(v))), |c| {
            json!(c.system_logs)
        }),
    ),
    field(
        "enableSystemLogQuery",
        "",
        Kind::Bool,
        true,
        set(put!(system_log_query, |v| Ok::<_, String>(truth(v))), |c| {
            json!(c.system_log_query)
        }),
    ),
    field(
        "healthzPort",
        "healthz-port",
        Kind::Int,
        true,
        What::Alone {
            set: |c, v| {
                let port = int(v, 0, 65_535)? as u16;
                own(c, |alone| alone.health.set_port(port))
            },
            show: |c| json!(c.alone.as_ref().map_or(0, |alone| alone.health.port())),
            default: "0",
            others: &["10248"],
            why: HEALTH,
        },
    ),
    field(
        "healthzBindAddress",
        "healthz-bind-address",
        Kind::Text,
        false,
        alone(
            |c, v| {
                let ip = address(v)?;
                own(c, |alone| alone.health.set_ip(ip))
            },
            |c| json!(c.alone.clone().unwrap_or_default().health.ip()),
            "127.0.0.1",
            HEALTH,
        ),
    ),
    field(
        "streamingConnectionIdleTimeout",
        "streaming-connection-idle-timeout",
        Kind::Duration,
        false,
        unmet("4h0m0s", &[], "a stream is bounded as a whole, not while it is idle"),
    ),
    field(
        "showHiddenMetricsForVersion",
        "",
        Kind::Text,
        false,
        only("", "there are no hidden metrics"),
    ),
    field(
        "logging",
        "",
        Kind::Object,
        false,
        set(logging, |c| {
            let said = c.alone.as_ref().and_then(|a| a.logging.as_ref());
            let format = said.map_or("text", |l| &l.format);
            match said.and_then(|l| l.verbosity) {
                Some(verbosity) => json!({"format": format, "verbosity": verbosity}),
                None => json!({"format": format}),
            }
        }),
    ),
    field("tracing", "", Kind::Object, true, set(tracing, show::tracing)),
];

/// An empty one is one by upstream's defaults.
fn tracing(c: &mut Config, v: &Value) -> Result<(), String> {
    let Some(said) = v.as_object() else { return Ok(()) };
    if let Some(unknown) = said
        .keys()
        .find(|k| !["endpoint", "samplingRatePerMillion"].contains(&k.as_str()))
    {
        return Err(format!("unknown field {unknown:?}"));
    }
    let endpoint = said.get("endpoint").and_then(Value::as_str);
    let rate = match said.get("samplingRatePerMillion") {
        None | Some(Value::Null) => None,
        Some(rate) => Some(int(rate, i64::from(i32::MIN), i64::from(i32::MAX))? as i32),
    };
    c.tracing = Some(keelson_trace::Settings::of(endpoint, rate).map_err(|e| e.to_string())?);
    Ok(())
}

fn address(v: &Value) -> Result<IpAddr, String> {
    let text = text(v);
    text.parse().map_err(|_| format!("{text} is not an IP address"))
}

/// Within another program certificates are renewed, wanted or not; alone they aren't.
fn rotated(c: &mut Config, v: &Value, why: &str) -> Result<(), String> {
    match truth(v) && c.alone.is_some() {
        true => Err(format!("true can't be had here: {why}")),
        false => Ok(()),
    }
}

fn ttl(v: &Value, into: &mut Duration) -> Result<(), String> {
    let said = time(v)?;
    if !said.is_zero() {
        *into = said;
    }
    Ok(())
}

fn authentication(c: &mut Config, v: &Value) -> Result<(), String> {
    let object = Kind::Object;
    known(v, "", &[("x509", object), ("webhook", object), ("anonymous", object)])?;
    known(&v["x509"], "x509.", &[("clientCAFile", Kind::Path)])?;
    let webhook = [("enabled", Kind::Bool), ("cacheTTL", Kind::Duration)];
    known(&v["webhook"], "webhook.", &webhook)?;
    known(&v["anonymous"], "anonymous.", &[("enabled", Kind::Bool)])?;
    let authorities = path(&v["x509"]["clientCAFile"]);
    match (&mut c.alone, &authorities) {
        (Some(alone), _) => alone.client_ca = authorities,
        (None, Some(_)) => return Err(format!("x509.clientCAFile can't be had here: {TLS}")),
        (None, None) => {}
    }
    if v["webhook"]["enabled"] == false {
        return Err("webhook.enabled: false can't be had here: tokens are always asked about".into());
    }
    if let Some(anonymous) = v["anonymous"]["enabled"].as_bool() {
        c.anonymous = anonymous;
    }
    ttl(&v["webhook"]["cacheTTL"], &mut c.reviews.tokens)
}

fn authorization(c: &mut Config, v: &Value) -> Result<(), String> {
    known(v, "", &[("mode", Kind::Text), ("webhook", Kind::Object)])?;
    let times = ["cacheAuthorizedTTL", "cacheUnauthorizedTTL"].map(|name| (name, Kind::Duration));
    known(&v["webhook"], "webhook.", &times)?;
    match v["mode"].as_str().unwrap_or_default() {
        "" | "Webhook" => {}
        other => {
            return Err(format!(
                "mode {other} can't be had here: the API server is always asked"
            ));
        }
    }
    ttl(&v["webhook"]["cacheAuthorizedTTL"], &mut c.reviews.allowed)?;
    ttl(&v["webhook"]["cacheUnauthorizedTTL"], &mut c.reviews.denied)
}

/// The program writes the log; what is nothing, or upstream's default, is no wish. Lines are written at once, however long they
/// might wait.
fn logging(c: &mut Config, v: &Value) -> Result<(), String> {
    // Upstream reads a bare number as nanoseconds.
    let flush = match v["flushFrequency"].is_number() {
        true => Kind::Int,
        false => Kind::Duration,
    };
    let parts = [
        ("format", Kind::Text),
        ("flushFrequency", flush),
        ("verbosity", Kind::Int),
        ("vmodule", Kind::List),
        ("options", Kind::Object),
    ];
    known(v, "", &parts)?;
    for (part, value) in v.as_object().into_iter().flatten() {
        let usual = match part.as_str() {
            "format" => value == "text",
            "flushFrequency" => true,
            _ => false,
        };
        match nothing(value) || usual {
            true => {}
            false if part == "format" && value != "json" => {
                return Err(format!("format: Invalid value: {value}: Unsupported log format"));
            }
            false if part == "vmodule" => {
                return Err("vmodule can't be had here: files are others: say --log info,MODULE=debug".into());
            }
            false if c.alone.is_some() && ["format", "verbosity"].contains(&part.as_str()) => {}
            false if part == "format" => return Err(format!("format json can't be had here: {ELSEWHERE}")),
            false => return Err(format!("{part} can't be had here: {ELSEWHERE}")),
        }
    }
    let verbosity = match &v["verbosity"] {
        Value::Null => None,
        said => Some(int(said, 0, i64::from(i32::MAX))? as u32).filter(|n| *n > 0),
    };
    let format = v["format"]
        .as_str()
        .filter(|f| !f.is_empty())
        .unwrap_or("text")
        .to_owned();
    own(c, |alone| alone.logging = Some(Logging { format, verbosity }))
}

fn nothing(v: &Value) -> bool {
    match v {
        Value::Object(m) => m.values().all(nothing),
        Value::String(s) => ["", "0", "0s"].contains(&s.as_str()),
        other => Kind::Object.is_zero(other),
    }
}
