//! A log as a WebSocket: which sub-protocols there are for it, and how it begins.

use crate::request::socket::offered;
use crate::request::{Body, Request, Response};
use crate::socket::{self, Asked, Messages};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::BodyExt;
use keelson_api::ApiResult;

const PROTOCOLS: [(&str, Messages); 2] = [
    ("binary.k8s.io", Messages::Binary),
    ("base64.binary.k8s.io", Messages::Base64),
];

/// The first of those offered that is known; an offer of none is answered with none.
fn agreed(offers: &[String]) -> ApiResult<(Option<&'static str>, Messages)> {
    if offers.is_empty() {
        return Ok((None, Messages::Binary));
    }
    let known = |offer: &String| PROTOCOLS.into_iter().find(|(name, _)| name == offer);
    let (name, messages) = offers.iter().find_map(known).ok_or_else(|| {
        let ours = PROTOCOLS.map(|(name, _)| name).join(" ");
        socket::refused(format!(
            "requested protocol(s) are not supported: [{}]; supports [ {ours}]",
            offers.join(" ")
        ))
    })?;
    Ok((Some(name), messages))
}

/// Promises the body in messages. The first is empty, as upstream's is: a client sees by it that its log begins.
pub fn serve(request: &mut Request, body: Body) -> ApiResult<Response> {
    let (protocol, messages) = agreed(&offered(request.headers()))?;
    let headers = std::mem::take(request.headers_mut());
    let asked = match Asked::of(&headers, request.extensions_mut()) {
        Ok(asked) => asked,
        Err(refusal) => return Ok(*refusal),
    };
    let first = stream::once(async { Ok(Bytes::new()) });
    let pieces = first.chain(body.into_data_stream());
    Ok(asked.answer(protocol, messages, Body::from_stream(pieces)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_protocol_that_is_known_is_spoken() {
        let of = |offers: &[&str]| agreed(&offers.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(of(&[]).unwrap(), (None, Messages::Binary));
        let base64 = (Some("base64.binary.k8s.io"), Messages::Base64);
        assert_eq!(
            of(&["v4.channel.k8s.io", "base64.binary.k8s.io", "binary.k8s.io"]).unwrap(),
            base64
        );
        let refusal = of(&["a", "b"]).unwrap_err();
        assert_eq!(refusal.code, 403);
        assert_eq!(
            refusal.message,
            "requested protocol(s) are not supported: [a b]; supports [ binary.k8s.io base64.binary.k8s.io]"
        );
    }
}
