//! `keelson console`: the cluster in a browser, by the rights of one's kubeconfig.

use crate::client::{block_on, kubeconfig};
use anyhow::{Context, ensure};
use clap::Args;
use keelson_console::{Cluster, Console, Guard};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub const AFTER_HELP: &str = "\
It prints an address with a token: open it in a browser of this machine. From another machine: ssh -L 8090:127.0.0.1:8090 MACHINE, and open the same address there.
What the console may do is what the kubeconfig's user may.";

#[derive(Args)]
pub struct Options {
    /// Where browsers reach it; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8090")]
    listen: SocketAddr,
    /// A further name by which browsers call it; needed beyond this machine; may be given several times
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
    /// Certificate (PEM) of those names; needed beyond this machine
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Kubeconfig of the cluster [default: $KUBECONFIG, or /var/lib/keelson/admin.kubeconfig]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context [default: its current one]
    #[arg(long)]
    context: Option<String>,
    /// Read the pages from this directory: for who changes them
    #[arg(long, value_name = "DIR", hide = true)]
    pages: Option<PathBuf>,
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    block_on(run(options))?;
    Ok(ExitCode::SUCCESS)
}

async fn run(options: Options) -> anyhow::Result<()> {
    let is_near = options.listen.ip().is_loopback();
    ensure!(
        is_near || (!options.hosts.is_empty() && options.tls_cert.is_some()),
        "{} can be reached from other machines, and whoever gets in has your rights: give --host NAME, --tls-cert and --tls-key; or leave the \
         console at 127.0.0.1 and reach it by ssh -L",
        options.listen
    );
    let path = kubeconfig(options.kubeconfig);
    let client = keelson_client::from_kubeconfig(&path, options.context.as_deref()).await?;
    let server = keelson_client::host(&path).await.unwrap_or_default();
    let socket = TcpListener::bind(options.listen).await.with_context(|| {
        format!(
            "the console can't listen on {}: is the port taken (ss -ltnp)? Give another --listen",
            options.listen
        )
    })?;
    let port = socket.local_addr()?.port();
    let tls = match (&options.tls_cert, &options.tls_key) {
        (Some(cert), Some(key)) => Some(certificate(cert, key)?),
        _ => None,
    };
    let guard = Guard::new(&names(options.listen.ip(), &options.hosts), port, tls.is_some());
    println!("{}", guard.address());
    let cluster = Cluster {
        client,
        server,
        context: options.context.unwrap_or_default(),
    };
    let stop = CancellationToken::new();
    let (mut interrupted, mut ended) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = ended.recv() => {}
        }
        stopped.cancel();
    });
    keelson_console::run(socket, tls, Console::new(cluster, guard, options.pages), stop).await
}

/// By which names it may be called; the first stands in the printed address.
fn names(address: IpAddr, hosts: &[String]) -> Vec<String> {
    let own = match address {
        IpAddr::V6(address) => format!("[{address}]"),
        IpAddr::V4(address) => address.to_string(),
    };
    let mut names = hosts.to_vec();
    if address.is_loopback() {
        names.extend([own, "localhost".into()]);
    }
    names
}

/// Browsers show no certificate, and WebSockets are HTTP/1.1's.
fn certificate(cert: &Path, key: &Path) -> anyhow::Result<Arc<rustls::ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.with_context(|| format!("reading the certificate {}", cert.display()))?;
    let own = PrivateKeyDer::from_pem_file(key).with_context(|| format!("reading the key {}", key.display()))?;
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, own)
        .with_context(|| format!("{} and {} are no pair", cert.display(), key.display()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_this_machine_it_wants_a_name_and_a_certificate() {
        let at = |listen: &str, more: &[&str]| {
            #[derive(clap::Parser)]
            struct Line {
                #[command(flatten)]
                options: Options,
            }
            let words = ["console", "--listen", listen, "--kubeconfig", "/nowhere"];
            let line = <Line as clap::Parser>::try_parse_from(words.iter().chain(more)).unwrap();
            main(line.options).unwrap_err().to_string()
        };
        for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
            assert!(at(listen, &[]).contains("--tls-cert"), "{listen}");
            assert!(at(listen, &["--host", "a.example"]).contains("--tls-cert"), "{listen}");
        }
        assert!(
            at("127.0.0.1:0", &[]).contains("/nowhere"),
            "the next thing it looks at"
        );
        assert_eq!(
            names("::1".parse().unwrap(), &["a.example".into()]),
            ["a.example", "[::1]", "localhost"]
        );
        assert_eq!(names("0.0.0.0".parse().unwrap(), &["a.example".into()]), ["a.example"]);
    }
}
