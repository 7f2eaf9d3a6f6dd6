//! The scheduler alone, against the cluster of a kubeconfig, for trying: `cargo run -p keelson-scheduler --example scheduler -- FILE`

use keelson_client::from_kubeconfig;
use keelson_scheduler::{Config, run};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let path = std::env::args()
        .nth(1)
        .ok_or_else(|| anyhow::anyhow!("which kubeconfig?"))?;
    let client = from_kubeconfig(path.as_ref(), None).await?;
    let stop = CancellationToken::new();
    let signal = stop.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            signal.cancel();
        }
    });
    run(client, Config::default(), stop).await
}
