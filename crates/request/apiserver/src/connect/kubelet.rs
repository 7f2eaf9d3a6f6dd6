//! How a node's kubelet is reached: its address and port from the Node, and the certificate it knows this server by.

use super::dial::{ClientTls, Target};
use crate::serve::Loopback;
use keelson_api::{ApiError, ApiResult, Object, Value};
use parking_lot::RwLock;
use rustls::ClientConfig;
use std::sync::Arc;

const DEFAULT_PORT: i64 = 10250;

pub struct KubeletClient {
    tls: RwLock<Arc<ClientConfig>>,
    reader: Loopback,
    /// By which of its addresses a kubelet is reached, the first that it has.
    address_types: Vec<String>,
}

impl KubeletClient {
    /// `tls` proves this server to kubelets, and says whose certificates of theirs are taken.
    pub fn new(tls: Arc<ClientConfig>, reader: Loopback, address_types: Vec<String>) -> Self {
        KubeletClient {
            tls: RwLock::new(tls),
            reader,
            address_types,
        }
    }
    /// New connections prove themselves by a renewed certificate.
    pub fn replace(&self, tls: Arc<ClientConfig>) {
        *self.tls.write() = tls;
    }

    /// Host and port of a node's kubelet.
    pub fn endpoint(&self, node: &Object) -> ApiResult<(String, i64)> {
        endpoint(node, &self.address_types)
    }

    /// The kubelet of a node.
    pub async fn target(&self, node: &str) -> ApiResult<Target> {
        let found = self.reader.object(&format!("/api/v1/nodes/{node}")).await?;
        let node = found.ok_or_else(|| ApiError::not_found("", "nodes", node))?;
        let (host, port) = self.endpoint(&node)?;
        let config = self.tls.read().clone();
        let tls = ClientTls::to(config, &host).map_err(ApiError::internal)?;
        let address = join(&host, port);
        Ok(Target {
            host: address.clone(),
            address,
            tls: Some(tls),
        })
    }
}

fn endpoint(node: &Object, types: &[String]) -> ApiResult<(String, i64)> {
    let addresses = node.at(&["status", "addresses"]).and_then(Value::as_array);
    let of_type = |wanted: &str| {
        addresses.into_iter().flatten().find_map(|a| {
            (a.get("type")?.as_str()? == wanted).then(|| a.get("address")?.as_str().map(str::to_string))?
        })
    };
    let host = types.iter().find_map(|t| of_type(t)).ok_or_else(|| {
        ApiError::internal(format!(
            "no preferred addresses found; known addresses: [] (node {})",
            node.name()
        ))
    })?;
    let port = node
        .at(&["status", "daemonEndpoints", "kubeletEndpoint", "Port"])
        .and_then(Value::as_i64);
    Ok((host, port.filter(|p| *p > 0).unwrap_or(DEFAULT_PORT)))
}

/// `host:port`, with brackets around an IPv6 address.
pub fn join(host: &str, port: impl std::fmt::Display) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}
