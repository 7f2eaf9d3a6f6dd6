//! The controllers alone, against any server: for trying, and for telling faults of theirs from faults of others'. Each acts under
//! its own name, so that it shows whether its role suffices.
//!
//! `cargo run -p keelson-controllers --example controllers -- KUBECONFIG [NAME|-NAME ...]`

use keelson_client::KubeconfigFactory;
use keelson_controllers::Config;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let mut args = std::env::args().skip(1);
    let Some(kubeconfig) = args.next().map(PathBuf::from) else {
        anyhow::bail!("which kubeconfig?")
    };
    let mut controllers: Vec<String> = args.collect();
    if controllers.is_empty() {
        controllers.push("*".into());
    }
    let clients = Arc::new(KubeconfigFactory::impersonating(&kubeconfig).await?);
    let stop = CancellationToken::new();
    let signal = stop.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            signal.cancel();
        }
    });
    let config = Config {
        controllers,
        root_ca_pem: "-".into(),
        ..Config::default()
    };
    keelson_controllers::run(clients, config, stop).await
}
