//! Leases, as a client of etcd has them.

use crate::front::Front;
use keelson_store::serve::pb::kv_client::KvClient;
use keelson_store::serve::pb::lease_client::LeaseClient;
use keelson_store::serve::pb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest,
};
use keelson_store::{Embedded, Memory, Store, Transact, embedded};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::transport::Channel;

struct Clients {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    _front: Front,
}

async fn clients(store: Arc<dyn Transact>) -> Clients {
    let front = Front::of(store).await;
    let channel = Channel::from_shared(front.url.clone())
        .unwrap()
        .connect()
        .await
        .unwrap();
    Clients {
        kv: KvClient::new(channel.clone()),
        lease: LeaseClient::new(channel),
        _front: front,
    }
}

impl Clients {
    async fn put(&mut self, key: &'static str, lease: i64) {
        let request = PutRequest {
            key: key.into(),
            value: "1".into(),
            lease,
            ..Default::default()
        };
        self.kv.put(request).await.unwrap();
    }
    async fn has(&mut self, key: &'static str) -> bool {
        let request = RangeRequest {
            key: key.into(),
            ..Default::default()
        };
        self.kv.range(request).await.unwrap().into_inner().count == 1
    }
    async fn grant(&mut self, id: i64, ttl: i64) {
        self.lease.lease_grant(LeaseGrantRequest { ttl, id }).await.unwrap();
    }
    /// What is left, what was granted, and its keys.
    async fn left(&mut self, id: i64) -> (i64, i64, Vec<String>) {
        let told = self
            .lease
            .lease_time_to_live(LeaseTimeToLiveRequest { id, keys: true })
            .await;
        let told = told.unwrap().into_inner();
        let keys = told.keys.iter().map(|k| String::from_utf8(k.to_vec()).unwrap());
        (told.ttl, told.granted_ttl, keys.collect())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_renewed_lives_and_its_keys_go_together_with_it() {
    let store = Memory::new();
    let mut clients = clients(store.clone()).await;
    clients.grant(7, 2).await;
    for key in ["/a", "/b", "/c"] {
        clients.put(key, 7).await;
    }
    clients.put("/c", 0).await;
    assert_eq!(clients.left(7).await.2, ["/a", "/b"]);
    let asks = tokio_stream::iter((0..8).map(|_| LeaseKeepAliveRequest { id: 7 }));
    let slowly = tokio_stream::StreamExt::throttle(asks, Duration::from_millis(500));
    let mut renewed = clients.lease.lease_keep_alive(slowly).await.unwrap().into_inner();
    while let Some(answer) = renewed.message().await.unwrap() {
        assert_eq!(answer.ttl, 2);
    }
    assert!(clients.has("/a").await, "twice its time later");
    let before = store.current_revision().await.unwrap();
    let begun = Instant::now();
    while clients.has("/a").await {
        assert!(begun.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!clients.has("/b").await && clients.has("/c").await);
    assert_eq!(store.current_revision().await.unwrap(), before + 1, "in one change");
    assert_eq!(clients.left(7).await, (-1, 0, vec![]));
}

/// As in etcd a lease has all of its time again after a start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_and_their_keys_outlive_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let open = async || {
        Embedded::open(directory.path(), embedded::Options::default())
            .await
            .unwrap()
    };
    let store = open().await;
    let mut before = clients(store.clone()).await;
    before.grant(7, 100).await;
    before.grant(8, 2).await;
    before.put("/a", 7).await;
    before.put("/b", 8).await;
    before.put("/b", 7).await;
    before.put("/c", 8).await;
    let digest = store.digest(None).await.unwrap();
    drop(before);
    store.close().await.unwrap();
    drop(store);
    let store = open().await;
    assert_eq!(store.digest(None).await.unwrap(), digest);
    let mut after = clients(store.clone()).await;
    let (left, granted, keys) = after.left(7).await;
    assert!(left > 90 && granted == 100);
    assert_eq!(keys, ["/a", "/b"]);
    let begun = Instant::now();
    while after.has("/c").await {
        assert!(begun.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(after.has("/b").await);
    after.lease.lease_revoke(LeaseRevokeRequest { id: 7 }).await.unwrap();
    assert!(!after.has("/a").await && !after.has("/b").await);
    let refused = after
        .lease
        .lease_revoke(LeaseRevokeRequest { id: 7 })
        .await
        .unwrap_err();
    assert_eq!(refused.message(), "etcdserver: requested lease not found");
    store.close().await.unwrap();
}
