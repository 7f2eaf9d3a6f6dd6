//! Leases: granted, renewed, ended, and told of.

use super::pb::lease_server::Lease;
use super::pb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
};
use super::{Server, status};
use crate::{LeaseId, Transaction, transact};
use std::pin::Pin;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

/// What etcd gives at least, and at most, in seconds.
const SHORTEST: i64 = 2;
const LONGEST: i64 = 9_000_000_000;

/// A lease's weight among what may queue.
const BYTES: usize = 64;

impl Server {
    async fn grant(&self, LeaseGrantRequest { ttl, id }: LeaseGrantRequest) -> Result<(LeaseId, i64), Status> {
        if ttl > LONGEST {
            return Err(status::lease_too_long());
        }
        let seconds = ttl.max(SHORTEST);
        let work = move |transaction: &mut Transaction<'_>| {
            let id = match id {
                0 => fresh(transaction),
                id => id,
            };
            let is_free = transaction.lease(id).is_none();
            if is_free {
                transaction.grant(id, seconds.unsigned_abs());
            }
            Ok(is_free.then_some(id))
        };
        let granted = transact::run(&*self.store, (BYTES, true, false), work).await;
        let id = granted.map_err(status::of)?.ok_or_else(status::lease_exists)?;
        Ok((id, seconds))
    }
}

/// A positive number that no lease has.
fn fresh(transaction: &Transaction<'_>) -> LeaseId {
    loop {
        let id = LeaseId::try_from(rand::random::<u64>() >> 1).unwrap_or_default();
        if id != 0 && transaction.lease(id).is_none() {
            return id;
        }
    }
}

#[tonic::async_trait]
impl Lease for Server {
    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        let (id, ttl) = self.grant(request.into_inner()).await?;
        Ok(Response::new(LeaseGrantResponse {
            header: self.header_now().await?,
            id,
            ttl,
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let id = request.into_inner().id;
        let work = move |transaction: &mut Transaction<'_>| transaction.revoke(id);
        let revoked = transact::run(&*self.store, (BYTES, false, false), work).await;
        match revoked.map_err(status::of)? {
            true => Ok(Response::new(LeaseRevokeResponse {
                header: self.header_now().await?,
            })),
            false => Err(status::lease_not_found()),
        }
    }

    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let server = self.clone();
        // One at a time: who doesn't read the answers isn't listened to.
        let answers = request.into_inner().then(move |request| {
            let server = server.clone();
            async move {
                let id = request?.id;
                // Before it is renewed: what is told is no later than that.
                let header = server.header_now().await?;
                let renewed = server.store.renew(id).await.map_err(status::of)?;
                let ttl = renewed.map_or(0, |seconds| seconds as i64);
                Ok(LeaseKeepAliveResponse { header, id, ttl })
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let mut told = LeaseTimeToLiveResponse {
            header: self.header_now().await?,
            id,
            ttl: -1,
            ..Default::default()
        };
        let leases = self.store.leases().await.map_err(status::of)?;
        if let Some(lease) = leases.into_iter().find(|lease| lease.id == id) {
            told.ttl = (lease.left_ms / 1000) as i64;
            told.granted_ttl = lease.seconds as i64;
            if keys {
                told.keys = self.store.attached(id).await.map_err(status::of)?;
            }
        }
        Ok(Response::new(told))
    }

    async fn lease_leases(&self, _: Request<LeaseLeasesRequest>) -> Result<Response<LeaseLeasesResponse>, Status> {
        let leases = self.store.leases().await.map_err(status::of)?;
        Ok(Response::new(LeaseLeasesResponse {
            header: self.header_now().await?,
            leases: leases.into_iter().map(|lease| LeaseStatus { id: lease.id }).collect(),
        }))
    }
}
