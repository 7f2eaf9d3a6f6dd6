//! GET of one object.

use super::{Call, Served, respond};
use keelson_api::ApiError;

pub async fn serve(call: Call<'_>) -> Served {
    if call.context.info.query.flag("export") {
        return Err(
            ApiError::bad_request("the export parameter, deprecated since v1.14, is no longer supported").into(),
        );
    }
    super::table::check_include(call.include_object())?;
    let cx = call.cx();
    let rv = call.context.info.query.get("resourceVersion").unwrap_or_default();
    let engine = &call.state.engine;
    let entry = engine.get_entry(&cx, rv).await?;
    let cache = engine.cache_of(&call.def)?;
    Ok(respond::entry(engine, &cache, call.out, &call.def, &entry, call.include_object()).await?)
}
