//! Random requests to etcd and to ours, over a store on disk and one in memory: the same answers, errors, events and sums.
//!
//! Masked is what is each server's own: who it is, raft's term, how much of a lease's time is left. Not drawn is where ours is known
//! to differ (docs/etcd.md).

use crate::front::Front;
use crate::server::Server;
use keelson_store::serve::pb::compare::TargetUnion;
use keelson_store::serve::pb::kv_client::KvClient;
use keelson_store::serve::pb::lease_client::LeaseClient;
use keelson_store::serve::pb::maintenance_client::MaintenanceClient;
use keelson_store::serve::pb::request_op::Request as Op;
use keelson_store::serve::pb::response_op::Response as Done;
use keelson_store::serve::pb::watch_client::WatchClient;
use keelson_store::serve::pb::watch_request::RequestUnion;
use keelson_store::serve::pb::{
    CompactionRequest, Compare, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest, LeaseLeasesRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader,
    TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest,
};
use keelson_store::{Embedded, Memory, Transact, embedded};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Response, Status};

const STEPS: usize = 1500;

#[derive(Clone, Debug)]
enum Ask {
    Range(RangeRequest),
    Stream(RangeRequest),
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    Grant(LeaseGrantRequest),
    Revoke(LeaseRevokeRequest),
    TimeToLive(LeaseTimeToLiveRequest),
    Leases,
    Hash(HashKvRequest),
    Watch(WatchCreateRequest, i64),
}

struct Side {
    channel: Channel,
}

fn header(header: &mut Option<ResponseHeader>) {
    if let Some(header) = header {
        (header.cluster_id, header.member_id, header.raft_term) = (0, 0, 0);
    }
}

/// An answer as text, without what is each server's own.
fn shown<T: std::fmt::Debug>(answer: Result<Response<T>, Status>, mask: impl FnOnce(&mut T)) -> String {
    match answer {
        Ok(answer) => {
            let mut answer = answer.into_inner();
            mask(&mut answer);
            format!("{answer:?}")
        }
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// What is equal in what is sorted by comes in no order of its own.
fn unordered(request: &RangeRequest, answer: &mut RangeResponse) {
    if request.sort_target != 0 {
        answer.kvs.sort_by(|a, b| a.key.cmp(&b.key));
    }
}

fn txn(request: &TxnRequest, answer: &mut TxnResponse) {
    let ops = if answer.succeeded {
        &request.success
    } else {
        &request.failure
    };
    for (op, response) in ops.iter().zip(&mut answer.responses) {
        match (op.request.as_ref(), response.response.as_mut()) {
            (Some(Op::RequestRange(request)), Some(Done::ResponseRange(answer))) => unordered(request, answer),
            (Some(Op::RequestTxn(request)), Some(Done::ResponseTxn(answer))) => txn(request, answer),
            _ => {}
        }
    }
}

impl Side {
    async fn ask(&self, ask: &Ask) -> String {
        let channel = self.channel.clone();
        let mut kv = KvClient::new(channel.clone());
        let mut lease = LeaseClient::new(channel.clone());
        match ask.clone() {
            Ask::Range(request) => shown(kv.range(request.clone()).await, |a| {
                header(&mut a.header);
                unordered(&request, a);
            }),
            Ask::Stream(request) => match kv.range_stream(request).await {
                Ok(pieces) => pieces_shown(pieces.into_inner()).await,
                Err(status) => format!("{:?}: {}", status.code(), status.message()),
            },
            Ask::Put(request) => shown(kv.put(request).await, |a| header(&mut a.header)),
            Ask::Delete(request) => shown(kv.delete_range(request).await, |a| header(&mut a.header)),
            Ask::Txn(request) => shown(kv.txn(request.clone()).await, |a| {
                header(&mut a.header);
                txn(&request, a);
            }),
            Ask::Compact(request) => shown(kv.compact(request).await, |a| header(&mut a.header)),
            Ask::Grant(request) => shown(lease.lease_grant(request).await, |a| header(&mut a.header)),
            Ask::Revoke(request) => shown(lease.lease_revoke(request).await, |a| header(&mut a.header)),
            Ask::TimeToLive(request) => shown(lease.lease_time_to_live(request).await, |a| {
                header(&mut a.header);
                a.ttl = a.ttl.signum();
                a.keys.sort();
            }),
            Ask::Leases => shown(lease.lease_leases(LeaseLeasesRequest {}).await, |a| {
                header(&mut a.header);
                a.leases.sort_by_key(|lease| lease.id);
            }),
            Ask::Hash(request) => {
                let mut maintenance = MaintenanceClient::new(channel);
                shown(maintenance.hash_kv(request).await, |a| header(&mut a.header))
            }
            Ask::Watch(create, up_to) => watched(channel, create, up_to).await,
        }
    }
}

/// All that comes, however it is cut.
async fn pieces_shown(mut pieces: tonic::Streaming<keelson_store::serve::pb::RangeStreamResponse>) -> String {
    let (mut kvs, mut last) = (Vec::new(), None);
    loop {
        match pieces.message().await {
            Ok(Some(piece)) => {
                let mut answer = piece.range_response.unwrap();
                header(&mut answer.header);
                kvs.append(&mut answer.kvs);
                last = Some(answer);
            }
            Ok(None) => return format!("{kvs:?} {last:?}"),
            Err(status) => return format!("{:?}: {}", status.code(), status.message()),
        }
    }
}

/// Every event up to a revision, or how the watch ended.
async fn watched(channel: Channel, create: WatchCreateRequest, up_to: i64) -> String {
    let ask = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    // The request's side stays open: the stream would end with it.
    let asks = tokio_stream::StreamExt::chain(tokio_stream::iter([ask]), tokio_stream::pending());
    let mut answers = WatchClient::new(channel).watch(asks).await.unwrap().into_inner();
    let mut seen = Vec::new();
    loop {
        let next = tokio::time::timeout(Duration::from_secs(20), answers.message()).await;
        let answer = next
            .unwrap_or_else(|_| panic!("nothing more comes after {seen:?}"))
            .unwrap()
            .unwrap();
        if answer.canceled {
            return format!("{seen:?} then {} {:?}", answer.compact_revision, answer.cancel_reason);
        }
        for event in answer.events {
            let kv = event.kv.as_ref().unwrap();
            let ends = kv.mod_revision >= up_to;
            seen.push(format!("{event:?}"));
            if ends {
                return format!("{seen:?}");
            }
        }
    }
}

/// What is asked is drawn by the revision that the servers stand at, which both tell.
struct Draw {
    rng: StdRng,
    revision: i64,
    compacted: i64,
}

impl Draw {
    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }
    fn key(&mut self) -> bytes::Bytes {
        format!("k{}", self.rng.random_range(0..12)).into()
    }
    fn end(&mut self) -> bytes::Bytes {
        match self.rng.random_range(0..4) {
            0 => self.key(),
            1 => "\0".into(),
            2 => "l".into(),
            _ => "".into(),
        }
    }
    fn at(&mut self) -> i64 {
        match self.rng.random_range(0..10) {
            0 => self.rng.random_range(1..self.revision + 5),
            1..4 => self.rng.random_range(self.compacted.max(1)..=self.revision),
            _ => 0,
        }
    }
    fn lease(&mut self) -> i64 {
        [0, 0, 0, 1, 2, 3, 4][self.rng.random_range(0..7)]
    }

    fn put(&mut self) -> PutRequest {
        let ignore_value = self.chance(10);
        let ignore_lease = self.chance(10);
        let mut put = PutRequest {
            key: if self.chance(2) { "".into() } else { self.key() },
            value: self.rng.random_range(0..100u32).to_string().into(),
            lease: self.lease(),
            prev_kv: self.chance(50),
            ignore_value,
            ignore_lease,
        };
        // Sometimes both, which is refused.
        if ignore_value && self.chance(90) {
            put.value.clear();
        }
        if ignore_lease && self.chance(90) {
            put.lease = 0;
        }
        put
    }

    fn range(&mut self) -> RangeRequest {
        let mut range = RangeRequest {
            key: if self.chance(2) { "".into() } else { self.key() },
            range_end: self.end(),
            limit: self.rng.random_range(0..5),
            revision: self.at(),
            serializable: self.chance(50),
            keys_only: self.chance(20),
            count_only: self.chance(20),
            ..Default::default()
        };
        if self.chance(30) {
            let orders = if self.chance(10) { 5 } else { 3 };
            range.sort_order = self.rng.random_range(0..orders);
            range.sort_target = self.rng.random_range(0..5);
        }
        for bound in [
            &mut range.min_mod_revision,
            &mut range.max_mod_revision,
            &mut range.min_create_revision,
            &mut range.max_create_revision,
        ] {
            if self.rng.random_range(0..10) == 0 {
                *bound = self.rng.random_range(0..self.revision + 1);
            }
        }
        if range.sort_target != 0 {
            range.limit = 0;
        }
        range
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        DeleteRangeRequest {
            key: self.key(),
            range_end: if self.chance(70) { "".into() } else { self.key() },
            prev_kv: self.chance(50),
        }
    }

    fn compare(&mut self) -> Compare {
        let number = self.rng.random_range(0..self.revision + 2);
        let (target, union) = match self.rng.random_range(0..5) {
            0 => (0, TargetUnion::Version(number % 4)),
            1 => (1, TargetUnion::CreateRevision(number * i64::from(self.chance(50)))),
            2 => (2, TargetUnion::ModRevision(number * i64::from(self.chance(50)))),
            3 => (
                3,
                TargetUnion::Value(self.rng.random_range(0..100u32).to_string().into()),
            ),
            _ => (4, TargetUnion::Lease(self.lease())),
        };
        Compare {
            result: self.rng.random_range(0..4),
            target: if self.chance(5) { 3 } else { target },
            key: if self.chance(1) { "".into() } else { self.key() },
            target_union: if self.chance(5) { None } else { Some(union) },
            range_end: if self.chance(80) { "".into() } else { self.end() },
        }
    }

    fn ops(&mut self, depth: usize) -> Vec<RequestOp> {
        let op = |draw: &mut Draw| {
            let request = match draw.rng.random_range(0..10) {
                0..3 => Op::RequestRange(draw.range()),
                3..7 => Op::RequestPut(draw.put()),
                7..9 if depth == 0 => Op::RequestDeleteRange(draw.delete()),
                _ if depth < 2 => Op::RequestTxn(draw.txn(depth + 1)),
                _ => Op::RequestPut(draw.put()),
            };
            RequestOp { request: Some(request) }
        };
        (0..self.rng.random_range(0..4)).map(|_| op(self)).collect()
    }

    fn txn(&mut self, depth: usize) -> TxnRequest {
        TxnRequest {
            compare: (0..self.rng.random_range(0..3)).map(|_| self.compare()).collect(),
            success: self.ops(depth),
            failure: self.ops(depth),
        }
    }

    fn ask(&mut self) -> Ask {
        match self.rng.random_range(0..100) {
            0..25 => Ask::Put(self.put()),
            25..45 => Ask::Range(self.range()),
            45..48 => Ask::Stream(self.range()),
            48..55 => Ask::Delete(self.delete()),
            55..80 => Ask::Txn(self.txn(0)),
            80..82 => {
                let revision = self.rng.random_range(1..self.revision + 3);
                if revision <= self.revision {
                    self.compacted = self.compacted.max(revision);
                }
                Ask::Compact(CompactionRequest {
                    revision,
                    physical: true,
                })
            }
            // None ends while this runs: the moment at which a lease does is each server's own.
            82..87 => Ask::Grant(LeaseGrantRequest {
                ttl: [1000, 2000, 10_000_000_000][self.rng.random_range(0..3)],
                id: self.lease().max(1),
            }),
            87..89 => Ask::Revoke(LeaseRevokeRequest { id: self.lease() }),
            89..92 => Ask::TimeToLive(LeaseTimeToLiveRequest {
                id: self.lease().max(1),
                keys: self.chance(50),
            }),
            92 => Ask::Leases,
            // etcd remembers the sums that it made whenever it compacted; ours makes each anew, of what there is.
            93..97 => {
                let at = self.at();
                let revision = if at <= self.compacted { 0 } else { at };
                Ask::Hash(HashKvRequest { revision })
            }
            _ => Ask::Watch(self.watch(), self.revision),
        }
    }

    fn watch(&mut self) -> WatchCreateRequest {
        let start = match self.chance(20) {
            true => self.rng.random_range(1..self.compacted.max(2)),
            false => self.rng.random_range(self.compacted.max(2)..self.revision.max(2) + 1),
        };
        WatchCreateRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            start_revision: start,
            prev_kv: self.chance(50),
            ..Default::default()
        }
    }
}

async fn side(url: String) -> Side {
    let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
    Side { channel }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_requests_are_answered_as_etcd_answers_them() {
    let given = std::env::var("KEELSON_SEED").ok().and_then(|s| s.parse().ok());
    let seed: u64 = given.unwrap_or_else(|| rand::rng().random());
    println!("KEELSON_SEED={seed}");
    let directory = tempfile::tempdir().unwrap();
    let on_disk: Arc<dyn Transact> = Embedded::open(directory.path(), embedded::Options::default())
        .await
        .unwrap();
    let (server, disk, memory) = (
        Server::start(&[]).await,
        Front::of(on_disk).await,
        Front::of(Memory::new()).await,
    );
    let etcd = side(server.url()).await;
    let ours = [side(disk.url.clone()).await, side(memory.url.clone()).await];
    let mut draw = Draw {
        rng: StdRng::seed_from_u64(seed),
        revision: 1,
        compacted: 0,
    };
    for step in 0..STEPS {
        let ask = draw.ask();
        // The last change of a watch has to be there, and none made revision 1.
        if matches!(&ask, Ask::Watch(create, up_to) if create.start_revision > *up_to || *up_to < 2) {
            continue;
        }
        let wanted = etcd.ask(&ask).await;
        for (which, side) in ["disk", "memory"].iter().zip(&ours) {
            let got = side.ask(&ask).await;
            assert_eq!(got, wanted, "{which}, step {step} of seed {seed}: {ask:#?}");
        }
        let mut kv = KvClient::new(etcd.channel.clone());
        let now = kv.range(RangeRequest {
            key: "k".into(),
            ..Default::default()
        });
        draw.revision = now.await.unwrap().into_inner().header.unwrap().revision;
    }
    let hash = Ask::Hash(HashKvRequest::default());
    let wanted = etcd.ask(&hash).await;
    for side in &ours {
        assert_eq!(side.ask(&hash).await, wanted);
    }
}
