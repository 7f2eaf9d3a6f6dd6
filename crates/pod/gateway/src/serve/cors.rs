//! What browsers are told of pages from elsewhere: which may send requests, and read what comes of them. Pure.
//!
//! A backend's own word on that doesn't count beside a filter's.

use super::body::{Outgoing, plain};
use crate::table::{Cors, Listed};
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};
use http::{Method, Request, Response, StatusCode};

const ALL: [HeaderName; 6] = [
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
];

/// The answer to a browser that asks whether it may ask; `None`: it doesn't.
pub fn preflight<B>(cors: &Cors, request: &Request<B>) -> Option<Response<Outgoing>> {
    let wanted = request.headers().get(ACCESS_CONTROL_REQUEST_METHOD);
    let origin = request.headers().get(ORIGIN);
    let (wanted, origin) = wanted.zip(origin).filter(|_| request.method() == Method::OPTIONS)?;
    if !allows(cors, origin) {
        return Some(plain(StatusCode::FORBIDDEN, "pages of this origin may not ask\n"));
    }
    let mut answer = plain(StatusCode::NO_CONTENT, "");
    let headers = answer.headers_mut();
    headers.remove(http::header::CONTENT_TYPE);
    tell(cors, Some(origin), headers);
    let asked = request.headers().get(ACCESS_CONTROL_REQUEST_HEADERS);
    for (name, listed, asked) in [
        (ACCESS_CONTROL_ALLOW_METHODS, &cors.methods, Some(wanted)),
        (ACCESS_CONTROL_ALLOW_HEADERS, &cors.headers, asked),
    ] {
        // Where credentials are sent, an asterisk is none, so what was asked for is named.
        let value = match listed {
            Listed::All => asked.cloned(),
            Listed::Only(text) => value(text),
        };
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, cors.keep.into());
    for depends in [ACCESS_CONTROL_REQUEST_METHOD, ACCESS_CONTROL_REQUEST_HEADERS] {
        headers.append(VARY, depends.into());
    }
    Some(answer)
}

/// What is told with every answer.
pub fn tell(cors: &Cors, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    ALL.iter().for_each(|name| drop(headers.remove(name)));
    headers.append(VARY, ORIGIN.into());
    let Some(origin) = origin.filter(|origin| allows(cors, origin)) else {
        return;
    };
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if cors.credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    let exposed = match &cors.exposed {
        Listed::All => (!cors.credentials).then(|| HeaderValue::from_static("*")),
        Listed::Only(text) => value(text),
    };
    if let Some(exposed) = exposed {
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

fn value(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok().filter(|v| !v.is_empty())
}

fn allows(cors: &Cors, origin: &HeaderValue) -> bool {
    let origin = origin.to_str().unwrap_or_default();
    cors.origins.iter().any(|allowed| allowed.is(origin))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Origin;

    fn cors(origins: &[&str], credentials: bool, all: bool) -> Cors {
        let listed = |text: &str| if all { Listed::All } else { Listed::Only(text.into()) };
        Cors {
            origins: origins.iter().filter_map(|o| Origin::new(o)).collect(),
            credentials,
            methods: listed("GET, PUT"),
            headers: listed("x-a"),
            exposed: listed("x-b"),
            keep: 7,
        }
    }

    fn ask(cors: &Cors, method: Method, headers: &[(HeaderName, &'static str)]) -> Option<(u16, String)> {
        let mut request = Request::new(());
        *request.method_mut() = method;
        for (name, value) in headers {
            request.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        let answer = preflight(cors, &request)?;
        let mut told: Vec<String> = answer
            .headers()
            .iter()
            .filter(|(name, _)| name.as_str().starts_with("access-control-"))
            .map(|(name, value)| format!("{}={}", &name.as_str()[15..], value.to_str().unwrap_or("?")))
            .collect();
        told.sort();
        Some((answer.status().as_u16(), told.join(" ")))
    }

    #[test]
    fn origins_are_by_scheme_host_and_port() {
        for (allowed, origin, fine) in [
            ("*", "https://x.org:81", true),
            ("https://x.org", "https://x.org", true),
            ("https://x.org", "https://x.org:443", true),
            ("https://x.org", "http://x.org", false),
            ("https://x.org", "https://x.org:81", false),
            ("https://x.org:81", "https://X.org:81", true),
            ("https://*.x.org", "https://a.b.x.org", true),
            ("https://*.x.org", "https://x.org", false),
            ("https://*.x.org", "https://ax.org", false),
            ("https://*", "https://x.org", true),
            ("https://*", "http://x.org", false),
            ("https://x.org", "null", false),
        ] {
            let allowed_origin = Origin::new(allowed);
            assert_eq!(allowed_origin.map(|o| o.is(origin)), Some(fine), "{allowed} {origin}");
        }
        assert_eq!(Origin::new("ftp://x.org"), None);
    }

    #[test]
    fn a_browser_that_asks_is_told_what_it_may() {
        let put = [(ORIGIN, "https://x.org"), (ACCESS_CONTROL_REQUEST_METHOD, "PUT")];
        let some = cors(&["https://x.org"], false, false);
        assert_eq!(
            ask(&some, Method::OPTIONS, &put),
            Some((
                204,
                "allow-headers=x-a allow-methods=GET, PUT allow-origin=https://x.org expose-headers=x-b max-age=7"
                    .into()
            ))
        );
        // Who may do everything is told what it asked for, not an asterisk.
        let all = cors(&["*"], true, true);
        let told = "allow-credentials=true allow-methods=PUT allow-origin=https://x.org max-age=7";
        assert_eq!(ask(&all, Method::OPTIONS, &put), Some((204, told.into())));
        let stranger = [(ORIGIN, "https://y.org"), (ACCESS_CONTROL_REQUEST_METHOD, "PUT")];
        assert_eq!(ask(&some, Method::OPTIONS, &stranger), Some((403, String::new())));
        assert_eq!(ask(&some, Method::GET, &put), None);
        assert_eq!(ask(&some, Method::OPTIONS, &put[..1]), None);
    }

    #[test]
    fn a_backends_own_word_does_not_count() {
        let mut headers = HeaderMap::new();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        tell(
            &cors(&["https://x.org"], false, false),
            Some(&HeaderValue::from_static("https://y.org")),
            &mut headers,
        );
        assert!(headers.get(ACCESS_CONTROL_ALLOW_ORIGIN).is_none());
        assert_eq!(headers[VARY], "origin");
    }
}
