//! Who is let in, and what a browser may do with what it gets.
//!
//! The console acts with its user's rights, and any page of the web can have the user's browser ask this machine. So whoever asks
//! has to show a cookie that came for a secret address; has to call the server by one of its names, so that no name of a
//! stranger's, pointed at this machine, reaches it (DNS rebinding); and a request that changes something, or that opens a
//! WebSocket, has to come from the console's own pages. What comes from the API is never a page of this origin.

use crate::answer::{self, Body};
use http::header::{HOST, ORIGIN, REFRESH, SET_COOKIE, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};

/// A refusal, in a sentence.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    says: String,
}

impl Refusal {
    fn new(status: StatusCode, says: impl Into<String>) -> Refusal {
        let says = says.into();
        Refusal { status, says }
    }
    pub fn answer(self) -> Response<Body> {
        answer::failure(self.status, "Refused", &self.says)
    }
}

pub struct Guard {
    /// `host:port`, lower case, by which it may be called.
    hosts: Vec<String>,
    scheme: &'static str,
    /// What the printed address has.
    token: String,
    /// What the cookie has.
    session: String,
    cookie: String,
}

impl Guard {
    /// For a server at these names and addresses (without port). Cookies don't know ports, so their names have it.
    pub fn new(names: &[String], port: u16, tls: bool) -> Guard {
        let usual = if tls { 443 } else { 80 };
        let mut hosts: Vec<String> = names.iter().map(|n| format!("{}:{port}", n.to_lowercase())).collect();
        if port == usual {
            hosts.extend(names.iter().map(|n| n.to_lowercase()));
        }
        Guard {
            hosts,
            scheme: if tls { "https" } else { "http" },
            token: secret(),
            session: secret(),
            cookie: format!("keelson-console-{port}"),
        }
    }

    /// Where the user goes first.
    pub fn address(&self) -> String {
        let host = self.hosts.first().map(String::as_str).unwrap_or_default();
        format!("{}://{host}/?token={}", self.scheme, self.token)
    }

    pub fn is_login<B>(&self, request: &Request<B>) -> bool {
        token(request).is_some()
    }

    /// The printed address: a cookie, and the page without the token in its address.
    pub fn login<B>(&self, request: &Request<B>) -> Response<Body> {
        if let Err(refusal) = self.host(request) {
            return refusal.answer();
        }
        if !token(request).is_some_and(|given| same(&given, &self.token)) {
            return Refusal::new(StatusCode::UNAUTHORIZED, NOT_IN).answer();
        }
        // Not a redirection: whoever follows a link of another program would be without the cookie in what follows.
        let mut answer = answer::with_type(StatusCode::OK, "text/plain; charset=utf-8", "The console opens.\n");
        let secure = if self.scheme == "https" { "; Secure" } else { "" };
        let cookie = format!(
            "{}={}; Path=/; HttpOnly; SameSite=Strict{secure}",
            self.cookie, self.session
        );
        let headers = answer.headers_mut();
        headers.insert(REFRESH, HeaderValue::from_static("0; url=/"));
        if let Ok(cookie) = HeaderValue::from_str(&cookie) {
            headers.insert(SET_COOKIE, cookie);
        }
        answer
    }

    pub fn check<B>(&self, request: &Request<B>) -> Result<(), Refusal> {
        self.host(request)?;
        self.origin(request)?;
        match cookies(request.headers(), &self.cookie).any(|given| same(given, &self.session)) {
            true => Ok(()),
            false => Err(Refusal::new(StatusCode::UNAUTHORIZED, NOT_IN)),
        }
    }

    fn host<B>(&self, request: &Request<B>) -> Result<(), Refusal> {
        let mut given = request.headers().get_all(HOST).iter();
        let host = match (given.next(), given.next(), request.uri().authority()) {
            (Some(host), None, None) => host.to_str().unwrap_or_default().to_lowercase(),
            // HTTP/2 has it in the request line.
            (None, None, Some(authority)) => authority.as_str().to_lowercase(),
            (Some(host), None, Some(authority)) if host == authority.as_str() => authority.as_str().to_lowercase(),
            _ => String::new(),
        };
        match self.hosts.contains(&host) {
            true => Ok(()),
            false => Err(Refusal::new(
                StatusCode::MISDIRECTED_REQUEST,
                format!(
                    "this console is not called {host:?}: use the address that `keelson console` printed, or start it with --host"
                ),
            )),
        }
    }

    /// Where the request comes from, as far as the browser says so; for what changes something, it must.
    fn origin<B>(&self, request: &Request<B>) -> Result<(), Refusal> {
        let headers = request.headers();
        let refused = |says| Err(Refusal::new(StatusCode::FORBIDDEN, says));
        let is_ours = |origin: &HeaderValue| {
            let origin = origin.to_str().unwrap_or_default().to_lowercase();
            let host = origin.strip_prefix(self.scheme).and_then(|o| o.strip_prefix("://"));
            host.is_some_and(|host| self.hosts.iter().any(|own| own == host))
        };
        let is_safe = request.method() == Method::GET && !headers.contains_key(UPGRADE);
        match headers.get(ORIGIN) {
            Some(origin) if !is_ours(origin) => return refused("the request comes from another page"),
            None if !is_safe => return refused("the request doesn't say from which page it comes (Origin)"),
            _ => {}
        }
        // Other ports of this machine are the same site, and get the cookie.
        let said = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        match said("sec-fetch-site") {
            None | Some("same-origin" | "none") => Ok(()),
            _ if request.uri().path() == "/" && said("sec-fetch-dest") == Some("document") => Ok(()),
            _ => refused("the request comes from another page"),
        }
    }
}

const NOT_IN: &str = "open the address that `keelson console` printed: it has the token that lets you in";

/// What a browser may do with an answer. Pages have scripts and styles of this server only, none of them within the page; what is
/// the API's is no page at all.
pub fn protect(headers: &mut HeaderMap, is_api: bool) {
    let policy = match is_api {
        true => "default-src 'none'; frame-ancestors 'none'; sandbox",
        false => {
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
        }
    };
    let own = [
        ("content-security-policy", policy),
        ("x-frame-options", "DENY"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        (
            "permissions-policy",
            "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
        ),
    ];
    for (name, value) in own {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

fn secret() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

/// Takes as long whatever differs.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

fn token<B>(request: &Request<B>) -> Option<String> {
    let query = request.uri().query()?;
    let mut all = form_urlencoded::parse(query.as_bytes());
    all.find(|(name, _)| name == "token")
        .map(|(_, value)| value.into_owned())
}

fn cookies<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    let all = headers.get_all(http::header::COOKIE).iter();
    all.filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(';'))
        .filter_map(move |pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> Guard {
        Guard::new(&["127.0.0.1".into(), "localhost".into(), "[::1]".into()], 8090, false)
    }

    fn asked(guard: &Guard, method: &str, path: &str, more: &[(&str, &str)]) -> Result<(), StatusCode> {
        let mut request = Request::builder().method(method).uri(path);
        let has = |name| more.iter().any(|(n, _)| *n == name);
        if !has("host") {
            request = request.header("host", "127.0.0.1:8090");
        }
        if !has("cookie") {
            request = request.header("cookie", format!("a=b; keelson-console-8090={}", guard.session));
        }
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        guard.check(&request.body(()).unwrap()).map_err(|r| r.status)
    }

    #[test]
    fn who_has_the_cookie_and_comes_from_the_console_is_let_in() {
        let guard = guard();
        assert_eq!(asked(&guard, "GET", "/", &[]), Ok(()));
        for host in ["localhost:8090", "LOCALHOST:8090", "[::1]:8090"] {
            assert_eq!(asked(&guard, "GET", "/", &[("host", host)]), Ok(()), "{host}");
        }
        let origin = ("origin", "http://127.0.0.1:8090");
        assert_eq!(asked(&guard, "DELETE", "/api/v1/nodes/a", &[origin]), Ok(()));
        assert_eq!(
            asked(&guard, "GET", "/api", &[origin, ("upgrade", "websocket")]),
            Ok(())
        );
    }

    #[test]
    fn no_cookie_or_a_wrong_one_is_unauthorized() {
        let guard = guard();
        let wrong = "0".repeat(64);
        let other = format!("keelson-console-8091={}", guard.session);
        let near = format!("xkeelson-console-8090={}", guard.session);
        let short = format!("keelson-console-8090={}", &guard.session[1..]);
        for cookie in ["", &format!("keelson-console-8090={wrong}"), &other, &near, &short] {
            let asked = asked(&guard, "GET", "/", &[("cookie", cookie)]);
            assert_eq!(asked, Err(StatusCode::UNAUTHORIZED), "{cookie}");
        }
    }

    #[test]
    fn a_strangers_name_for_this_machine_is_refused() {
        let guard = guard();
        for host in [
            "evil.example:8090",
            "127.0.0.1",
            "127.0.0.1:80",
            "",
            "localhost.evil.example:8090",
            "127.0.0.1:8090.evil",
        ] {
            let asked = asked(&guard, "GET", "/", &[("host", host)]);
            assert_eq!(asked, Err(StatusCode::MISDIRECTED_REQUEST), "{host}");
        }
        let twice = asked(
            &guard,
            "GET",
            "/",
            &[("host", "127.0.0.1:8090"), ("host", "evil.example")],
        );
        assert_eq!(twice, Err(StatusCode::MISDIRECTED_REQUEST));
    }

    #[test]
    fn what_changes_something_has_to_come_from_the_consoles_pages() {
        let guard = guard();
        let no = Err(StatusCode::FORBIDDEN);
        for method in ["POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"] {
            assert_eq!(asked(&guard, method, "/api/v1/pods", &[]), no, "{method}");
        }
        assert_eq!(asked(&guard, "GET", "/api", &[("upgrade", "websocket")]), no);
        for origin in [
            "null",
            "http://evil.example",
            "http://127.0.0.1:8091",
            "https://127.0.0.1:8090",
            "http://127.0.0.1:8090.evil.example",
        ] {
            assert_eq!(asked(&guard, "POST", "/api", &[("origin", origin)]), no, "{origin}");
            assert_eq!(asked(&guard, "GET", "/api", &[("origin", origin)]), no, "{origin}");
        }
    }

    #[test]
    fn another_port_of_the_machine_gets_nothing() {
        let guard = guard();
        for site in ["same-site", "cross-site"] {
            let asked = |path, more: &[(&str, &str)]| {
                asked(&guard, "GET", path, &[&[("sec-fetch-site", site)][..], more].concat()).is_ok()
            };
            assert!(!asked("/api/v1/secrets", &[]));
            assert!(!asked("/app.js", &[("sec-fetch-dest", "script")]));
            assert!(!asked("/api/v1/secrets", &[("sec-fetch-dest", "document")]));
            assert!(asked("/", &[("sec-fetch-dest", "document")]), "a link to the console");
        }
    }

    #[test]
    fn the_printed_address_gives_the_cookie() {
        let guard = guard();
        let login = |uri: &str, host: &str| {
            let request = Request::builder().uri(uri).header("host", host).body(()).unwrap();
            assert!(guard.is_login(&request));
            guard.login(&request)
        };
        let path = guard.address().replace("http://127.0.0.1:8090", "");
        let answer = login(&path, "127.0.0.1:8090");
        assert_eq!(answer.status(), StatusCode::OK);
        let cookie = answer.headers()[SET_COOKIE].to_str().unwrap();
        assert!(cookie.contains("; HttpOnly; SameSite=Strict") && cookie.contains(&guard.session));
        assert!(!cookie.contains(&guard.token), "the address is no cookie");
        assert!(login("/?token=x", "127.0.0.1:8090").headers().get(SET_COOKIE).is_none());
        assert!(login("/?token=", "127.0.0.1:8090").headers().get(SET_COOKIE).is_none());
        assert_eq!(login(&path, "evil.example").status(), StatusCode::MISDIRECTED_REQUEST);
        assert_ne!(guard.token, super::Guard::new(&["a".into()], 1, false).token);
    }
}
