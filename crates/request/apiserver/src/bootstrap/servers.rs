//! Which servers the service `kubernetes` leads to: those that say so, each under a key that goes by itself when it isn't
//! renewed. As kube-apiserver does it, at its keys and times, so that servers of both kinds find each other.
//!
//! A server is announced once it is ready, and takes its leave before it stops listening. All servers of a cluster listen at
//! one port: the service has but one.

use super::{cluster, reconcile};
use crate::serve::Loopback;
use keelson_api::codec::proto;
use keelson_api::{ApiError, ApiResult, Map, Object, builtin, value};
use keelson_store::{Expect, KeyRange, ListRequest, Store};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

const PREFIX: &str = "/registry/masterleases/";
/// So long an announcement counts, and so often it is renewed.
const COUNTS: Duration = Duration::from_secs(15);
const RENEWED: Duration = Duration::from_secs(10);

/// This server among the others.
pub struct Servers {
    store: Arc<dyn Store>,
    loopback: Loopback,
    address: IpAddr,
    port: u16,
    /// Cancelled when it leaves; held while it announces, so that nothing is announced after that.
    left: CancellationToken,
    turn: Mutex<()>,
}

impl Servers {
    pub fn new(store: Arc<dyn Store>, loopback: Loopback, address: IpAddr, port: u16) -> Arc<Self> {
        Arc::new(Servers {
            store,
            loopback,
            address,
            port,
            left: CancellationToken::new(),
            turn: Mutex::default(),
        })
    }

    /// Until it leaves, for as long as it is polled.
    pub async fn run(&self) {
        loop {
            {
                let _turn = self.turn.lock().await;
                if self.left.is_cancelled() {
                    return;
                }
                if let Err(e) = self.announce().await {
                    tracing::warn!("announcing this server failed, trying again: {e}");
                }
            }
            tokio::select! {
                () = self.left.cancelled() => return,
                () = tokio::time::sleep(RENEWED) => {}
            }
        }
    }

    async fn announce(&self) -> ApiResult<()> {
        let value = announcement(self.address)?;
        let put = self
            .store
            .put(self.key().into(), value.into(), Expect::Any, Some(COUNTS));
        put.await.map_err(ApiError::internal)?;
        let all = self.announced().await?;
        // Its own at least is there: an empty list is a fault, and no reason to take everybody away.
        if all.is_empty() {
            return Err(ApiError::internal("no server is announced, not even this one"));
        }
        self.publish(&all).await
    }

    /// Takes what an earlier run left, while this one isn't ready.
    pub async fn not_yet(&self) -> ApiResult<()> {
        let _turn = self.turn.lock().await;
        let removed = self.store.delete(self.key().into(), Expect::Any).await;
        if removed.map_err(ApiError::internal)?.done().is_some() {
            self.publish(&self.announced().await?).await?;
        }
        Ok(())
    }

    /// Others take over from now on.
    pub async fn leave(&self) -> ApiResult<()> {
        self.left.cancel();
        self.not_yet().await
    }

    fn key(&self) -> String {
        format!("{PREFIX}{}", self.address)
    }

    async fn announced(&self) -> ApiResult<BTreeSet<String>> {
        let request = ListRequest::new(KeyRange::prefix(PREFIX)).uncounted();
        let listed = self.store.list(request).await.map_err(ApiError::internal)?;
        listed
            .kvs
            .iter()
            .filter_map(|kv| announced_by(&kv.value).transpose())
            .collect()
    }

    async fn publish(&self, addresses: &BTreeSet<String>) -> ApiResult<()> {
        let wanted = [
            cluster::endpoints(addresses, self.port),
            cluster::endpoint_slice(addresses, self.address.is_ipv4(), self.port),
        ];
        for object in wanted {
            let object = Object::try_from(object).map_err(|_| ApiError::internal("no object"))?;
            reconcile(&object, &self.loopback).await?;
        }
        Ok(())
    }
}

/// An Endpoints with the address, as kube-apiserver writes it.
fn announcement(address: IpAddr) -> ApiResult<Vec<u8>> {
    let mut object = Map::new();
    object.insert("apiVersion", "v1");
    object.insert("kind", "Endpoints");
    object.insert("metadata", Map::new());
    object.insert("subsets", vec![value!({"addresses": [{"ip": address.to_string()}]})]);
    let schema = builtin::builtin_kind_at("v1", "Endpoints").ok_or_else(no_schema)?;
    proto::encode(&object, &schema).map_err(ApiError::internal)
}

fn announced_by(bytes: &[u8]) -> ApiResult<Option<String>> {
    let schema = builtin::builtin_kind_at("v1", "Endpoints").ok_or_else(no_schema)?;
    let object = proto::open(bytes).and_then(|envelope| envelope.decode(&schema));
    let object = object.map_err(ApiError::internal)?;
    let first = |list: Option<&Vec<keelson_api::Value>>| list.and_then(|list| list.first().cloned());
    let subset = first(object.arr("subsets"));
    let address = subset.and_then(|subset| first(subset.get("addresses").and_then(keelson_api::Value::as_array)));
    Ok(address.and_then(|a| a.get("ip").and_then(keelson_api::Value::as_str).map(str::to_owned)))
}

fn no_schema() -> ApiError {
    ApiError::internal("no schema of Endpoints")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_read_as_it_was_written() {
        for address in ["10.0.0.7", "fd00::7"] {
            let written = announcement(address.parse().unwrap()).unwrap();
            assert!(written.starts_with(b"k8s\0"));
            assert_eq!(announced_by(&written).unwrap().as_deref(), Some(address));
        }
        assert!(announced_by(b"{}").is_err());
    }
}
