//! `/healthz`, `/livez` and `/readyz`: named checks, each of what is so, with `verbose` and `exclude`.
//!
//! What has to be done at a start is a *hook* by upstream's name: its check fails until it has been done once. Everything
//! else is measured when it is asked for.

mod hooks;
mod log;

pub use hooks::{Hook, Hooks};

use crate::request::{RequestInfo, Response, response};
use futures::future::BoxFuture;
use http::StatusCode;
use keelson_seal::Sealing;
use keelson_store::Store;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Whether the store is well.
pub async fn of_store(store: &dyn Store) -> Result<(), String> {
    match tokio::time::timeout(STORE_WITHIN, store.health()).await {
        // What is full can be read, and made room in: etcd answers as well then.
        Ok(Ok(()) | Err(keelson_store::Error::NoSpace { .. })) => Ok(()),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!("the store didn't answer within {STORE_WITHIN:?}")),
    }
}

type Check = Box<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// The store's own look at itself takes up to two seconds.
const STORE_WITHIN: Duration = Duration::from_secs(4);

/// Which endpoints a check counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    All,
    /// `/readyz`.
    Ready,
    /// All but `/livez`: what a restart wouldn't mend.
    NotLive,
}

impl On {
    fn counts(self, endpoint: &str) -> bool {
        match self {
            On::All => true,
            On::Ready => endpoint == "readyz",
            On::NotLive => endpoint != "livez",
        }
    }
}

struct Named {
    name: &'static str,
    on: On,
    check: Check,
}

/// The checks of the server, in the order they are shown.
#[derive(Default)]
pub struct Health(Vec<Named>);

impl Health {
    /// What every server checks. `missing` tells what it follows and has not read yet; `ending` that it takes its leave.
    pub fn of(
        store: &Arc<dyn Store>,
        hooks: &Arc<Hooks>,
        missing: impl Fn() -> Vec<&'static str> + Clone + Send + Sync + 'static,
        ending: &CancellationToken,
    ) -> Self {
        let mut health = Health::default();
        health.add("ping", false, || async { Ok(()) });
        let written = log::Log::default();
        health.add("log", false, move || std::future::ready(written.check()));
        for (name, ready_only) in [("etcd", false), ("etcd-readiness", true)] {
            let store = store.clone();
            health.add(name, ready_only, move || {
                let store = store.clone();
                async move { of_store(store.as_ref()).await }
            });
        }
        health.add("informer-sync", true, move || {
            let missing = missing();
            async move {
                if missing.is_empty() {
                    return Ok(());
                }
                Err(format!("{} informers not started yet: {missing:?}", missing.len()))
            }
        });
        for (index, name) in hooks::CHECKS.iter().enumerate() {
            let hooks = hooks.clone();
            health.add(name, false, move || std::future::ready(hooks.check(index)));
        }
        let ending = ending.clone();
        health.add("shutdown", true, move || {
            let over = ending.is_cancelled();
            async move {
                if over {
                    Err("process is shutting down".into())
                } else {
                    Ok(())
                }
            }
        });
        health
    }

    /// The plug-ins of key management, and the following of the file that names them, by upstream's names.
    pub fn add_sealing(&mut self, sealing: &Arc<Sealing>) {
        if sealing.reloads() {
            let name = "poststarthook/start-encryption-provider-config-automatic-reload";
            // It begins with the server.
            self.add(name, false, || std::future::ready(Ok(())));
        }
        if sealing.has_check() {
            let sealing = sealing.clone();
            self.add_on("kms-providers", On::NotLive, move || {
                let sealing = sealing.clone();
                async move { sealing.check().await }
            });
        }
    }

    pub fn add<F, R>(&mut self, name: &'static str, ready_only: bool, check: F)
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.add_on(name, if ready_only { On::Ready } else { On::All }, check);
    }

    fn add_on<F, R>(&mut self, name: &'static str, on: On, check: F)
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.0.push(Named {
            name,
            on,
            check: Box::new(move || Box::pin(check())),
        });
    }

    /// Answers a path below one of the endpoints; `None` for other paths.
    pub async fn serve(&self, info: &RequestInfo) -> Option<Response> {
        let path = info.path.trim_matches('/');
        let (endpoint, rest) = path.split_once('/').unwrap_or((path, ""));
        if !matches!(endpoint, "healthz" | "livez" | "readyz") {
            return None;
        }
        let mut checks = self.0.iter().filter(|c| c.on.counts(endpoint));
        if rest.is_empty() {
            return Some(self.all(endpoint, info).await);
        }
        let named = checks.find(|c| c.name == rest);
        Some(match named {
            None => response::text(StatusCode::NOT_FOUND, "404 page not found\n"),
            Some(c) => match (c.check)().await {
                Ok(()) => response::text(StatusCode::OK, "ok"),
                Err(e) => response::text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    format!("internal server error: {e}\n"),
                ),
            },
        })
    }

    async fn all(&self, endpoint: &str, info: &RequestInfo) -> Response {
        let mut unknown: Vec<&str> = info.query.all("exclude").collect();
        let (mut lines, mut failed) = (String::new(), false);
        for c in self.0.iter().filter(|c| c.on.counts(endpoint)) {
            if info.query.all("exclude").any(|e| e == c.name) {
                unknown.retain(|e| *e != c.name);
                let _ = writeln!(lines, "[+]{} excluded: ok", c.name);
                continue;
            }
            match (c.check)().await {
                Ok(()) => {
                    let _ = writeln!(lines, "[+]{} ok", c.name);
                }
                Err(e) => {
                    // The endpoint is public: why it failed is for the log.
                    tracing::info!("{endpoint} check {} failed: {e}", c.name);
                    failed = true;
                    let _ = writeln!(lines, "[-]{} failed: reason withheld", c.name);
                }
            }
        }
        if !unknown.is_empty() {
            let quoted: Vec<String> = unknown.iter().map(|u| format!("{u:?}")).collect();
            let _ = writeln!(
                lines,
                "warn: some health checks cannot be excluded: no matches for {}",
                quoted.join(", ")
            );
        }
        if failed {
            return response::text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("{lines}{endpoint} check failed\n"),
            );
        }
        if info.query.has("verbose") {
            return response::text(StatusCode::OK, format!("{lines}{endpoint} check passed\n"));
        }
        response::text(StatusCode::OK, "ok")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(health: &Health, uri: &str) -> (u16, String) {
        let info = RequestInfo::parse(&http::Method::GET, &uri.parse().unwrap()).unwrap();
        let answer = health.serve(&info).await.unwrap();
        let code = answer.status().as_u16();
        let text = answer.into_body().collect(4096).await.unwrap();
        (code, String::from_utf8(text.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn checks_are_shown_excluded_and_asked_alone() {
        let mut health = Health::default();
        health.add("ping", false, || async { Ok(()) });
        health.add("late", true, || async { Err("not yet".to_string()) });
        assert_eq!(ask(&health, "/livez").await, (200, "ok".into()));
        assert_eq!(
            ask(&health, "/readyz").await,
            (
                500,
                "[+]ping ok\n[-]late failed: reason withheld\nreadyz check failed\n".into()
            )
        );
        assert_eq!(
            ask(&health, "/readyz?verbose&exclude=late").await,
            (200, "[+]ping ok\n[+]late excluded: ok\nreadyz check passed\n".into())
        );
        assert_eq!(ask(&health, "/readyz/late").await.0, 500);
        assert_eq!(ask(&health, "/livez/ping").await, (200, "ok".into()));
        assert_eq!(ask(&health, "/livez/late").await.0, 404);
    }
}
