//! The kubelet alone, beside any API server and any CRI runtime: `kubelet KEY=VALUE…`, see `main` for the keys.
//! It is how a fault is located: with upstream's API server and containerd around it, what fails is the kubelet's.
#![allow(clippy::print_stderr)]

use anyhow::Context;
use keelson_kubelet::configuration::Document;
use keelson_kubelet::{Config, ServingTls};
use std::collections::HashMap;
use std::path::Path;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .init();
    let options: HashMap<String, String> = std::env::args()
        .skip(1)
        .filter_map(|a| a.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
        .collect();
    let need = |key: &str| options.get(key).cloned().with_context(|| format!("{key}=… is missing"));
    let list = |key: &str| {
        options
            .get(key)
            .map(|v| v.split(',').map(str::to_owned).collect())
            .unwrap_or_default()
    };
    let client = keelson_client::from_kubeconfig(Path::new(&need("kubeconfig")?), None).await?;
    let cri = keelson_cri::CriClients::connect(&need("runtime")?).await?;
    let read =
        |key: &str| -> anyhow::Result<Vec<u8>> { std::fs::read(need(key)?).with_context(|| format!("reading {key}")) };
    let mut cfg = Config {
        node_name: need("name")?,
        node_ips: list("ip"),
        cluster_dns: list("dns"),
        cgroup_root: options.get("cgroup-root").cloned().unwrap_or_else(|| "/".into()),
        static_pod_path: options.get("manifests").map(Into::into),
        tls: Some(ServingTls::fixed(&read("cert")?, &read("key")?, read("client-ca")?)?),
        image_gc_high_percent: 100,
        ..Config::default()
    };
    let mut said = Document::default();
    said.flag("eviction-hard", "nodefs.available<1%,memory.available<100Mi")
        .and_then(|()| said.apply(&mut cfg))
        .map_err(anyhow::Error::msg)?;
    let stop = CancellationToken::new();
    let on_signal = stop.clone();
    tokio::spawn(async move {
        if let Ok(mut term) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            term.recv().await;
        }
        on_signal.cancel();
    });
    keelson_kubelet::run(client, cri, cfg, stop).await
}
