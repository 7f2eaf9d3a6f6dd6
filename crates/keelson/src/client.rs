//! A client for commands that speak to a running cluster.

use anyhow::Context;
use std::future::Future;
use std::path::{Path, PathBuf};

/// The kubeconfig that a command was given, or the usual places.
pub fn kubeconfig(given: Option<PathBuf>) -> PathBuf {
    given
        .or_else(|| std::env::var_os("KUBECONFIG").map(PathBuf::from))
        .unwrap_or_else(admin_kubeconfig)
}

/// The administrator's, as a server writes it.
pub fn admin_kubeconfig() -> PathBuf {
    Path::new(crate::config::DEFAULT_DATA_DIR).join("admin.kubeconfig")
}

/// Runs a command's future on a small runtime.
pub fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(future)
}
