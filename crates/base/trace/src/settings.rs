//! Where traces go and how many are taken: upstream's `TracingConfiguration`.

use crate::sampling::Rate;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::fmt;
use std::path::{Path, PathBuf};

/// Where a collector listens unless it is said.
const ENDPOINT: &str = "localhost:4317";
const GROUP: &str = "apiserver.config.k8s.io";
/// A file of two lines.
const LARGEST: u64 = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub endpoint: Endpoint,
    /// Of traces that begin here. What a caller takes is taken, whatever the rate.
    pub rate: Rate,
}

/// A collector that speaks OTLP by gRPC, without TLS as upstream's components speak it: it belongs onto the machine, or behind one that does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `HOST:PORT`
    Host(String),
    Socket(PathBuf),
}

/// A file as kube-apiserver reads it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    endpoint: Option<String>,
    sampling_rate_per_million: Option<i32>,
}

impl Settings {
    /// Of the two fields that all of upstream's configurations have. Without an endpoint a collector of this machine is told, without a
    /// rate only what callers take.
    pub fn of(endpoint: Option<&str>, rate: Option<i32>) -> Result<Settings> {
        let rate = rate.unwrap_or(0);
        ensure!(
            rate >= 0,
            "samplingRatePerMillion: Invalid value: {rate}: sampling rate must be positive"
        );
        ensure!(
            rate <= 1_000_000,
            "samplingRatePerMillion: Invalid value: {rate}: sampling rate per million must be less than or equal to one million"
        );
        Ok(Settings {
            endpoint: Endpoint::parse(endpoint.filter(|e| !e.is_empty()).unwrap_or(ENDPOINT))?,
            rate: Rate::per_million(rate.unsigned_abs()),
        })
    }

    /// Of the text of a file.
    pub fn parse(text: &str) -> Result<Settings> {
        let file: File = serde_saphyr::from_str(text).context("reading a TracingConfiguration")?;
        let version = file.api_version.strip_prefix(GROUP).and_then(|v| v.strip_prefix('/'));
        ensure!(
            file.kind == "TracingConfiguration" && matches!(version, Some("v1" | "v1beta1" | "v1alpha1")),
            "no kind {:?} is read in version {:?}, only TracingConfiguration in {GROUP}/v1",
            file.kind,
            file.api_version
        );
        Settings::of(file.endpoint.as_deref(), file.sampling_rate_per_million)
    }

    /// Of a file.
    pub fn read(path: &Path) -> Result<Settings> {
        let told = || format!("the tracing configuration {}", path.display());
        let size = std::fs::metadata(path).with_context(told)?.len();
        ensure!(size <= LARGEST, "{} is larger than {LARGEST} bytes", told());
        let text = std::fs::read_to_string(path).with_context(told)?;
        Settings::parse(&text).with_context(told)
    }
}

/// As it is written in a file.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Host(host) => f.write_str(host),
            Endpoint::Socket(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl Endpoint {
    fn parse(text: &str) -> Result<Endpoint> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("dns", text));
        match scheme {
            "unix" => {
                ensure!(
                    rest.starts_with('/'),
                    "endpoint: Invalid value: {text:?}: the path of a socket is absolute"
                );
                Ok(Endpoint::Socket(rest.into()))
            }
            "dns" => {
                // As gRPC has it, a name server may stand before the name: `dns://SERVER/NAME`, `dns:///NAME`.
                let host = rest.strip_prefix('/').unwrap_or(rest);
                ensure!(
                    !host.contains('/'),
                    "endpoint: Invalid value: {text:?}: names are resolved by this machine's name servers only: leave the one before the name out"
                );
                let port = host.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
                ensure!(
                    port.is_some_and(|p| p != 0)
                        && format!("http://{host}")
                            .parse::<http::Uri>()
                            .is_ok_and(|u| u.host().is_some_and(|h| !h.is_empty()) && u.path() == "/"),
                    "endpoint: Invalid value: {text:?}: a host and a port are needed, as in {ENDPOINT}"
                );
                Ok(Endpoint::Host(host.into()))
            }
            other => anyhow::bail!(
                "endpoint: Invalid value: {text:?}: unsupported scheme: {other}.  Options are none, dns, or unix"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_upstream_reads_is_read() {
        let read =
            |fields: &str| Settings::parse(&format!("apiVersion: {GROUP}/v1\nkind: TracingConfiguration\n{fields}"));
        let of = |endpoint: &str, rate: u32| Settings {
            endpoint: Endpoint::Host(endpoint.into()),
            rate: Rate::per_million(rate),
        };
        assert_eq!(read("").unwrap(), of("localhost:4317", 0));
        assert_eq!(
            read("endpoint: otel:4317\nsamplingRatePerMillion: 100").unwrap(),
            of("otel:4317", 100)
        );
        assert_eq!(read("endpoint: dns:///[::1]:1").unwrap(), of("[::1]:1", 0));
        let socket = read("endpoint: unix:///run/otel.sock").unwrap().endpoint;
        assert_eq!(socket, Endpoint::Socket("/run/otel.sock".into()));
        for (wrong, said) in [
            ("samplingRatePerMillion: -1", "must be positive"),
            ("samplingRatePerMillion: 1000001", "less than or equal to one million"),
            ("endpoint: http://otel:4317", "unsupported scheme: http"),
            ("endpoint: otel", "a host and a port"),
            ("endpoint: otel:0", "a host and a port"),
            ("endpoint: ':4317'", "a host and a port"),
            ("endpoint: dns://8.8.8.8/otel:4317", "leave the one before"),
            ("endpoint: unix://otel.sock", "absolute"),
            ("samplingRate: 1", "samplingRate"),
        ] {
            let error = format!("{:#}", read(wrong).unwrap_err());
            assert!(error.contains(said), "{wrong}: {error}");
        }
        let other = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration";
        assert!(Settings::parse(other).is_err());
    }
}
