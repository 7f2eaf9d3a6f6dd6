//! POST to a collection.

use super::body::{self, Expected};
use super::{Call, Served, negotiate, respond};
use crate::traces;
use http::StatusCode;

pub async fn serve(call: Call<'_>) -> Served {
    let mut cx = call.cx();
    let format = negotiate::input(call.content_type().as_deref(), call.def.custom)?;
    let bytes = call.body.clone();
    call.write_options(&mut cx, "CreateOptions", false)?;
    let expected = Expected {
        kind: &call.def.gvk(),
        schema: &call.def.schema,
        strategy: Some(call.def.strategy.as_ref()),
        custom: call.def.custom,
    };
    let result = async {
        let object = body::decode(&cx, &bytes, format, &expected)?;
        call.state
            .engine
            .create(&cx, call.state.admission.as_ref(), object)
            .await
    }
    .await;
    call.gathered(&cx);
    let object = result?;
    if call.def.is("", "pods") && !cx.dry_run {
        traces::created(call.state, call.context, &object);
    }
    Ok(respond::object(
        StatusCode::CREATED,
        call.out,
        &call.def,
        &call.def.schema,
        object,
        call.include_object(),
    )?)
}
