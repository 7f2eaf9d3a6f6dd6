//! PATCH of one object, or of a subresource that has its parent's form: JSON, merge, strategic merge, apply.

use super::{Call, Served, negotiate, respond};
use http::StatusCode;
use keelson_api::status::Details;
use keelson_api::{ApiError, ApiResult, Reason};
use keelson_registry::Cx;
use keelson_registry::apply::Apply;
use keelson_registry::engine::UpdateSource;
use keelson_registry::patch::{Patch, PatchKind};

const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// What kind of patch a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Plain(PatchKind),
    Apply,
}

impl Kind {
    pub fn of(content_type: Option<&str>, custom: bool) -> ApiResult<Kind> {
        let media = content_type
            .unwrap_or_default()
            .split(';')
            .next()
            .unwrap_or_default()
            .trim();
        Ok(match media {
            JSON => Kind::Plain(PatchKind::Json),
            MERGE => Kind::Plain(PatchKind::Merge),
            STRATEGIC if !custom => Kind::Plain(PatchKind::Strategic),
            APPLY => Kind::Apply,
            _ if custom => return Err(negotiate::unsupported(&[JSON, MERGE, APPLY].join(", "))),
            // Upstream's router turns it away, before anybody who could say what is taken.
            _ => {
                let why = ApiError::new(Reason::UnsupportedMediaType, "415: Unsupported Media Type");
                return Err(why.with_details(Details::default()));
            }
        })
    }
}

pub async fn serve(call: Call<'_>) -> Served {
    let mut cx = call.cx();
    let kind = Kind::of(call.content_type().as_deref(), call.def.custom)?;
    let bytes = call.body.clone();
    let options = call.write_options(&mut cx, "PatchOptions", kind == Kind::Apply)?;
    cx.options = options.to_value("UpdateOptions");
    let result = patched(&call, &cx, kind, &bytes, options.force.unwrap_or(false)).await;
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

async fn patched(
    call: &Call<'_>,
    cx: &Cx,
    kind: Kind,
    bytes: &[u8],
    force: bool,
) -> ApiResult<(keelson_api::Object, bool)> {
    let admission = call.state.admission.as_ref();
    let source: Box<dyn UpdateSource> = match kind {
        Kind::Plain(kind) => Box::new(Patch::parse(cx, kind, bytes)?),
        Kind::Apply => Box::new(Apply::parse(cx, bytes, force)?),
    };
    // Only apply creates what it doesn't find, and only whole objects.
    let create = kind == Kind::Apply && cx.subresource.is_empty();
    call.state.engine.update(cx, admission, source.as_ref(), create).await
}
