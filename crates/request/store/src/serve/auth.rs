//! Users and roles: off, with none kept. What would make or change some is unknown here, and refused as such.

use super::pb::auth_server::Auth;
use super::pb::{
    AuthDisableRequest, AuthDisableResponse, AuthRoleListRequest, AuthRoleListResponse, AuthStatusRequest,
    AuthStatusResponse, AuthUserListRequest, AuthUserListResponse, AuthenticateRequest, AuthenticateResponse,
};
use super::{Server, status};
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl Auth for Server {
    async fn auth_status(&self, _: Request<AuthStatusRequest>) -> Result<Response<AuthStatusResponse>, Status> {
        Ok(Response::new(AuthStatusResponse {
            header: self.header_now().await?,
            enabled: false,
            auth_revision: 1,
        }))
    }
    async fn auth_disable(&self, _: Request<AuthDisableRequest>) -> Result<Response<AuthDisableResponse>, Status> {
        let header = self.header_now().await?;
        Ok(Response::new(AuthDisableResponse { header }))
    }
    async fn authenticate(&self, _: Request<AuthenticateRequest>) -> Result<Response<AuthenticateResponse>, Status> {
        Err(status::no_auth())
    }
    async fn user_list(&self, _: Request<AuthUserListRequest>) -> Result<Response<AuthUserListResponse>, Status> {
        Ok(Response::new(AuthUserListResponse {
            header: self.header_now().await?,
            users: Vec::new(),
        }))
    }
    async fn role_list(&self, _: Request<AuthRoleListRequest>) -> Result<Response<AuthRoleListResponse>, Status> {
        Ok(Response::new(AuthRoleListResponse {
            header: self.header_now().await?,
            roles: Vec::new(),
        }))
    }
}
