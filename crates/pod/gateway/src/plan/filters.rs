//! Filters of routes, and what of them can't be honoured.

use crate::kinds::{Filter, HeaderModifier, PathModifier, ValueMatch};
use crate::table::{Cors, Filters, Headers, Listed, Mirror, Origin, PathChange, Redirect, Rewrite, Upstream};
use http::{HeaderName, HeaderValue};
use std::sync::Arc;
use std::time::Duration;

/// Why a rule isn't taken, by the reason that the API has for it.
#[derive(Debug, PartialEq)]
pub struct Refused(pub &'static str, pub String);

/// Whoever could change them could hide a request in another, or that it goes round.
const FRAMING: [&str; 8] = [
    "cdn-loop",
    "connection",
    "content-length",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

fn unsupported(text: String) -> Refused {
    Refused("UnsupportedValue", text)
}

/// `mirror` finds where copies of requests go.
pub fn read(
    filters: &[Filter],
    mut mirror: impl FnMut(&crate::kinds::Reference) -> Arc<Upstream>,
) -> Result<Filters, Refused> {
    let mut all = Filters::default();
    for filter in filters {
        match filter.r#type.as_str() {
            "RequestHeaderModifier" => headers(&mut all.request, filter.request_header_modifier.as_ref())?,
            "ResponseHeaderModifier" => headers(&mut all.response, filter.response_header_modifier.as_ref())?,
            "RequestRedirect" => all.redirect = filter.request_redirect.as_ref().map(redirect).transpose()?,
            "URLRewrite" => {
                let rewrite = filter.url_rewrite.clone().unwrap_or_default();
                all.rewrite = Some(Rewrite {
                    host: rewrite.hostname,
                    path: rewrite.path.as_ref().map(path).transpose()?,
                });
            }
            "RequestMirror" => {
                let Some(wanted) = &filter.request_mirror else { continue };
                let share = match (wanted.percent, &wanted.fraction) {
                    (Some(percent), _) => (percent, 100),
                    (None, Some(f)) => (f.numerator, f.denominator.unwrap_or(100)),
                    (None, None) => (1, 1),
                };
                let (Ok(part), Ok(whole @ 1..)) = (u32::try_from(share.0), u32::try_from(share.1)) else {
                    return Err(unsupported("a mirror's fraction has to be a part of a whole".into()));
                };
                all.mirrors.push(Mirror {
                    to: mirror(&wanted.backend_ref),
                    share: (part, whole),
                });
            }
            "CORS" => all.cors = filter.cors.as_ref().map(cors).transpose()?,
            other => return Err(unsupported(format!("filters of type {other} are not supported"))),
        }
    }
    match all.redirect.is_some() && all.rewrite.is_some() {
        true => Err(Refused(
            "IncompatibleFilters",
            "a rule can't both redirect and rewrite".into(),
        )),
        false => Ok(all),
    }
}

/// What the definitions have as default.
const KEEP: u32 = 5;

fn cors(wanted: &crate::kinds::Cors) -> Result<Cors, Refused> {
    let origin = |text: &String| Origin::new(text).ok_or_else(|| unsupported(format!("{text:?} is no origin")));
    let listed = |names: &[String]| {
        let text = names.join(", ");
        match (names.iter().any(|n| n == "*"), HeaderValue::from_str(&text)) {
            (true, _) => Ok(Listed::All),
            (false, Ok(_)) => Ok(Listed::Only(text)),
            (false, Err(_)) => Err(unsupported(format!("{text:?} can't be told in a header"))),
        }
    };
    Ok(Cors {
        origins: wanted.allow_origins.iter().map(origin).collect::<Result<_, _>>()?,
        credentials: wanted.allow_credentials.unwrap_or(false),
        methods: listed(&wanted.allow_methods)?,
        headers: listed(&wanted.allow_headers)?,
        exposed: listed(&wanted.expose_headers)?,
        keep: wanted.max_age.and_then(|n| u32::try_from(n).ok()).unwrap_or(KEEP),
    })
}

fn headers(all: &mut Headers, wanted: Option<&HeaderModifier>) -> Result<(), Refused> {
    let name = |text: &str| {
        let name = text.parse::<HeaderName>();
        let name = name.map_err(|_| unsupported(format!("{text:?} is no name of a header")))?;
        match FRAMING.contains(&name.as_str()) {
            true => Err(unsupported(format!(
                "header {name} says how a message is passed on, and can't be changed"
            ))),
            false => Ok(name),
        }
    };
    let pair = |h: &ValueMatch| {
        let value = HeaderValue::from_str(&h.value)
            .map_err(|_| unsupported(format!("header {} has no value that can be sent", h.name)))?;
        Ok::<_, Refused>((name(&h.name)?, value))
    };
    if let Some(wanted) = wanted {
        for h in &wanted.set {
            all.set.push(pair(h)?);
        }
        for h in &wanted.add {
            all.add.push(pair(h)?);
        }
        for h in &wanted.remove {
            all.remove.push(name(h)?);
        }
    }
    Ok(())
}

fn redirect(wanted: &crate::kinds::Redirect) -> Result<Redirect, Refused> {
    let port = wanted.port.map(u16::try_from).transpose();
    Ok(Redirect {
        scheme: wanted.scheme.clone(),
        host: wanted.hostname.clone(),
        port: port.map_err(|_| unsupported("a redirect's port has to be one".into()))?,
        path: wanted.path.as_ref().map(path).transpose()?,
        status: match wanted.status_code.unwrap_or(302) {
            status @ (301 | 302 | 303 | 307 | 308) => status,
            other => return Err(unsupported(format!("{other} is no status of a redirect"))),
        },
    })
}

fn path(wanted: &PathModifier) -> Result<PathChange, Refused> {
    match (
        wanted.r#type.as_str(),
        &wanted.replace_full_path,
        &wanted.replace_prefix_match,
    ) {
        ("ReplaceFullPath", Some(path), _) => Ok(PathChange::Full(path.clone())),
        ("ReplacePrefixMatch", _, Some(path)) => Ok(PathChange::Prefix(path.clone())),
        (other, ..) => Err(unsupported(format!("a path can't be changed by {other}"))),
    }
}

/// A time as the Gateway API writes them: `1h30m`, `500ms`. Zero is none.
pub fn duration(text: Option<&str>) -> Result<Option<Duration>, Refused> {
    let Some(text) = text else { return Ok(None) };
    let bad = || unsupported(format!("{text:?} is no duration"));
    let mut all = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u32 = rest[..digits].parse().map_err(|_| bad())?;
        let letters = &rest[digits..];
        let end = letters.find(|c: char| c.is_ascii_digit()).unwrap_or(letters.len());
        let unit = match &letters[..end] {
            "h" => Duration::from_secs(3600),
            "m" => Duration::from_secs(60),
            "s" => Duration::from_secs(1),
            "ms" => Duration::from_millis(1),
            _ => return Err(bad()),
        };
        all = unit
            .checked_mul(number)
            .and_then(|d| all.checked_add(d))
            .ok_or_else(bad)?;
        rest = &letters[end..];
    }
    Ok((!all.is_zero()).then_some(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_message_is_framed_is_not_for_filters() {
        for (name, fine) in [
            ("x-a", true),
            ("Content-Length", false),
            ("transfer-encoding", false),
            ("cdn-loop", false),
            ("a b", false),
        ] {
            let wanted = HeaderModifier {
                remove: vec![name.into()],
                ..HeaderModifier::default()
            };
            assert_eq!(headers(&mut Headers::default(), Some(&wanted)).is_ok(), fine, "{name}");
        }
    }

    #[test]
    fn durations_are_as_the_api_writes_them() {
        for (text, expected) in [
            ("500ms", Some(Duration::from_millis(500))),
            ("1h30m", Some(Duration::from_secs(5400))),
            ("0s", None),
        ] {
            assert_eq!(duration(Some(text)), Ok(expected), "{text}");
        }
        for text in ["5", "s", "1d", "-1s", "99999999999s"] {
            assert!(duration(Some(text)).is_err(), "{text}");
        }
    }
}
