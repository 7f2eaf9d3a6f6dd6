//! PUT of one object, or of a subresource that has its parent's form.

use super::body::{self, Expected};
use super::{Call, Served, negotiate, respond};
use http::StatusCode;
use keelson_registry::engine::Replace;

pub async fn serve(call: Call<'_>) -> Served {
    let mut cx = call.cx();
    let bytes = call.body.clone();
    call.write_options(&mut cx, "UpdateOptions", false)?;
    let format = negotiate::input(call.content_type().as_deref(), call.def.custom)?;
    let expected = Expected {
        kind: &call.def.gvk(),
        schema: &call.def.schema,
        strategy: Some(call.def.strategy.as_ref()),
        custom: call.def.custom,
    };
    let result = async {
        let mut object = body::decode(&cx, &bytes, format, &expected)?;
        keelson_registry::engine::warn_owners(&cx, &mut object, false);
        call.state
            .engine
            .update(&cx, call.state.admission.as_ref(), &Replace(object), false)
            .await
    }
    .await;
    call.gathered(&cx);
    let (object, created) = result?;
    let code = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok(respond::object(
        code,
        call.out,
        &call.def,
        &call.def.schema,
        object,
        call.include_object(),
    )?)
}
