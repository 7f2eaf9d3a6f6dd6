//! `keelson etcd serve`: etcd's flags, under its names, for a store of one machine.
//!
//! There are no peers and no log of raft's: what concerns only those is taken where it says nothing else, and refused where it does.

use super::{Front, listen};
use crate::components::LogOptions;
use crate::components::front::{secure, tls};
use crate::config::absolute;
use crate::process;
use crate::store::{self, Choice, Opened};
use crate::supervise::Supervisor;
use anyhow::{Context, bail, ensure};
use clap::Args;
use clap::builder::PossibleValuesParser;
use http::Uri;
use keelson_apiserver::serve::tls::ServingCert;
use keelson_pki::verify::Live;
use keelson_store::{embedded, serve};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Shorter ones etcd makes as long as this.
const SHORTEST_PROGRESS: Duration = Duration::from_millis(100);

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// This member's name
    #[arg(long, value_name = "NAME", default_value = "default")]
    name: String,
    /// URLs to listen on for clients: http://HOST:PORT, or https:// with --cert-file
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "http://localhost:2379"
    )]
    listen_client_urls: Vec<String>,
    /// URLs that clients are told of [default: those that are listened on]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    advertise_client_urls: Vec<String>,
    /// URLs that only tell how the store is, without TLS: /health, /livez, /readyz, /version
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    listen_metrics_urls: Vec<String>,
    /// Certificate by which this server is known
    #[arg(long, value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// Authority of clients' certificates; only who shows one is let in
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    trusted_ca_file: Option<PathBuf>,
    /// That clients need a certificate, which --trusted-ca-file says already
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    client_cert_auth: Option<bool>,
    /// Don't wait until what is written is on the disk: a power failure loses what came last
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    unsafe_no_fsync: Option<bool>,
    /// Longest write that is taken
    #[arg(long, value_name = "BYTES", default_value_t = 3 << 19)]
    max_request_bytes: usize,
    /// Most operations of a transaction
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_txn_ops: usize,
    /// How often watches that want to know are told how far they are [default: 10m]
    #[arg(long, alias = "experimental-watch-progress-notify-interval", value_name = "DURATION")]
    watch_progress_notify_interval: Option<String>,
    /// Where peers would be; there are none, and members are told of it
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    listen_peer_urls: Vec<String>,
    /// What peers would be told of; members are
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    initial_advertise_peer_urls: Vec<String>,
    /// The members to begin with: this one, as NAME=URL
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    initial_cluster: Vec<String>,
    /// Whether the cluster is begun
    #[arg(long, value_parser = PossibleValuesParser::new(["new"]))]
    initial_cluster_state: Option<String>,
    /// Of peers, which there are none
    #[arg(long = "peer-cert-file", value_name = "FILE")]
    _peer_cert_file: Option<PathBuf>,
    /// Of peers, which there are none
    #[arg(long = "peer-key-file", value_name = "FILE")]
    _peer_key_file: Option<PathBuf>,
    /// Of peers, which there are none
    #[arg(long = "peer-trusted-ca-file", value_name = "FILE")]
    _peer_trusted_ca_file: Option<PathBuf>,
    /// Of peers, which there are none
    #[arg(long = "peer-client-cert-auth", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    _peer_client_cert_auth: Option<bool>,
    /// Of raft's log, which there is none
    #[arg(long = "snapshot-count", value_name = "N")]
    _snapshot_count: Option<u64>,
    /// What the store does anyway: it checks itself when it is opened
    #[arg(long = "feature-gates", value_parser = PossibleValuesParser::new(["InitialCorruptCheck=true"]))]
    _feature_gates: Option<String>,
    /// What the store does anyway: it checks itself when it is opened
    #[arg(long = "experimental-initial-corrupt-check", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = PossibleValuesParser::new(["true"]))]
    _initial_corrupt_check: Option<String>,
    /// How much to log, by etcd's names
    #[arg(long, value_parser = PossibleValuesParser::new(["debug", "info", "warn", "error", "panic", "fatal"]))]
    log_level: Option<String>,
    /// What logs
    #[arg(long = "logger", value_parser = PossibleValuesParser::new(["zap"]))]
    _logger: Option<String>,
    #[command(flatten)]
    log: LogOptions,
}

/// A URL, as far as it says where to listen.
struct Place {
    tls: bool,
    addresses: Vec<SocketAddr>,
}

impl Options {
    fn judge(&self) -> anyhow::Result<()> {
        ensure!(
            self.client_cert_auth != Some(true) || self.trusted_ca_file.is_some(),
            "--client-cert-auth: say with --trusted-ca-file whose certificates are taken"
        );
        ensure!(
            self.client_cert_auth != Some(false) || self.trusted_ca_file.is_none(),
            "--client-cert-auth=false with --trusted-ca-file: who has no certificate would be let in; leave one of both out"
        );
        let own = format!("{}=", self.name);
        ensure!(
            self.initial_cluster.iter().all(|member| member.starts_with(&own)),
            "--initial-cluster: the store is on one machine and has one member, {}; several share an etcd (docs/etcd.md)",
            self.name
        );
        Ok(())
    }

    fn progress_interval(&self) -> anyhow::Result<Duration> {
        let flag = "--watch-progress-notify-interval";
        let given = store::duration(flag, self.watch_progress_notify_interval.as_deref())?;
        Ok(match given {
            None => serve::Options::default().progress_interval,
            Some(given) => given.max(SHORTEST_PROGRESS),
        })
    }

    fn serve_options(&self) -> anyhow::Result<serve::Options> {
        let given = |urls: &[String], others: &[String]| match urls {
            [] => others.to_vec(),
            urls => urls.to_vec(),
        };
        Ok(serve::Options {
            name: self.name.clone(),
            client_urls: given(&self.advertise_client_urls, &self.listen_client_urls),
            peer_urls: given(&self.initial_advertise_peer_urls, &self.listen_peer_urls),
            max_request_bytes: self.max_request_bytes,
            max_txn_ops: self.max_txn_ops,
            progress_interval: self.progress_interval()?,
        })
    }

    fn certificate(&self) -> anyhow::Result<Option<Arc<ServingCert>>> {
        let (Some(cert), Some(key)) = (&self.cert_file, &self.key_file) else {
            return Ok(None);
        };
        let cert = ServingCert::new(&secure::read(cert)?, &secure::read(key)?).context("--cert-file, --key-file")?;
        Ok(Some(cert))
    }

    async fn start(&self, data_dir: &Path) -> anyhow::Result<(Opened, Supervisor)> {
        let cert = self.certificate()?;
        let clients: Option<Live> = match &self.trusted_ca_file {
            Some(file) => Some(secure::roots(&secure::read(file)?).context("--trusted-ca-file")?.into()),
            None => None,
        };
        let engine = embedded::Options {
            sync: self.unsafe_no_fsync != Some(true),
            ..embedded::Options::default()
        };
        let opened = Opened::open_with(&Choice::Embedded(data_dir.join("store")), engine).await?;
        let Opened::Embedded(store) = &opened else {
            bail!("the store is not in {}", data_dir.display());
        };
        let api = serve::Api::new(store.clone(), self.serve_options()?);
        let mut components = Supervisor::default();
        if let (Some(cert_file), Some(key), Some(cert)) = (&self.cert_file, &self.key_file, &cert) {
            tls::follow_pair(
                &mut components,
                "etcd-certificate",
                [cert_file.clone(), key.clone()],
                cert,
            );
        }
        if let (Some(file), Some(clients)) = (&self.trusted_ca_file, clients.clone()) {
            tls::followed(&mut components, "etcd-authorities", vec![file.clone()], move |found| {
                clients.replace(secure::roots(tls::text(&found[0])?)?);
                Ok(())
            });
        }
        for (urls, flag, front) in [
            (
                &self.listen_client_urls,
                "--listen-client-urls",
                Front::new(api.clone(), clients),
            ),
            (
                &self.listen_metrics_urls,
                "--listen-metrics-urls",
                Front::of_health(api),
            ),
        ] {
            for url in urls {
                let place = place(flag, url).await?;
                let tls = match (place.tls, &cert) {
                    (true, None) => bail!("{flag} {url}: a certificate is needed, --cert-file and --key-file"),
                    (true, Some(cert)) => Some(cert.clone()),
                    (false, _) => None,
                };
                ensure!(
                    front.clients.is_none() || tls.is_some(),
                    "{flag} {url}: clients show no certificate without TLS, and --trusted-ca-file asks for one"
                );
                if front.clients.is_none()
                    && !front.health_only
                    && place.addresses.iter().any(|a| !a.ip().is_loopback())
                {
                    tracing::warn!(url, "whoever reaches this address can read and change everything");
                }
                listen(&mut components, "etcd-api", &place.addresses, tls, front.clone(), flag).await?;
            }
        }
        Ok((opened, components))
    }
}

async fn place(flag: &str, url: &str) -> anyhow::Result<Place> {
    let wrong = || format!("{flag} {url}: a URL to listen on is http://HOST:PORT or https://HOST:PORT");
    let uri: Uri = url.trim().parse().with_context(wrong)?;
    let tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => bail!(wrong()),
    };
    let (host, port) = uri.host().zip(uri.port_u16()).with_context(wrong)?;
    ensure!(matches!(uri.path(), "" | "/"), wrong());
    let host = host.trim_start_matches('[').trim_end_matches(']').to_string();
    let found = tokio::net::lookup_host((host.as_str(), port)).await;
    let mut addresses: Vec<SocketAddr> = found.with_context(wrong)?.collect();
    addresses.sort_unstable();
    addresses.dedup();
    // A name of both families may have one only that this machine listens on: its first is what etcd takes.
    addresses.truncate(1);
    Ok(Place { tls, addresses })
}

/// The directory of etcd's own files, which have another form.
fn is_etcds(data_dir: &Path) -> bool {
    data_dir.join("member").is_dir()
}

pub fn main(options: Options, data_dir: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    options.judge()?;
    let data_dir = data_dir.unwrap_or_else(|| format!("{}.etcd", options.name).into());
    let data_dir = absolute(data_dir)?;
    ensure!(
        !is_etcds(&data_dir),
        "{} has an etcd's files: while that etcd runs, `keelson store migrate from-etcd` takes over what is in it",
        data_dir.display()
    );
    let mut log = options.log.clone();
    log.or_level(options.log_level.as_deref().map(|level| match level {
        "panic" | "fatal" => "error",
        other => other,
    }));
    process::run(&log.resolve()?, Some(&data_dir), async |stopping| {
        let mut opened = None;
        let starting = async {
            let (store, components) = options.start(&data_dir).await?;
            opened = Some(store);
            Ok((components, ()))
        };
        let ended = process::until_stopped(stopping, starting, async |()| std::future::pending().await).await;
        if let Some(store) = opened {
            store.close().await;
        }
        ended
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::command::Command as Etcd;
    use crate::{Arguments, Command, words_of};
    use clap::Parser;

    fn parse(line: &str) -> anyhow::Result<Options> {
        let words = line.split_whitespace().map(Into::into);
        match Arguments::try_parse_from(words_of(words.collect()))?.command {
            Command::Etcd(options) => match options.command {
                Etcd::Serve(options) => Ok(*options),
                _ => bail!("another command"),
            },
            _ => bail!("another command"),
        }
    }

    #[test]
    fn called_as_etcd_it_takes_what_envtest_and_kubeadm_pass() {
        let envtest = "/assets/etcd --advertise-client-urls=http://127.0.0.1:1 --data-dir=/d --listen-client-urls=http://127.0.0.1:1 \
                       --listen-peer-urls=http://localhost:0 --unsafe-no-fsync=true";
        let options = parse(envtest).unwrap();
        assert_eq!(options.unsafe_no_fsync, Some(true));
        options.judge().unwrap();
        let kubeadm = "etcd --advertise-client-urls=https://10.0.0.1:2379 --cert-file=c --client-cert-auth=true --data-dir=/var/lib/etcd \
                       --feature-gates=InitialCorruptCheck=true --initial-advertise-peer-urls=https://10.0.0.1:2380 \
                       --initial-cluster=n=https://10.0.0.1:2380 --key-file=k --listen-client-urls=https://127.0.0.1:2379,https://10.0.0.1:2379 \
                       --listen-metrics-urls=http://127.0.0.1:2381 --listen-peer-urls=https://10.0.0.1:2380 --name=n --peer-cert-file=c \
                       --peer-client-cert-auth=true --peer-key-file=k --peer-trusted-ca-file=a --snapshot-count=10000 --trusted-ca-file=a \
                       --watch-progress-notify-interval=5s";
        let options = parse(kubeadm).unwrap();
        options.judge().unwrap();
        let told = options.serve_options().unwrap();
        assert_eq!(told.progress_interval, Duration::from_secs(5));
        assert_eq!((told.client_urls.len(), told.peer_urls.len(), &*told.name), (1, 1, "n"));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_its_name() {
        for (flags, named) in [
            (
                "--initial-cluster default=http://a:1,other=http://b:1",
                "--initial-cluster",
            ),
            ("--initial-cluster-state existing", "--initial-cluster-state"),
            ("--quota-backend-bytes 1", "--quota-backend-bytes"),
            ("--auto-compaction-retention 1", "--auto-compaction-retention"),
            ("--discovery http://d", "--discovery"),
            ("--force-new-cluster", "--force-new-cluster"),
            ("--feature-gates Other=true", "--feature-gates"),
            ("--client-cert-auth", "--trusted-ca-file"),
            ("--cert-file c", "--key-file"),
            (
                "--cert-file c --key-file k --trusted-ca-file a --client-cert-auth=false",
                "--client-cert-auth",
            ),
        ] {
            let refused = parse(&format!("etcd {flags}")).and_then(|options| options.judge());
            let refused = refused.expect_err(flags).to_string();
            assert!(refused.contains(named), "{flags}: {refused}");
        }
    }
}
