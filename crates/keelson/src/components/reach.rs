//! How a component alone reaches the cluster.

use anyhow::Context;
use clap::Args;
use keelson_client::{ClientFactory, KubeconfigFactory, Telling};
use keelson_measure::Measures;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Args, Clone, Debug)]
pub struct Reach {
    /// Where the API server is, whose certificate is trusted, and who this is: a client certificate or a token
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
}

impl Reach {
    /// All act as the file's user. Must be called within a tokio runtime.
    pub async fn clients(&self) -> anyhow::Result<Arc<dyn ClientFactory>> {
        let clients = KubeconfigFactory::new(&self.kubeconfig).await.context("--kubeconfig")?;
        Ok(Arc::new(clients))
    }

    /// Where a component counts, and what its page tells.
    pub async fn telling(&self) -> anyhow::Result<Telling> {
        let measures = Measures::default();
        keelson_apiserver::version::tell(&measures);
        let host = self.host().await?;
        Ok(Telling { measures, host })
    }

    /// `host:port` of the API server.
    pub async fn host(&self) -> anyhow::Result<String> {
        keelson_client::host(&self.kubeconfig).await.context("--kubeconfig")
    }

    pub async fn client(&self) -> anyhow::Result<kube::Client> {
        Ok(self.clients().await?.client(""))
    }
}
