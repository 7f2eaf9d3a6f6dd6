//! A request's way to a backend and its answer's way back.

use super::body::{Kept, Lent, Outgoing, plain};
use super::clients::{Clients, Failed, To};
use super::{From, cors, filters, headers, mirror, tunnel};
use crate::plan::is_elsewhere;
use crate::table::{Action, Backend, PathRule, Protocol, Trust, Upstream};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use keelson_listen::WriteBy;
use rand::Rng;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

/// Requests under way on a node; one more is 503.
const REQUESTS: usize = 8192;
/// How long an answer may take to begin where the route says nothing.
const HEAD: Duration = Duration::from_secs(300);
/// Endpoints that are tried for one request.
pub const TRIES: usize = 3;
/// Names of external services that are looked up at once, and how long that may take.
const LOOKUPS: usize = 32;
const LOOKUP: Duration = Duration::from_secs(5);

pub struct Forward {
    pub clients: Clients,
    places: Arc<Semaphore>,
    lookups: Semaphore,
    mirrors: Arc<Semaphore>,
}

/// Where a backend is.
pub struct Reached {
    pub addresses: Vec<SocketAddr>,
    pub protocol: Protocol,
    pub trust: Option<Arc<Trust>>,
}

/// A request but for its body.
pub struct Parts {
    method: Method,
    authority: String,
    target: PathAndQuery,
    headers: HeaderMap,
    upgrade: Option<HeaderValue>,
}

impl Forward {
    pub fn new() -> Forward {
        Forward {
            clients: Clients::new(),
            places: Arc::new(Semaphore::new(REQUESTS)),
            lookups: Semaphore::new(LOOKUPS),
            mirrors: Arc::new(Semaphore::new(mirror::MOST)),
        }
    }

    pub async fn answer(
        &self,
        action: &Action,
        rule: &PathRule,
        from: &From,
        request: Request<Incoming>,
    ) -> Response<Outgoing> {
        let cors = action.filters.cors.as_ref();
        if let Some(answer) = cors.and_then(|cors| cors::preflight(cors, &request)) {
            return answer;
        }
        let origin = request.headers().get(header::ORIGIN).cloned();
        let mut answer = self.by_filters(action, rule, from, request).await;
        if let Some(cors) = cors {
            cors::tell(cors, origin.as_ref(), answer.headers_mut());
        }
        answer
    }

    async fn by_filters(
        &self,
        action: &Action,
        rule: &PathRule,
        from: &From,
        request: Request<Incoming>,
    ) -> Response<Outgoing> {
        if let Some(redirect) = &action.filters.redirect {
            let status = StatusCode::from_u16(redirect.status).unwrap_or(StatusCode::FOUND);
            let mut answer = plain(status, "");
            if let Ok(to) = HeaderValue::try_from(filters::location(redirect, rule, from, request.uri())) {
                answer.headers_mut().insert(header::LOCATION, to);
            }
            headers::change(answer.headers_mut(), &action.filters.response);
            return answer;
        }
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "too many requests are under way\n");
        };
        let Some(backend) = choose(&action.backends) else {
            return plain(StatusCode::INTERNAL_SERVER_ERROR, "the route has no backend\n");
        };
        let by = action.request.map(|time| Instant::now() + time);
        let sent = self.send(action, backend, rule, from, request, place);
        let mut answer = match by {
            Some(by) => timeout_at(by, sent).await.unwrap_or_else(|_| late()),
            None => sent.await,
        };
        headers::change(answer.headers_mut(), &action.filters.response);
        headers::change(answer.headers_mut(), &backend.filters.response);
        if let Some(by) = by {
            answer.extensions_mut().insert(WriteBy(by));
        }
        answer
    }

    async fn send(
        &self,
        action: &Action,
        backend: &Backend,
        rule: &PathRule,
        from: &From,
        mut request: Request<Incoming>,
        place: OwnedSemaphorePermit,
    ) -> Response<Outgoing> {
        let Reached {
            addresses,
            protocol,
            trust,
        } = match self.addresses(&backend.to).await {
            Ok(found) => found,
            Err(answer) => return answer,
        };
        let client = hyper::upgrade::on(&mut request);
        let (head, body) = request.into_parts();
        let Some(parts) = parts(action, backend, rule, from, head, protocol) else {
            return plain(StatusCode::BAD_REQUEST, "the path can't be passed on\n");
        };
        let again = parts.method.is_safe() && body.is_end_stream();
        let copies = self.mirror(action, &parts, &body);
        let (mut lent, mut back) = Lent::new(body, copies);
        let first = rand::rng().random_range(0..addresses.len());
        let tries = addresses.iter().cycle().skip(first).take(TRIES);
        let mut why = String::new();
        for address in tries {
            let to = To {
                address: *address,
                protocol,
                trust: trust.clone(),
            };
            match self.attempt(&to, &parts, action.backend, lent).await {
                Ok(answer) => return pass_on(answer, client, parts.upgrade.is_some(), place),
                Err(Failed::Late) => return late(),
                Err(Failed::Broken(error)) if !again => {
                    tracing::debug!(%address, error, "a backend broke off");
                    return plain(StatusCode::BAD_GATEWAY, "the backend broke off\n");
                }
                Err(Failed::Unreached(error) | Failed::Broken(error)) => why = error,
            }
            // A body that has begun to go out can't be sent again.
            let Some(body) = back.lock().take() else { break };
            (lent, back) = Lent::new(body, Vec::new());
        }
        tracing::debug!(error = why, "no backend could be reached");
        plain(StatusCode::BAD_GATEWAY, "no backend could be reached\n")
    }

    pub async fn addresses(&self, to: &Upstream) -> Result<Reached, Response<Outgoing>> {
        let unavailable = |text| Err(plain(StatusCode::SERVICE_UNAVAILABLE, text));
        match to {
            Upstream::Nowhere(status) => {
                let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
                Err(plain(status, "the backend doesn't exist or may not be used\n"))
            }
            Upstream::Endpoints { addresses, .. } if addresses.is_empty() => {
                unavailable("the service has no endpoints\n")
            }
            Upstream::Endpoints {
                addresses,
                protocol,
                trust,
                ..
            } => Ok(Reached {
                addresses: addresses.clone(),
                protocol: *protocol,
                trust: trust.clone(),
            }),
            Upstream::External {
                host,
                port,
                protocol,
                trust,
            } => {
                let Ok(_turn) = self.lookups.try_acquire() else {
                    return unavailable("too many names are being looked up\n");
                };
                let found = timeout(LOOKUP, tokio::net::lookup_host((host.as_str(), *port))).await;
                let addresses: Vec<SocketAddr> = match found {
                    Ok(Ok(all)) => all.filter(|a| is_elsewhere(a.ip())).collect(),
                    _ => Vec::new(),
                };
                match addresses.is_empty() {
                    true => unavailable("the external name leads nowhere\n"),
                    false => Ok(Reached {
                        addresses,
                        protocol: *protocol,
                        trust: trust.clone(),
                    }),
                }
            }
        }
    }

    fn mirror(&self, action: &Action, parts: &Parts, body: &Incoming) -> Vec<super::body::Copying> {
        let chosen = action
            .filters
            .mirrors
            .iter()
            .filter(|m| rand::rng().random_range(0..m.share.1) < m.share.0);
        let mut copies = Vec::new();
        for mirror in chosen {
            let Upstream::Endpoints {
                addresses,
                protocol,
                trust,
                ..
            } = &*mirror.to
            else {
                continue;
            };
            let Some(address) = pick(addresses) else { continue };
            let Ok(place) = self.mirrors.clone().try_acquire_owned() else {
                continue;
            };
            let (body, copy) = mirror::body(body.is_end_stream());
            let to = To {
                address,
                protocol: *protocol,
                trust: trust.clone(),
            };
            let request = parts.request(&to, body);
            copies.extend(copy);
            mirror::send(self.clients.clone(), to, request, place);
        }
        copies
    }

    async fn attempt(
        &self,
        to: &To,
        parts: &Parts,
        within: Option<Duration>,
        body: Lent,
    ) -> Result<Response<Incoming>, Failed> {
        let sent = self.clients.request(to, parts.request(to, body.boxed_unsync()));
        timeout(within.unwrap_or(HEAD), sent).await.unwrap_or(Err(Failed::Late))
    }
}

fn late() -> Response<Outgoing> {
    plain(StatusCode::GATEWAY_TIMEOUT, "the backend took too long\n")
}

fn pick(addresses: &[SocketAddr]) -> Option<SocketAddr> {
    match addresses.len() {
        0 => None,
        n => addresses.get(rand::rng().random_range(0..n)).copied(),
    }
}

pub fn choose(backends: &[Backend]) -> Option<&Backend> {
    let total: u64 = backends.iter().map(|b| u64::from(b.weight)).sum();
    if total == 0 {
        return None;
    }
    let mut at = rand::rng().random_range(0..total);
    backends.iter().find(|b| match at.checked_sub(b.weight.into()) {
        Some(rest) => {
            at = rest;
            false
        }
        None => true,
    })
}

fn parts(
    action: &Action,
    backend: &Backend,
    rule: &PathRule,
    from: &From,
    head: http::request::Parts,
    protocol: Protocol,
) -> Option<Parts> {
    let mut fields = head.headers;
    // What another protocol is, HTTP/2 can't say.
    let upgrade = headers::upgrade(&fields).filter(|_| protocol == Protocol::Http1 && head.version == Version::HTTP_11);
    headers::to_backend(&mut fields, from);
    headers::change(&mut fields, &action.filters.request);
    headers::change(&mut fields, &backend.filters.request);
    let rewrite = action.filters.rewrite.as_ref();
    let path = filters::path(head.uri.path(), rewrite.and_then(|r| r.path.as_ref()), rule);
    let target = match head.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let changed = fields
        .remove(header::HOST)
        .and_then(|h| h.to_str().map(str::to_owned).ok());
    let filtered = |h: &crate::table::Headers| h.set.iter().any(|(name, _)| name == header::HOST);
    let by_filter = changed.filter(|_| filtered(&action.filters.request) || filtered(&backend.filters.request));
    let authority = rewrite
        .and_then(|r| r.host.clone())
        .or(by_filter)
        .unwrap_or_else(|| from.authority.clone());
    Some(Parts {
        method: head.method,
        authority,
        target: target.parse().ok()?,
        headers: fields,
        upgrade,
    })
}

impl Parts {
    fn request(&self, to: &To, body: Outgoing) -> Request<Outgoing> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers.clone();
        let reached = || http::uri::Authority::try_from(to.address.to_string()).ok();
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(match to.trust {
            Some(_) => http::uri::Scheme::HTTPS,
            None => http::uri::Scheme::HTTP,
        });
        uri.path_and_query = Some(self.target.clone());
        match to.protocol {
            Protocol::Http1 => {
                uri.authority = reached();
                if let Ok(host) = HeaderValue::from_str(&self.authority) {
                    request.headers_mut().insert(header::HOST, host);
                }
                if let Some(upgrade) = &self.upgrade {
                    request
                        .headers_mut()
                        .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                    request.headers_mut().insert(header::UPGRADE, upgrade.clone());
                }
            }
            Protocol::H2c => {
                uri.authority = self.authority.parse().ok().or_else(reached);
                *request.version_mut() = Version::HTTP_2;
            }
        }
        *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        request
    }
}

fn pass_on(
    mut answer: Response<Incoming>,
    client: OnUpgrade,
    asked: bool,
    place: OwnedSemaphorePermit,
) -> Response<Outgoing> {
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let protocol = headers::upgrade(answer.headers()).filter(|_| asked);
        let Some(protocol) = protocol else {
            return plain(
                StatusCode::BAD_GATEWAY,
                "the backend changed to a protocol that nobody asked for\n",
            );
        };
        tunnel::start(client, hyper::upgrade::on(&mut answer), place);
        headers::strip(answer.headers_mut());
        answer
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        answer.headers_mut().insert(header::UPGRADE, protocol);
        let (head, _) = answer.into_parts();
        return Response::from_parts(
            head,
            http_body_util::Empty::new().map_err(|n| match n {}).boxed_unsync(),
        );
    }
    headers::strip(answer.headers_mut());
    // Another connection, another protocol: what the backend offers is its own.
    answer.headers_mut().remove(HeaderName::from_static("alt-svc"));
    *answer.version_mut() = Version::HTTP_11;
    answer.map(|body| Kept { body, _place: place }.map_err(Into::into).boxed_unsync())
}
