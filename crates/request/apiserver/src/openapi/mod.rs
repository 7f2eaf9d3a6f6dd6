//! `/openapi/v2` and `/openapi/v3`.
pub struct OpenApi;
impl OpenApi {
    pub fn new(_table: std::sync::Arc<keelson_registry::ResourceTable>) -> Self {
        OpenApi
    }
    pub async fn serve(
        &self,
        _server: &crate::state::ServerState,
        _context: &crate::request::RequestContext,
        _request: &crate::request::Request,
    ) -> Option<crate::request::Response> {
        None
    }
}
