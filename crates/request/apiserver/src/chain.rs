//! The way of every request, in order. A line a stage; each stage stands in its own module.

use crate::authn::revoked::{self, Cut, Known, Unknown};
use crate::authn::x509::PeerCertificate;
use crate::authn::{self, impersonation};
use crate::authz::node::NodeAuthorizer;
use crate::authz::{Attributes, Verdict};
use crate::flow::{Class, Classed, TooMany};
use crate::handlers::past;
use crate::metrics::{InFlight, Terminated};
use crate::request::{Body, Request, RequestContext, RequestInfo, Response, Taken, UserInfo, response};
use crate::serve::listener::{RemoteAddr, Stopping};
use crate::serve::user_agent;
use crate::state::ServerState;
use crate::{aggregation, compressed, connect, handlers, nonresource, socket, traces};
use futures::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body::Body as _;
use keelson_api::{ApiError, ApiResult, Reason, Str};
use keelson_listen::{Asker, Counted, WriteBy, own_task};
use keelson_registry::ResourceDef;
use keelson_trace::{child, within};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long a kubelet's request waits for the binding that allows it to arrive at the node authorizer.
const BINDING_PATIENCE: Duration = Duration::from_millis(500);

/// Serves a request from its head to its response's head.
pub async fn run(server: &Arc<ServerState>, request: Request) -> Response {
    let serving = &server.config.serving;
    let context = match begin(&request, serving.request_timeout) {
        Ok(context) => context,
        Err(e) => return response::error(&e),
    };
    if !is_small(&context.info) {
        own_task().await;
    }
    let served = timed(server, context.clone(), request);
    let answer = match AssertUnwindSafe(served).catch_unwind().await {
        Ok(answer) => answer,
        Err(_) => panicked(&context),
    };
    let mut answer = finish(server, &context, answer);
    if let Some(deadline) = context.deadline {
        answer.extensions_mut().insert(WriteBy(deadline));
    }
    if let Some(directives) = &serving.transport_security {
        let headers = answer.headers_mut();
        headers.insert(header::STRICT_TRANSPORT_SECURITY, directives.clone());
    }
    socket::begin(answer)
}

async fn timed(server: &Arc<ServerState>, context: RequestContext, request: Request) -> Response {
    let Some(deadline) = context.deadline else {
        return staged(server, context, request).await;
    };
    let answer = if context.info.is_read_only() {
        timeout_at(deadline, staged(server, context, request)).await
    } else {
        let server = server.clone();
        // A client that goes away, or the deadline, drops this future; a write that has begun is completed all the same,
        // so that what it reserved is kept or given back.
        let asker = request.extensions().get::<Asker>().cloned();
        let work = async move { staged(&server, context, request).await };
        let task = tokio::spawn(Counted::new(asker, work));
        timeout_at(deadline, task)
            .await
            .map(|ended| ended.unwrap_or_else(broken_off))
    };
    answer.unwrap_or_else(|_| terminated(response::error(&timed_out())))
}

/// Ended so that the server can go on.
fn terminated(mut answer: Response) -> Response {
    answer.extensions_mut().insert(Terminated);
    answer
}

fn broken_off(e: tokio::task::JoinError) -> Response {
    match e.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => response::error(&ApiError::new(
            Reason::ServiceUnavailable,
            "the server is shutting down",
        )),
    }
}

/// Read in one step: it has to be found, no more.
fn is_small(info: &RequestInfo) -> bool {
    info.verb == "get" && info.is_resource_request && info.subresource.is_empty() && !info.past
}

/// The stages proper.
async fn staged(server: &Arc<ServerState>, mut context: RequestContext, mut request: Request) -> Response {
    let attempted = authn::attempted(&request);
    let began = Instant::now();
    let certificate = request.extensions().get::<Arc<PeerCertificate>>().cloned();
    let authenticated = server.authenticator.authenticate(&mut request, &context).await;
    let name = authenticated.as_ref().ok().map(|known| &*known.user.name);
    server.metrics.access.authenticated(name, began.elapsed());
    let Known { user, proof } = match authenticated {
        Ok(known) => known,
        Err(why) => return unknown(server, &context, attempted, why).await,
    };
    // Whoever has no name of his own is known by his address.
    if let Some(asker) = request.extensions().get::<Asker>()
        && !user.in_group("system:unauthenticated")
    {
        asker.is(&user.name);
    }
    let cut = match revoked::may_stay(&context.info, request.headers()) {
        true => revoked::stays(&server.revocations, proof),
        false => None,
    };
    if let Some(cut) = &cut {
        request.extensions_mut().insert(cut.clone());
    }
    if let Some(certificate) = certificate.filter(|c| c.is_of(&user)) {
        let left = certificate.not_after - keelson_clock::now().as_second();
        server.metrics.access.by_certificate(left);
    }
    context.user = user;
    let resource = resource(server, &context.info);
    let open = server.metrics.requests.begin(&context, resource.as_deref());
    let mut trail = server.audit.open(&context, Some(&context.user));
    trail.received(&mut request).await;
    let asked = context.user.clone();
    let stopping = request.extensions().get::<Stopping>().cloned();
    let own = server.config.advertise_address;
    let wanted = match &resource {
        Some(_) => compressed::wanted(request.method(), &context, request.headers(), own),
        None => compressed::Wanted::Nothing,
    };
    let mut class = Class::default();
    let span = traces::begin(server, &context, &request);
    let answer = match within(&span, served(server, &mut context, request, &mut class)).await {
        Ok(answer) => answer,
        Err(Stopped::Error(e)) => response::error(&e),
        Err(Stopped::TooMany) => terminated(too_many()),
    };
    traces::answered(&span, &answer);
    drop(span);
    let answer = seated(answer, &context);
    if asked != context.user {
        trail.impersonates(&context.user, context.constraint);
    }
    let answer = compressed::packed(trail.answered(answer).await, wanted).await;
    let answer = match stopping {
        Some(Stopping(stop)) if context.info.verb == "watch" => answer.map(|body| Body::until(body, stop)),
        _ => answer,
    };
    let answer = match cut {
        Some(Cut(held)) => answer.map(|body| Body::cut(body, held.cut().clone(), held)),
        None => answer,
    };
    closed(answer, &class, &context, open)
}

/// Nobody is let in: 401, as upstream answers whatever was wrong; the audit log has the reason.
async fn unknown(server: &ServerState, context: &RequestContext, attempted: String, why: Unknown) -> Response {
    match why {
        Unknown::Refused => server.audit.open(context, None).refused(&attempted).await,
        Unknown::Revoked(why) => {
            tracing::debug!("a request is refused: {why}");
            let said = format!("{attempted}; {why}");
            server.audit.open(context, None).refused(&said).await;
        }
        Unknown::TooEarly => {
            let why = "it isn't known yet which credentials have been revoked";
            return response::error(&ApiError::new(Reason::ServiceUnavailable, why));
        }
    }
    response::error(&ApiError::new(Reason::Unauthorized, "Unauthorized"))
}

/// What is served under the request's path.
fn resource(server: &ServerState, info: &RequestInfo) -> Option<Arc<ResourceDef>> {
    let table = &server.table;
    let found = info
        .is_resource_request
        .then(|| table.get(&info.api_group, &info.api_version, &info.resource));
    found.flatten()
}

/// Why a request comes to no handler.
enum Stopped {
    Error(ApiError),
    TooMany,
}

impl From<ApiError> for Stopped {
    fn from(e: ApiError) -> Self {
        Stopped::Error(e)
    }
}
impl From<TooMany> for Stopped {
    fn from(_: TooMany) -> Self {
        Stopped::TooMany
    }
}

/// Impersonation, flow control and authorisation, what a request has to pass; its body; then who serves it.
async fn served(
    server: &Arc<ServerState>,
    context: &mut RequestContext,
    mut request: Request,
    class: &mut Class,
) -> Result<Response, Stopped> {
    let acts = server
        .impersonation
        .of(context, request.headers_mut(), server.authorizer.as_ref());
    if let Some(acts) = acts.await? {
        tracing::debug!("{} is impersonating {}", context.user.name, acts.user.name);
        context.user = Arc::new(acts.user);
        context.constraint = acts.constraint;
        request.extensions_mut().insert(impersonation::Acting);
    }
    let classed = server.flow.classify(&context.user, &context.info)?;
    *class = classed.class.clone();
    take_seats(server, context, &classed, Seats::First).await?;
    authorize(server, context).await?;
    let (request, _taken) = arrived(server, context, request, &classed).await?;
    let context = context.clone();
    Ok(match past::writer(server, &context) {
        // Held once: all that serves a request is of its size.
        Some(who) => keelson_past::written_by(who, Box::pin(route(server, context, request))).await,
        None => route(server, context, request).await,
    })
}

/// A request is told of once, also if it gives its seats back until its body is there.
#[derive(Clone, Copy, PartialEq)]
enum Seats {
    First,
    Again,
}

async fn take_seats(
    server: &ServerState,
    context: &RequestContext,
    classed: &Classed,
    seats_are: Seats,
) -> Result<(), TooMany> {
    let info = &context.info;
    let def = resource(server, info);
    let storage = def.as_ref().and_then(|d| d.storage.as_ref());
    let usage = storage.and_then(|s| server.engine.usage(s, &info.namespace, &info.name));
    let (began, _waits) = (Instant::now(), child("priorityandfairness"));
    let (told, class) = (&server.metrics.flow, &classed.class);
    let waiting = told.waits(class);
    let seats = classed.seats(info, context.deadline, usage).await;
    drop(waiting);
    let waited = began.elapsed();
    context.seat.has_waited(waited);
    // Streams take none.
    let told = (!matches!(seats, Ok(None)))
        .then(|| told.waited(class, waited, seats.as_ref().err(), seats_are == Seats::Again));
    let told = told.flatten().map(InFlight::of);
    context.seat.set(seats?.map(|permit| permit.telling(told)));
    Ok(())
}

/// The request with its body in memory. While the body is on its way the seat is another's: a client that sends none costs
/// nobody anything but its own connection.
async fn arrived(
    server: &ServerState,
    context: &RequestContext,
    request: Request,
    classed: &Classed,
) -> Result<(Request, Option<Taken>), Stopped> {
    let info = &context.info;
    let writes = matches!(
        info.verb.as_str(),
        "create" | "update" | "patch" | "delete" | "deletecollection"
    );
    let streams = info.past || connect::is_connect(info) || aggregation::route(server, info).is_some();
    let Some(deadline) = context
        .deadline
        .filter(|_| writes && info.is_resource_request && !streams)
    else {
        return Ok((request, None));
    };
    let (parts, body) = request.into_parts();
    let mut reading = std::pin::pin!(server.intake.read(&context.user.name, body));
    let read = match futures::poll!(&mut reading) {
        Poll::Ready(read) => read,
        Poll::Pending => {
            context.seat.give_back();
            let read = timeout_at(deadline, reading).await.map_err(|_| timed_out())?;
            take_seats(server, context, classed, Seats::Again).await?;
            read
        }
    };
    let (bytes, taken) = read?;
    Ok((Request::from_parts(parts, bytes.into()), Some(taken)))
}

/// As upstream answers: text.
fn too_many() -> Response {
    let mut answer = response::text(
        StatusCode::TOO_MANY_REQUESTS,
        "Too many requests, please try again later.\n",
    );
    answer
        .headers_mut()
        .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

fn timed_out() -> ApiError {
    ApiError::new(
        Reason::Timeout,
        "Timeout: request did not complete within the allotted timeout",
    )
}

/// Answers that fit into the buffers on their way are as good as sent.
const SENT_AT_ONCE: u64 = 16 * 1024;

/// The seat stays with the request until its answer's last byte, and no longer than its deadline.
fn seated(answer: Response, context: &RequestContext) -> Response {
    // A watch that has begun took it along.
    let seat = context.seat.take();
    let small = answer.body().size_hint().exact().is_some_and(|n| n <= SENT_AT_ONCE);
    match seat {
        Some(seat) if !small && !context.info.is_long_running() => answer.map(|body| Body::guarded(body, seat)),
        _ => answer,
    }
}

async fn authorize(server: &ServerState, context: &RequestContext) -> ApiResult<()> {
    let attributes = Attributes::of(&context.user, &context.info);
    let (began, asks) = (Instant::now(), child("authorization"));
    let decision = within(&asks, decide(server, &attributes)).await;
    drop(asks);
    server.metrics.access.authorized(&decision, began.elapsed());
    if !decision.is_allowed() && decision.error.is_some() {
        context.audit.add("authorization.k8s.io/reason", "internal error");
    } else {
        let word = if decision.is_allowed() { "allow" } else { "forbid" };
        context.audit.add("authorization.k8s.io/decision", word);
        context.audit.add("authorization.k8s.io/reason", decision.reason());
    }
    match (decision.is_allowed(), &decision.error) {
        (true, _) => Ok(()),
        (false, Some(error)) => Err(ApiError::internal(error)),
        (false, None) => Err(attributes.forbidden(decision.reason())),
    }
}

/// A kubelet may hear of its pod a moment before the node authorizer does; then the decision waits for that.
async fn decide(server: &ServerState, attributes: &Attributes) -> Verdict {
    let mut changes = server.node_authorizer.changes();
    let until = Instant::now() + BINDING_PATIENCE;
    loop {
        changes.mark_unchanged();
        let decision = server.authorizer.authorize(attributes).await;
        if attributes.user.node_name().is_none() || !NodeAuthorizer::may_resolve(&decision.decision) {
            return decision;
        }
        if !matches!(timeout_at(until, changes.changed()).await, Ok(Ok(()))) {
            return decision;
        }
    }
}

/// To whom the request is for.
async fn route(server: &Arc<ServerState>, context: RequestContext, request: Request) -> Response {
    if context.info.past {
        return Box::pin(past::serve(server, &context, request)).await;
    }
    if let Some(service) = aggregation::route(server, &context.info) {
        let proxied = aggregation::proxy(server, &service, &context, request);
        // Nothing of it is to be completed here: what is late is dropped, whoever waits for it.
        return match context.deadline {
            Some(deadline) => timeout_at(deadline, proxied)
                .await
                .unwrap_or_else(|_| terminated(response::error(&timed_out()))),
            None => proxied.await,
        };
    }
    if !context.info.is_resource_request {
        return nonresource::serve(server, &context, request).await;
    }
    if connect::is_connect(&context.info) {
        return connect::serve(server, context, request).await;
    }
    handlers::serve(server, context, request).await
}

/// Reads the head of a request.
fn begin(request: &Request, longest: Duration) -> ApiResult<RequestContext> {
    let info = RequestInfo::parse(request.method(), request.uri())
        .map_err(|e| ApiError::internal(format!("failed to create RequestInfo: {e}")))?;
    let mut context = RequestContext::new(info, UserInfo::default());
    let headers = request.headers();
    if let Some(id) = headers
        .get("audit-id")
        .and_then(|v| v.to_str().ok())
        .filter(|id| !id.is_empty() && id.len() <= 64)
    {
        context.audit_id = id.into();
    }
    context.uri = request
        .uri()
        .path_and_query()
        .map_or_else(|| "/".into(), |p| Str::from(p.as_str()));
    context.user_agent = user_agent(headers).into();
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    context.applies = context.info.verb == "patch" && kind.is_some_and(|k| k.starts_with("application/apply-patch+"));
    context.remote = request.extensions().get::<RemoteAddr>().map(|r| r.0);
    if !context.info.is_long_running() {
        context.deadline = Some(context.started + allotted(&context.info, longest)?);
    }
    Ok(context)
}

/// What the `timeout` parameter allows, at most `longest`.
fn allotted(info: &RequestInfo, longest: Duration) -> ApiResult<Duration> {
    let Some(text) = info.query.get("timeout").filter(|t| !t.is_empty()) else {
        return Ok(longest);
    };
    let wrong = || ApiError::bad_request("invalid timeout specified in the request URL");
    let asked = keelson_api::duration::length(text).map_err(|_| wrong())?;
    Ok(if asked.is_zero() { longest } else { asked.min(longest) })
}

fn panicked(context: &RequestContext) -> Response {
    tracing::error!(verb = %context.info.verb, path = %context.info.path, audit_id = %context.audit_id, "a request panicked");
    response::error(&ApiError::internal(format!(
        "This request caused apiserver to panic. Look in the logs for details. audit-ID: {}",
        context.audit_id
    )))
}

/// Headers that name the flow, and what lives as long as the response's body.
fn closed(mut answer: Response, class: &Class, context: &RequestContext, open: InFlight) -> Response {
    let headers = answer.headers_mut();
    set(headers, "x-kubernetes-pf-flowschema-uid", &class.schema_uid);
    set(headers, "x-kubernetes-pf-prioritylevel-uid", &class.level_uid);
    if context.info.is_long_running() {
        return answer.map(|body| Body::guarded(body, open));
    }
    answer
}

/// Headers that every response has.
fn finish(server: &ServerState, context: &RequestContext, answer: Response) -> Response {
    let resource = resource(server, &context.info);
    let took = context.started.elapsed();
    let told = &server.metrics.requests;
    let mut answer = told.served(context, resource.as_deref(), answer, took);
    let headers = answer.headers_mut();
    set(headers, "audit-id", &context.audit_id);
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    }
    for warning in context.warnings.header_values() {
        if let Ok(value) = HeaderValue::from_str(&warning) {
            headers.append(header::WARNING, value);
        }
    }
    answer
}

fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let (false, Ok(value)) = (value.is_empty(), HeaderValue::from_str(value)) {
        headers.insert(HeaderName::from_static(name), value);
    }
}
