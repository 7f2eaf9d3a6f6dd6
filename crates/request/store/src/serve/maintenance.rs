//! How the store is, what it sums up to, and copies of it.

use super::header::TERM;
use super::pb::alarm_request::AlarmAction;
use super::pb::maintenance_server::Maintenance;
use super::pb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse, DowngradeInfo,
    DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest,
    MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
};
use super::{CLUSTER_VERSION, Server, VERSION, status};
use crate::{Digest, Error, Revision};
use bytes::Bytes;
use std::fs::File;
use std::io::Read;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// As etcd sends a snapshot; the sum behind it comes by itself.
const BLOB: usize = 32 << 10;
const SUM: u64 = 32;
const BLOBS: usize = 4;

impl Server {
    /// There is one alarm: that the disk is full. It is over when there is room, and nobody can raise it.
    async fn alarms(&self) -> Vec<AlarmMember> {
        match self.store.health().await {
            Err(Error::NoSpace { .. }) => vec![AlarmMember {
                member_id: self.member.id,
                alarm: AlarmType::Nospace.into(),
            }],
            _ => Vec::new(),
        }
    }

    async fn digest(&self, revision: Revision) -> Result<Digest, Status> {
        let asked = Some(revision).filter(|revision| *revision > 0);
        self.store.digest(asked).await.map_err(status::of)
    }
}

#[tonic::async_trait]
impl Maintenance for Server {
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        let alarms = match request.into_inner().action() {
            AlarmAction::Get => self.alarms().await,
            AlarmAction::Activate => return Err(status::never("an alarm tells how the disk is, and can't be raised")),
            AlarmAction::Deactivate => Vec::new(),
        };
        let header = self.header_now().await?;
        Ok(Response::new(AlarmResponse { header, alarms }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let told = self.store.status().await.map_err(status::of)?;
        let alarms = self.alarms().await;
        let told_of =
            |alarm: &AlarmMember| format!("memberID:{} alarm:{}", alarm.member_id, alarm.alarm().as_str_name());
        Ok(Response::new(StatusResponse {
            header: self.header(told.revision),
            version: VERSION.into(),
            db_size: told.bytes as i64,
            db_size_in_use: told.bytes as i64,
            leader: self.member.id,
            raft_index: told.revision,
            raft_applied_index: told.revision,
            raft_term: TERM,
            errors: alarms.iter().map(told_of).collect(),
            is_learner: false,
            storage_version: CLUSTER_VERSION.into(),
            db_size_quota: 0,
            downgrade_info: Some(DowngradeInfo::default()),
        }))
    }

    async fn defragment(&self, _: Request<DefragmentRequest>) -> Result<Response<DefragmentResponse>, Status> {
        self.store.defragment().await.map_err(status::of)?;
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    /// Of all that is stored now; etcd's is of its file, which nothing else has.
    async fn hash(&self, _: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        let digest = self.digest(0).await?;
        Ok(Response::new(HashResponse {
            header: self.header(digest.current),
            hash: digest.sum,
        }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        let asked = Revision::try_from(request.into_inner().revision).unwrap_or_default();
        let digest = self.digest(asked).await?;
        Ok(Response::new(HashKvResponse {
            header: self.header(digest.current),
            hash: digest.sum,
            compact_revision: match digest.compacted {
                0 => -1,
                compacted => compacted as i64,
            },
            hash_revision: digest.revision as i64,
        }))
    }

    type SnapshotStream = ReceiverStream<Result<SnapshotResponse, Status>>;

    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let Ok(place) = self.snapshots.clone().try_acquire_owned() else {
            return Err(status::too_many_snapshots());
        };
        let file = self.store.snapshot().await.map_err(status::of)?;
        let (blobs, stream) = mpsc::channel(BLOBS);
        tokio::task::spawn_blocking(move || {
            let _place = place;
            if let Err(error) = send(file, &blobs) {
                tracing::warn!(%error, "a snapshot couldn't be sent");
                let _ = blobs.blocking_send(Err(status::unhealthy()));
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn move_leader(&self, _: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        Err(status::bad_transferee())
    }

    async fn downgrade(&self, _: Request<DowngradeRequest>) -> Result<Response<DowngradeResponse>, Status> {
        Err(status::never("there is no older etcd that could read this store"))
    }
}

/// Ends when nobody reads any more, too.
fn send(mut file: File, blobs: &mpsc::Sender<Result<SnapshotResponse, Status>>) -> std::io::Result<()> {
    let len = file.metadata()?.len();
    let content = len.saturating_sub(SUM);
    let mut sent = 0;
    while sent < len {
        let end = if sent < content { content } else { len };
        let next = (end - sent).min(BLOB as u64);
        let mut blob = vec![0; next as usize];
        file.read_exact(&mut blob)?;
        sent += next;
        let response = SnapshotResponse {
            remaining_bytes: content.saturating_sub(sent),
            blob: Bytes::from(blob),
            version: CLUSTER_VERSION.into(),
            header: None,
        };
        if blobs.blocking_send(Ok(response)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
