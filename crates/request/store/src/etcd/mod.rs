//! The store over etcd: what kube-apiserver keeps its objects in, reached as kube-apiserver reaches it.
//!
//! * A write is one transaction: compare the key's revision, then write, else read what is there. So the same keys can be
//!   written by servers of both kinds at once.
//! * A write whose answer got lost is reconciled by reading, where reading can tell ([`reconcile`]); otherwise it is reported
//!   as of unknown outcome, in etcd's words where there are any.
//! * Reads are linearizable, so that any member may be asked.
//! * What etcd refuses it refuses in its own words ([`Error::Answered`]), which the API passes on.
//!
//! The store knows nothing of members being added, of alarms or of disks: that is for whoever runs etcd ([`Cluster`]).

mod call;
mod cluster;
mod lease;
mod members;
mod picture;
mod reconcile;
mod txn;
mod watch;
pub(crate) mod wire;

pub(crate) use wire::mvccpb;

use crate::{
    Error, Expect, Got, KeyRange, ListRequest, Listed, Outcome, Result, Revision, Store, StoreStatus, WatchStream,
};
use async_trait::async_trait;
use bytes::Bytes;
use call::Failure;
use futures::FutureExt;
use lease::Leases;
use members::Members;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_rustls::rustls::ClientConfig;
use watch::EtcdWatch;
use wire::etcdserverpb::kv_client::KvClient;
use wire::etcdserverpb::maintenance_client::MaintenanceClient;
use wire::etcdserverpb::{CompactionRequest, RangeRequest, RangeResponse, StatusRequest, StatusResponse, TxnRequest};
use wire::{at, bounds, key_value, number};

pub use cluster::{Alarm, Cluster, Member, Standing};

/// How etcd is reached.
#[derive(Clone)]
pub struct Options {
    /// `http://host:port` or `https://host:port` of its members.
    pub endpoints: Vec<String>,
    /// Whom to trust, and this side's certificate; for `https` members.
    pub tls: Option<Arc<ClientConfig>>,
    /// After so long without an answer etcd counts as ill.
    pub health_within: Duration,
    /// The key whose reading tells whether etcd is well; it needs not to exist.
    pub health_key: Bytes,
}

impl Options {
    /// Upstream's time, and its key under the usual prefix.
    pub fn new(endpoints: Vec<String>) -> Options {
        Options {
            endpoints,
            tls: None,
            health_within: Duration::from_secs(2),
            health_key: Bytes::from_static(b"/registry/health"),
        }
    }
}

/// Older ones report a watch's progress before its events, or for another watch (etcd issues 15220 and 17529).
const OLDEST: [u64; 3] = [3, 5, 13];

pub struct Etcd {
    members: Members,
    leases: Leases,
    options: Options,
    /// When etcd was last asked whether it is well, and what came of it.
    health: Mutex<Option<(Instant, Result<()>)>>,
    /// As many others hold it as there are watches.
    watches: Arc<()>,
}

impl Etcd {
    /// Connects; fails if no member answers within `call::ANSWER_WITHIN`, or if it is too old. Needs a tokio runtime.
    pub async fn open(options: Options) -> Result<Arc<Etcd>> {
        let etcd = Etcd {
            members: Members::new(&options.endpoints, options.tls.as_ref())?,
            leases: Leases::default(),
            options,
            health: Mutex::default(),
            watches: Arc::default(),
        };
        let version = etcd.ask_status().await?.version;
        if !new_enough(&version) {
            let [major, minor, patch] = OLDEST;
            return Err(Error::Invalid {
                what: format!(
                    "etcd {version} doesn't report the progress of watches reliably; {major}.{minor}.{patch} is the oldest that does"
                ),
            });
        }
        tracing::info!(version, endpoints = ?etcd.options.endpoints, "the store is etcd");
        Ok(Arc::new(etcd))
    }

    async fn ask_status(&self) -> Result<StatusResponse> {
        let send = |channel| async move { MaintenanceClient::new(channel).status(StatusRequest {}).await }.boxed();
        call::read(&self.members, send).await.map_err(Failure::plain)
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Failure> {
        self.range_within(request, call::ANSWER_WITHIN).await
    }

    async fn range_within(&self, request: RangeRequest, within: Duration) -> Result<RangeResponse, Failure> {
        call::read_within(&self.members, within, |channel| {
            let request = request.clone();
            async move {
                let mut client = KvClient::new(channel).max_decoding_message_size(usize::MAX);
                client.range(request).await
            }
            .boxed()
        })
        .await
    }

    /// One key, now or then.
    async fn read(&self, key: &[u8], revision: Option<Revision>) -> Result<Got> {
        let request = RangeRequest {
            key: Bytes::copy_from_slice(key),
            limit: 1,
            revision: revision.map_or(0, number),
            ..Default::default()
        };
        let found = match self.range(request).await {
            Ok(found) => found,
            Err(failure) => return Err(self.told(failure, revision.unwrap_or_default()).await),
        };
        Ok(Got {
            revision: at(found.header.as_ref())?,
            kv: found.kvs.into_iter().next().map(key_value),
            is_stale: false,
        })
    }

    async fn transaction(&self, request: TxnRequest) -> Result<Outcome, Failure> {
        let send = |channel| {
            let request = request.clone();
            async move {
                let mut client = KvClient::new(channel).max_decoding_message_size(usize::MAX);
                client.txn(request).await
            }
            .boxed()
        };
        let answer = call::write(&self.members, send).await?;
        txn::outcome(answer).map_err(Failure::Unsure)
    }

    /// What a failed read of revision `asked` means. etcd doesn't say what it has instead: that is asked for.
    async fn told(&self, failure: Failure, asked: Revision) -> Error {
        let more = match failure {
            Failure::Compacted => self
                .compacted()
                .await
                .map(|compact_revision| Error::Compacted { compact_revision }),
            Failure::Future => self
                .current_revision()
                .await
                .map(|current| Error::FutureRevision { asked, current }),
            other => return other.plain(),
        };
        more.unwrap_or_else(|error| error)
    }

    async fn compacted(&self) -> Result<Revision> {
        let until = Instant::now() + call::ANSWER_WITHIN;
        let picked = self.members.pick(until).await?;
        match tokio::time::timeout_at(until, watch::compacted(picked)).await {
            Ok(answer) => answer.map_err(Failure::plain),
            Err(_) => Err(stalled("how far its past has been compacted")),
        }
    }
}

/// `1.2.3`, or with something after a hyphen.
fn new_enough(version: &str) -> bool {
    let numbers = version.split('-').next().unwrap_or_default();
    let numbers: Vec<u64> = numbers.split('.').filter_map(|part| part.parse().ok()).collect();
    numbers.as_slice() >= OLDEST.as_slice()
}

fn stalled(what: &str) -> Error {
    Error::Stalled {
        what: format!("etcd didn't tell {what}"),
    }
}

#[async_trait]
impl Store for Etcd {
    async fn get(&self, key: &[u8], revision: Option<Revision>) -> Result<Got> {
        crate::check_key(key)?;
        self.read(key, revision).await
    }

    async fn list(&self, request: ListRequest) -> Result<Listed> {
        let (key, range_end) = bounds(&request.range);
        let range = RangeRequest {
            key,
            range_end,
            limit: i64::try_from(request.limit).unwrap_or(i64::MAX),
            revision: request.revision.map_or(0, number),
            ..Default::default()
        };
        let found = match self.range(range).await {
            Ok(found) => found,
            Err(failure) => return Err(self.told(failure, request.revision.unwrap_or_default()).await),
        };
        let current = at(found.header.as_ref())?;
        Ok(Listed {
            count: wire::revision(found.count),
            more: found.more,
            revision: request.revision.unwrap_or(current),
            kvs: found.kvs.into_iter().map(key_value).collect(),
        })
    }

    async fn put(&self, key: Bytes, value: Bytes, expected: Expect, ttl: Option<Duration>) -> Result<Outcome> {
        crate::check_key(&key)?;
        let mut renewed = false;
        loop {
            let lease = match ttl {
                Some(ttl) => self.leases.take(&self.members, ttl).await.map_err(Failure::plain)?,
                None => 0,
            };
            match self.transaction(txn::put(&key, &value, expected, lease)).await {
                Ok(outcome) => return Ok(outcome),
                // etcd's clock ran ahead of ours, or somebody revoked it.
                Err(Failure::NoLease) if !renewed => {
                    self.leases.forget(lease).await;
                    renewed = true;
                }
                Err(Failure::Unsure(error)) => return reconcile::put(self, &key, &value, expected, lease, error).await,
                Err(failure) => return Err(failure.plain()),
            }
        }
    }

    async fn delete(&self, key: Bytes, expected: Expect) -> Result<Outcome> {
        crate::check_key(&key)?;
        let outcome = self.transaction(txn::delete(&key, expected)).await;
        outcome.map_err(Failure::plain)
    }

    async fn watch(&self, range: KeyRange, after: Revision) -> Result<WatchStream> {
        // Whether it can begin there: etcd would say so only later, and of the future nothing.
        if after > 0 {
            self.read(&self.options.health_key, Some(after)).await?;
        }
        let until = Instant::now() + call::ANSWER_WITHIN;
        loop {
            let picked = self.members.pick(until).await?;
            let opened = EtcdWatch::open(picked, &range, after, self.watches.clone());
            match tokio::time::timeout_at(until, opened).await {
                Ok(Ok(watch)) => return Ok(Box::new(watch)),
                Ok(Err(Failure::Unsent(error))) if error.is_transient() && Instant::now() + call::PAUSE < until => {
                    tokio::time::sleep(call::PAUSE).await;
                }
                Ok(Err(failure)) => return Err(self.told(failure, after).await),
                Err(_) => return Err(stalled("whether a watch has begun")),
            }
        }
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        let request = CompactionRequest {
            revision: number(revision),
            physical: false,
        };
        let send = |channel| async move { KvClient::new(channel).compact(request).await }.boxed();
        match call::write(&self.members, send).await {
            Ok(_) => Ok(()),
            Err(failure) => Err(self.told(failure, revision).await),
        }
    }

    async fn current_revision(&self) -> Result<Revision> {
        let request = RangeRequest {
            key: self.options.health_key.clone(),
            count_only: true,
            ..Default::default()
        };
        let answer = self.range(request).await.map_err(Failure::plain)?;
        at(answer.header.as_ref())
    }

    async fn status(&self) -> Result<StoreStatus> {
        let status = self.ask_status().await?;
        Ok(StoreStatus {
            revision: self.current_revision().await?,
            compact_revision: self.compacted().await?,
            bytes: wire::revision(status.db_size),
            watchers: Arc::strong_count(&self.watches) - 1,
        })
    }

    /// As upstream: a key is read, no more often than twice in the time that it may take; between, the last answer counts.
    async fn health(&self) -> Result<()> {
        let mut known = self.health.lock().await;
        let within = self.options.health_within;
        if let Some((asked, answer)) = &*known
            && asked.elapsed() < within / 2
        {
            return answer.clone();
        }
        let asked = Instant::now();
        let request = RangeRequest {
            key: self.options.health_key.clone(),
            ..Default::default()
        };
        let answer = match self.range_within(request, within).await {
            Ok(_) => Ok(()),
            Err(failure) => Err(failure.plain()),
        };
        *known = Some((asked, answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for good in ["3.5.13", "3.7.3", "4.0.0-rc.1", "3.10.0"] {
            assert!(new_enough(good), "{good}");
        }
        for old in ["3.5.12", "3.4.99", "2.3.8", ""] {
            assert!(!new_enough(old), "{old}");
        }
    }
}
