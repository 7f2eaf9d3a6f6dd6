//! What every stage of the server shares.

use crate::authn::{TokenAuthenticator, TokenIssuer};
use crate::authz::Authorizer;
use std::sync::Arc;

/// Handed to handlers with each request.
pub struct ServerState {
    pub authorizer: Arc<dyn Authorizer>,
    pub token_authenticator: Arc<dyn TokenAuthenticator>,
    pub token_issuer: Arc<dyn TokenIssuer>,
}
