//! GET of a collection.

use super::{Call, Served, listing, watch};
use keelson_registry::options::ListOptions;

pub async fn serve(call: Call<'_>) -> Served {
    let options = ListOptions::from_query(&call.query())?;
    if options.watch {
        return watch::serve(call).await;
    }
    super::table::check_include(call.include_object())?;
    let cx = call.cx();
    let engine = &call.state.engine;
    let page = engine.list(&cx, &options).await?;
    let cache = engine.cache_of(&call.def)?;
    Ok(listing::list(engine, cache, call.out, &call.def, page, call.include_object()).await?)
}
