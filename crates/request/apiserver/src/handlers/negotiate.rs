//! Content types: what a client accepts, what a body is, and which transformation of the object was asked for.

use crate::request::RequestContext;
use http::{HeaderMap, header};
use keelson_api::accept::{self, Clause};
use keelson_api::codec::Format;
use keelson_api::status::Details;
use keelson_api::{ApiError, ApiResult, Reason};

pub const JSON: &str = "application/json";
pub const YAML: &str = "application/yaml";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Another shape of the same objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Object,
    Table,
    /// `PartialObjectMetadata`
    Metadata,
    /// `PartialObjectMetadataList`
    MetadataList,
}

/// How to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    pub format: Format,
    pub shape: Shape,
    /// `v1` or `v1beta1` of `meta.k8s.io`, when a shape was asked for.
    pub beta: bool,
    pub pretty: bool,
}

impl Output {
    pub const PLAIN: Output = Output {
        format: Format::Json,
        shape: Shape::Object,
        beta: false,
        pretty: false,
    };

    pub fn content_type(self) -> &'static str {
        match self.format {
            Format::Json => JSON,
            Format::Yaml => YAML,
            Format::Protobuf => PROTOBUF,
        }
    }
    pub fn stream_content_type(self) -> &'static str {
        match self.format {
            Format::Json | Format::Yaml => JSON,
            Format::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        }
    }
    pub fn meta_version(self) -> &'static str {
        if self.beta {
            "meta.k8s.io/v1beta1"
        } else {
            "meta.k8s.io/v1"
        }
    }
}

/// What a request says it accepts, in all its `Accept` headers.
pub fn accept(headers: &HeaderMap) -> Option<String> {
    let all: Vec<&str> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .collect();
    (!all.is_empty()).then(|| all.join(","))
}

/// What an endpoint can answer with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Offers {
    /// Custom resources have no protobuf form, but their metadata has.
    pub no_protobuf: bool,
    /// Shapes make sense (not for bodies that are no resource).
    pub shapes: bool,
    /// There are columns to make a table of.
    pub tables: bool,
    pub watch: bool,
}

const FORMATS: [(Format, &str, &str); 3] = [
    (Format::Json, "application", "json"),
    (Format::Yaml, "application", "yaml"),
    (Format::Protobuf, "application", "vnd.kubernetes.protobuf"),
];

fn clause_fits(clause: &Clause, format: Format, offers: Offers) -> Option<Output> {
    let (mut shape_name, mut group, mut version) = ("", "", "");
    let mut out = Output {
        format,
        ..Output::PLAIN
    };
    for (k, v) in &clause.params {
        match *k {
            "as" => shape_name = v,
            "g" => group = v,
            "v" => version = v,
            "stream" if !v.is_empty() && (*v != "watch" || format == Format::Yaml) => return None,
            "sv" if !v.is_empty() && *v != "v1" => return None,
            "pretty" => out.pretty = *v == "1",
            _ => {}
        }
    }
    if shape_name.is_empty() && group.is_empty() && version.is_empty() {
        return (!(offers.no_protobuf && format == Format::Protobuf)).then_some(out);
    }
    if !offers.shapes || group != "meta.k8s.io" || !matches!(version, "v1" | "v1beta1") {
        return None;
    }
    out.beta = version == "v1beta1";
    out.shape = match shape_name {
        "Table" if offers.tables && format != Format::Protobuf => Shape::Table,
        "PartialObjectMetadata" => Shape::Metadata,
        "PartialObjectMetadataList" => Shape::MetadataList,
        _ => return None,
    };
    Some(out)
}

/// Reads the `Accept` header; 406 when nothing in it can be served.
pub fn output(accept: Option<&str>, context: &RequestContext, offers: Offers) -> ApiResult<Output> {
    let accept = accept.unwrap_or_default();
    let mut out = if accept.is_empty() {
        Output::PLAIN
    } else {
        let clauses = accept::parse(accept);
        if offers.shapes && !offers.no_protobuf && !clauses.iter().any(is_routed) {
            return Err(no_representation(&context.info.verb));
        }
        clauses
            .iter()
            .find_map(|clause| {
                FORMATS.iter().find_map(|(format, kind, sub)| {
                    let fits = clause.covers(kind, sub);
                    fits.then(|| clause_fits(clause, *format, offers)).flatten()
                })
            })
            // There is no stream in YAML, and who asked for one gets no other.
            .filter(|out| !(offers.watch && out.format == Format::Yaml))
            .ok_or_else(|| not_acceptable(offers))?
    };
    out.pretty |= accept::is_pretty(context.info.query.get("pretty"), &context.user_agent);
    Ok(out)
}

fn accepted(no_protobuf: bool) -> String {
    let list = FORMATS
        .iter()
        .filter(|(f, ..)| !(no_protobuf && *f == Format::Protobuf));
    list.map(|(_, kind, sub)| format!("{kind}/{sub}"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn streamed(no_protobuf: bool) -> String {
    let protobuf = if no_protobuf {
        String::new()
    } else {
        format!(", {PROTOBUF};stream=watch")
    };
    format!("{JSON};stream=watch{protobuf}")
}

/// Whether upstream's router finds a handler of a built-in kind for a clause; it knows no `application/*`.
fn is_routed(clause: &Clause) -> bool {
    clause.is_anything()
        || FORMATS
            .iter()
            .any(|(_, kind, sub)| clause.kind == *kind && clause.sub == *sub)
}

/// The router's own refusal, which lists what a request of the verb can be answered with.
fn no_representation(verb: &str) -> ApiError {
    let mut list = accepted(false);
    if matches!(verb, "list" | "watch") {
        list += &format!(", {}", streamed(false));
    }
    let text = format!("406: Not Acceptable\n\nAvailable representations: {list}");
    ApiError::new(Reason::NotAcceptable, text).with_details(Details::default())
}

fn not_acceptable(offers: Offers) -> ApiError {
    let list = if offers.watch {
        streamed(offers.no_protobuf)
    } else {
        accepted(offers.no_protobuf)
    };
    ApiError::new(
        Reason::NotAcceptable,
        format!("only the following media types are accepted: {list}"),
    )
}

/// What a body is, by its `Content-Type`; JSON when it doesn't say.
pub fn input(content_type: Option<&str>, no_protobuf: bool) -> ApiResult<Format> {
    let media = content_type
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    match media {
        "" | JSON => Ok(Format::Json),
        YAML => Ok(Format::Yaml),
        PROTOBUF if !no_protobuf => Ok(Format::Protobuf),
        _ => Err(unsupported(&accepted(no_protobuf))),
    }
}

pub fn unsupported(accepted: &str) -> ApiError {
    ApiError::new(
        Reason::UnsupportedMediaType,
        format!("the body of the request was in an unknown format - accepted media types include: {accepted}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{RequestInfo, UserInfo};

    fn negotiated(accept: &str, offers: Offers) -> ApiResult<Output> {
        output(
            Some(accept),
            &RequestContext::new(RequestInfo::default(), UserInfo::default()),
            offers,
        )
    }

    #[test]
    fn accept_headers_of_real_clients() {
        let resource = Offers {
            shapes: true,
            tables: true,
            ..Offers::default()
        };
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(negotiated(kubectl, resource).unwrap().shape, Shape::Table);
        let client_go = "application/vnd.kubernetes.protobuf, application/json";
        assert_eq!(negotiated(client_go, resource).unwrap().format, Format::Protobuf);
        let custom = Offers {
            no_protobuf: true,
            shapes: true,
            tables: true,
            ..Offers::default()
        };
        assert_eq!(negotiated(client_go, custom).unwrap().format, Format::Json);
        let metadata =
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        let m = negotiated(metadata, custom).unwrap();
        assert_eq!((m.format, m.shape), (Format::Protobuf, Shape::MetadataList));
        assert_eq!(negotiated("*/*", resource).unwrap().format, Format::Json);
        assert_eq!(
            negotiated("text/plain;q=0.9, application/yaml;q=0.2", resource)
                .unwrap()
                .format,
            Format::Yaml
        );
        let e = negotiated("text/plain", resource).unwrap_err();
        assert_eq!((e.code, e.reason), (406, Reason::NotAcceptable));
        assert_eq!(
            e.message,
            "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, application/vnd.kubernetes.protobuf"
        );
        let e = negotiated("application/json;as=Other;v=v1;g=meta.k8s.io", resource).unwrap_err();
        assert_eq!(
            e.message,
            "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"
        );
    }

    #[test]
    fn nothing_is_watched_in_yaml() {
        let watch = Offers {
            watch: true,
            ..Offers::default()
        };
        for accept in ["application/yaml", "application/yaml, application/json;q=0.5"] {
            let e = negotiated(accept, watch).unwrap_err();
            assert_eq!(e.code, 406);
            assert_eq!(
                e.message,
                "only the following media types are accepted: application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"
            );
        }
        let next = negotiated("application/yaml;stream=watch, application/json;stream=watch", watch).unwrap();
        assert_eq!(next.format, Format::Json);
        assert_eq!(negotiated("application/*", watch).unwrap().format, Format::Json);
    }

    #[test]
    fn bodies_in_cbor_are_refused() {
        assert_eq!(input(Some("application/cbor"), false).unwrap_err().code, 415);
        assert_eq!(
            input(Some("application/json; charset=utf-8"), false).unwrap(),
            Format::Json
        );
        assert_eq!(input(Some(PROTOBUF), true).unwrap_err().code, 415);
    }
}
