//! Members: this one, for ever.

use super::pb::cluster_server::Cluster;
use super::pb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
};
use super::{Server, status};
use tonic::{Request, Response, Status};

const ALONE: &str =
    "this store is on one machine and has one member; several servers share an etcd of their own (docs/etcd.md)";

impl Server {
    /// Of another member nothing is known; this one stays as it is.
    fn refused<T>(&self, id: u64) -> Result<T, Status> {
        match id == self.member.id {
            true => Err(status::never(ALONE)),
            false => Err(status::member_not_found()),
        }
    }
}

#[tonic::async_trait]
impl Cluster for Server {
    async fn member_list(&self, _: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        let member = Member {
            id: self.member.id,
            name: self.options.name.clone(),
            peer_ur_ls: self.options.peer_urls.clone(),
            client_ur_ls: self.options.client_urls.clone(),
            is_learner: false,
        };
        Ok(Response::new(MemberListResponse {
            header: self.header_now().await?,
            members: vec![member],
        }))
    }

    async fn member_add(&self, _: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        Err(status::never(ALONE))
    }
    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        self.refused(request.into_inner().id)
    }
    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        self.refused(request.into_inner().id)
    }
    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        self.refused(request.into_inner().id)
    }
}
