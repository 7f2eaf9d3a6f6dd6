//! The audit log: who did what, when and how it ended, as `audit.k8s.io/v1` events in JSON lines.
//!
//! A policy says which requests are logged, at which stages and with how much of them. A [`Trail`] follows one request:
//! opened when its user is known, or known to be nobody, told of the answer, and ended with its body.

mod capture;
mod event;
mod file;
mod policy;

pub use event::Outcome;
pub use file::Settings;
pub use policy::{Level, Policy, Stage};

use crate::request::{Body, Request, RequestContext, Response, UserInfo};
use capture::{Captured, Copy};
use event::Facts;
use file::LogFile;
use parking_lot::Mutex;
use policy::Verdict;
use std::sync::Arc;

/// What upstream's truncating backend marks an event with that lacks its bodies.
const TRUNCATED: &str = "audit.k8s.io/truncated";

/// The log, and what goes into it.
#[derive(Clone)]
pub struct Audit(Option<Arc<Log>>);

struct Log {
    policy: Policy,
    file: Arc<LogFile>,
    refusals: Mutex<Refusals>,
}

/// Whoever has no identity could otherwise fill the log until what others did is rotated away.
#[derive(Default)]
struct Refusals {
    second: i64,
    logged: u32,
    left_out: u64,
}

/// Refused authentications that are logged in a second.
const REFUSALS: u32 = 50;
/// How many were not logged before the event that has this annotation.
const LEFT_OUT: &str = "keelson.dev/refusals-left-out";

impl Refusals {
    /// Whether one more is logged now; with how many before it were not.
    fn admit(&mut self, second: i64) -> Option<u64> {
        if self.second != second {
            (self.second, self.logged) = (second, 0);
        }
        if self.logged == REFUSALS {
            self.left_out += 1;
            return None;
        }
        self.logged += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Audit {
    pub fn off() -> Self {
        Audit(None)
    }
    pub fn to_file(policy: Policy, settings: Settings) -> anyhow::Result<Self> {
        let file = Arc::new(LogFile::open(settings)?);
        let refusals = Mutex::default();
        Ok(Audit(Some(Arc::new(Log { policy, file, refusals }))))
    }

    /// Adds to a page of metrics, under upstream's names.
    pub fn metrics(&self, page: &mut String) {
        let Some(log) = &self.0 else { return };
        let (written, lost) = log.file.counted();
        for (name, help, value) in [
            (
                "event",
                "Counter of audit events generated and sent to the audit backend.",
                written,
            ),
            (
                "error",
                "Counter of audit events that failed to be audited properly.",
                lost,
            ),
        ] {
            let labels = if name == "error" { "{plugin=\"log\"}" } else { "" };
            let name = format!("apiserver_audit_{name}_total");
            page.push_str(&format!(
                "# HELP {name} {help}\n# TYPE {name} counter\n{name}{labels} {value}\n"
            ));
        }
    }

    /// Follows a request, if the policy wants any of it logged. `user` is nobody where authentication failed.
    pub fn open(&self, context: &RequestContext, user: Option<&Arc<UserInfo>>) -> Trail {
        let log = self.0.clone().filter(|log| {
            let verdict = log.policy.verdict(user.map(AsRef::as_ref), &context.info);
            verdict.level > Level::None
        });
        Trail(log.map(|log| Following {
            log,
            // Its seat is given back when the request has ended, not when that is written.
            context: RequestContext {
                seat: Default::default(),
                ..context.clone()
            },
            user: user.cloned(),
            impersonated: None,
            constraint: None,
            request: None,
            response: None,
        }))
    }
}

/// A request on its way; empty if none of it is logged.
pub struct Trail(Option<Following>);

struct Following {
    log: Arc<Log>,
    context: RequestContext,
    user: Option<Arc<UserInfo>>,
    impersonated: Option<Arc<UserInfo>>,
    constraint: Option<&'static str>,
    request: Option<Copy>,
    response: Option<Copy>,
}

impl Following {
    fn verdict(&self) -> Verdict<'_> {
        self.log.policy.verdict(self.user.as_deref(), &self.context.info)
    }

    /// Writes an event, where the policy wants one at this stage.
    async fn log(&self, stage: Stage, outcome: Option<Outcome<'_>>, last: bool) {
        if let Some(line) = self.line(stage, outcome, last) {
            self.log.file.append(line).await;
        }
    }

    fn line(&self, stage: Stage, outcome: Option<Outcome<'_>>, last: bool) -> Option<Vec<u8>> {
        let verdict = self.verdict();
        if verdict.omits(stage) {
            return None;
        }
        let read = |copy: &Option<Copy>| match (last, copy) {
            (true, Some(copy)) => copy.read(verdict.omit_managed_fields),
            _ => Captured::None,
        };
        let (request, response) = (read(&self.request), read(&self.response));
        let mut annotations = self.context.audit.snapshot();
        if matches!(request, Captured::TooLarge) || matches!(response, Captured::TooLarge) {
            annotations.insert(TRUNCATED.into(), "true".into());
        }
        fn object(captured: &Captured) -> Option<&serde_json::value::RawValue> {
            match captured {
                Captured::Object(object) => Some(object),
                _ => None,
            }
        }
        let facts = Facts {
            user: self.user.as_deref(),
            impersonated: self.impersonated.as_deref(),
            constraint: self.constraint,
            outcome,
            request_object: object(&request),
            response_object: object(&response),
            annotations,
        };
        match event::line(&self.context, verdict.level, stage, facts) {
            Ok(line) => Some(line),
            Err(e) => {
                self.log.file.lose(&e);
                None
            }
        }
    }
}

impl Trail {
    /// The request has come; its body is copied from now on where the policy wants that.
    pub async fn received(&mut self, request: &mut Request) {
        let Some(following) = &mut self.0 else { return };
        following.log(Stage::RequestReceived, None, false).await;
        if following.verdict().level >= Level::Request {
            let body = std::mem::take(request.body_mut());
            let (body, copy) = Copy::of(body, request.headers());
            *request.body_mut() = body;
            following.request = Some(copy);
        }
    }

    /// The request acts as somebody else, by the verb of a constrained mode or by the right to all that the other may do.
    pub fn impersonates(&mut self, user: &Arc<UserInfo>, constraint: Option<&'static str>) {
        if let Some(following) = &mut self.0 {
            following.impersonated = Some(user.clone());
            following.constraint = constraint;
        }
    }

    /// Authentication has failed: what was tried is all there is to tell.
    pub async fn refused(mut self, message: &str) {
        if let Some(following) = self.0.take() {
            let second = keelson_clock::now().as_second();
            let Some(left_out) = following.log.refusals.lock().admit(second) else {
                return;
            };
            if left_out > 0 {
                following.context.audit.add(LEFT_OUT, left_out.to_string());
            }
            let outcome = Outcome::failure(401, message);
            following.log(Stage::ResponseStarted, Some(outcome), true).await;
        }
    }

    /// The head of the answer is there. The end is logged at once where nothing more is to be seen, else with the last
    /// of the body.
    pub async fn answered(mut self, answer: Response) -> Response {
        let Some(mut following) = self.0.take() else {
            return answer;
        };
        let code = answer.status().as_u16();
        let long_running = following.context.info.is_long_running();
        if long_running {
            let outcome = Outcome::code(code);
            following.log(Stage::ResponseStarted, Some(outcome), false).await;
        }
        // A key to the datastore is no matter for a log.
        let is_secret = following.context.info.path.trim_end_matches('/') == crate::joining::PATH;
        let whole = !long_running && !is_secret && following.verdict().level == Level::RequestResponse;
        if !long_running && !whole {
            let outcome = Outcome::code(code);
            following.log(Stage::ResponseComplete, Some(outcome), true).await;
            return answer;
        }
        let (head, mut body) = answer.into_parts();
        if whole {
            let (copied, copy) = Copy::of(body, &head.headers);
            body = copied;
            following.response = Some(copy);
        }
        let end = End {
            code,
            following: Some(following),
        };
        Response::from_parts(head, Body::guarded(body, end))
    }
}

impl Drop for Trail {
    /// Nobody came to tell of an answer: the handler panicked, or the request was given up.
    fn drop(&mut self) {
        let Some(following) = self.0.take() else { return };
        if std::thread::panicking() {
            later(following, Stage::Panic, Outcome::failure(500, "APIServer panic'd"));
        } else {
            let why = "the request was given up before it was answered";
            later(following, Stage::ResponseComplete, Outcome::failure(504, why));
        }
    }
}

/// Logs the end of a request when its response's body ends, or is given up.
struct End {
    code: u16,
    following: Option<Following>,
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(following) = self.following.take() {
            later(following, Stage::ResponseComplete, Outcome::code(self.code));
        }
    }
}

/// Logs the last of a request from where nothing can wait.
fn later(following: Following, stage: Stage, outcome: Outcome<'static>) {
    // Without a runtime the program is ending, and with it every connection.
    if tokio::runtime::Handle::try_current().is_ok()
        && let Some(line) = following.line(stage, Some(outcome), true)
    {
        following.log.file.append_later(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_counted_rather_than_logged() {
        let mut refusals = Refusals::default();
        let logged = (0..REFUSALS + 7).filter_map(|_| refusals.admit(1)).count();
        assert_eq!(logged, REFUSALS as usize);
        assert_eq!((refusals.admit(2), refusals.admit(2)), (Some(7), Some(0)));
    }
}
