//! An API server alone, on loopback, over a store in memory or in a directory: for trying and for measuring.
//!
//! `cargo run -p keelson-apiserver --example dev -- [--dir DIR] [--port PORT] [--memory]`
//! Writes `DIR/admin.conf` (default directory: `/tmp/keelson-dev`).

use anyhow::{Context, Result};
use keelson_apiserver::serve::tls::ServingCert;
use keelson_apiserver::{ApiServer, Config};
use keelson_pki::{Pki, San};
use keelson_store::embedded::Options;
use keelson_store::{Embedded, Memory, Store};
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

struct Args {
    dir: PathBuf,
    port: u16,
    memory: bool,
}

fn args() -> Result<Args> {
    let mut args = Args {
        dir: "/tmp/keelson-dev".into(),
        port: 16443,
        memory: false,
    };
    let mut given = std::env::args().skip(1);
    while let Some(arg) = given.next() {
        match arg.as_str() {
            "--dir" => args.dir = given.next().context("--dir needs a directory")?.into(),
            "--port" => args.port = given.next().context("--port needs a number")?.parse()?,
            "--memory" => args.memory = true,
            other => anyhow::bail!("unknown argument {other}"),
        }
    }
    Ok(args)
}

#[tokio::main]
async fn main() -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let args = args()?;
    let began = std::time::Instant::now();
    let store: Arc<dyn Store> = if args.memory {
        Memory::new()
    } else {
        Embedded::open(args.dir.join("store"), Options::default()).await?
    };
    let pki = Pki::open(&args.dir)?;
    let server = format!("https://127.0.0.1:{}", args.port);
    let kubeconfig = args.dir.join("admin.conf");
    pki.admin_kubeconfig(&kubeconfig, &server)?;
    let serving = pki.apiserver([10, 96, 0, 1].into(), "cluster.local", &[San::parse("127.0.0.1")])?;
    let cert = ServingCert::new(&serving.cert_pem, &serving.key_pem)?;
    let config = Config {
        advertise_port: args.port,
        ..Config::from_pki(pki)?
    };
    let api = ApiServer::new(config, store)?;
    let socket = tokio::net::TcpListener::bind(("127.0.0.1", args.port)).await?;
    let stop = CancellationToken::new();
    let signal = stop.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            signal.cancel();
        }
    });
    let told = async {
        api.ready().await;
        eprintln!("ready after {:?}; KUBECONFIG={}", began.elapsed(), kubeconfig.display());
        std::future::pending::<()>().await;
    };
    tokio::select! {
        served = api.serve(socket, cert, stop) => served?,
        () = told => {}
    }
    api.shutdown();
    Ok(())
}
