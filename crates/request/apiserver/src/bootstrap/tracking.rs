//! Since when this cluster keeps account of the use of tokens in secrets: ConfigMap
//! `kube-system/kube-apiserver-legacy-service-account-token-tracking`, which is made again when it goes. The cleaner of such
//! tokens waits for a year from that date on.

use super::RETRY;
use crate::live::Sink;
use crate::serve::Loopback;
use http::Method;
use keelson_api::{ApiResult, Object, Reason, Value, value};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const NAME: &str = "kube-apiserver-legacy-service-account-token-tracking";
const SINCE: &str = "since";
/// Servers of which some keep account and others don't would make and delete it in turns; as upstream.
const MADE_EVERY: Duration = Duration::from_secs(30 * 60);

/// What is to be done.
#[derive(Clone, Debug, Default)]
enum Found {
    #[default]
    Well,
    Missing,
    /// It says no date.
    Wrong(Box<Object>),
}

pub struct TokenTracking {
    loopback: Loopback,
    found: Mutex<Found>,
    wake: Notify,
}

impl TokenTracking {
    pub const PATH: &str = "/api/v1/namespaces/kube-system/configmaps";

    pub fn new(loopback: Loopback) -> Arc<Self> {
        Arc::new(TokenTracking {
            loopback,
            found: Mutex::default(),
            wake: Notify::new(),
        })
    }

    pub fn sink(self: &Arc<Self>) -> Arc<dyn Sink> {
        Arc::new(MapSink(self.clone()))
    }

    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            () = self.keep() => {}
            () = stop.cancelled() => {}
        }
    }

    async fn keep(&self) {
        let mut not_before = Instant::now();
        loop {
            self.wake.notified().await;
            loop {
                let found = self.found.lock().clone();
                let done = match found {
                    Found::Well => break,
                    Found::Missing if Instant::now() < not_before => {
                        tokio::select! {
                            () = tokio::time::sleep_until(not_before) => {}
                            () = self.wake.notified() => {}
                        }
                        continue;
                    }
                    Found::Missing => {
                        let made = self.make().await;
                        if made.is_ok() {
                            not_before = Instant::now() + MADE_EVERY;
                        }
                        made
                    }
                    Found::Wrong(map) => self.mend(*map).await,
                };
                match done {
                    // The watch tells what came of it.
                    Ok(()) => break,
                    // At the first start the namespace is still to come.
                    Err(e) if e.is(Reason::NotFound) => tokio::time::sleep(RETRY).await,
                    Err(e) => {
                        tracing::warn!("keeping {NAME} failed, trying again: {e}");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        }
    }

    async fn make(&self) -> ApiResult<()> {
        let map = value!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"namespace": "kube-system", "name": NAME}, "data": {SINCE: today()},
        });
        match self.loopback.send(Method::POST, Self::PATH, Some(&map)).await {
            Err(e) if !e.is(Reason::AlreadyExists) => Err(e),
            _ => Ok(()),
        }
    }

    async fn mend(&self, mut map: Object) -> ApiResult<()> {
        map.set_at(&["data", SINCE], today());
        let path = format!("{}/{NAME}", Self::PATH);
        match self.loopback.send(Method::PUT, &path, Some(&map.into())).await {
            Err(e) if !e.is(Reason::NotFound) && !e.is(Reason::Conflict) => Err(e),
            _ => Ok(()),
        }
    }

    fn set(&self, found: Found) {
        *self.found.lock() = found;
        self.wake.notify_one();
    }
}

fn today() -> String {
    keelson_clock::now().strftime("%Y-%m-%d").to_string()
}

fn judged(map: &Object) -> Found {
    let since = map.at(&["data", SINCE]).and_then(Value::as_str).unwrap_or_default();
    match jiff::civil::Date::strptime("%Y-%m-%d", since) {
        Ok(_) if since.len() == "2026-01-31".len() => Found::Well,
        _ => Found::Wrong(Box::new(map.clone())),
    }
}

/// The part of [`TokenTracking`] that the watch feeds.
struct MapSink(Arc<TokenTracking>);

impl Sink for MapSink {
    fn replace(&self, objects: Vec<Object>) {
        let own = objects.iter().find(|o| o.name() == NAME);
        self.0.set(own.map_or(Found::Missing, judged));
    }
    fn set(&self, object: Object) {
        if object.name() == NAME {
            self.0.set(judged(&object));
        }
    }
    fn delete(&self, object: Object) {
        if object.name() == NAME {
            self.0.set(Found::Missing);
        }
    }
}
