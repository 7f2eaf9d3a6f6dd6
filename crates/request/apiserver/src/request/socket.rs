//! What the head of a request says of a WebSocket.

use http::{HeaderMap, HeaderName, header};

/// Whether the head asks for one, as upstream reads it.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    let first = |name: HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
    let mut words = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok());
    first(header::UPGRADE).is_some_and(|v| v.eq_ignore_ascii_case("websocket"))
        && words.any(|v| v.to_ascii_lowercase().contains("upgrade"))
}

/// The sub-protocols that the client would speak.
pub fn offered(headers: &HeaderMap) -> Vec<String> {
    let all = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let all = all.filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    all.map(str::trim).filter(|p| !p.is_empty()).map(String::from).collect()
}
