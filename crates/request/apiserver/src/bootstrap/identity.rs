//! By which servers know each other: a Lease each in `kube-system`, of the name that kube-apiserver derives from the machine's, renewed while
//! the server is ready and taken away when it leaves. What servers left that went otherwise counts for an hour, and is removed then.
//!
//! Renewals are sent beside the announcement of the server ([`super::Servers`]), at the same times: the store commits both at once.

use crate::serve::Loopback;
use http::Method;
use keelson_api::{ApiError, ApiResult, Object, Reason, Value, value};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex as Turn;
use tokio_util::sync::CancellationToken;

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
/// The label by which leases of servers are found, and what it says of them.
const LABEL: &str = "apiserver.kubernetes.io/identity";
const COMPONENT: &str = "kube-apiserver";
/// So long a lease counts, in seconds; so often it is renewed; so often others' are looked at. All are upstream's.
const COUNTS: i64 = 3600;
const RENEWED: Duration = Duration::from_secs(10);
const COLLECTED: Duration = Duration::from_secs(3600);

/// This server's lease.
pub struct Identity {
    loopback: Loopback,
    host: String,
    name: String,
    holder: String,
    /// As it was written last: what is renewed is not read before.
    latest: Mutex<Option<Object>>,
    left: CancellationToken,
    /// Held while it writes, so that nothing is written after it has left.
    turn: Turn<()>,
}

impl Identity {
    pub fn new(loopback: Loopback, host: &str) -> Arc<Self> {
        let name = name_of(host);
        Arc::new(Identity {
            loopback,
            host: host.into(),
            holder: format!("{name}_{}", uuid::Uuid::new_v4()),
            name,
            latest: Mutex::default(),
            left: CancellationToken::new(),
            turn: Turn::default(),
        })
    }

    /// Until it leaves, for as long as it is polled.
    pub async fn run(&self) {
        tokio::join!(self.keep(), self.collect());
    }

    async fn keep(&self) {
        // An earlier run of this server is another holder.
        if let Err(e) = self.remove(&self.name, None).await {
            tracing::warn!("the lease of an earlier run of this server could not be removed: {e}");
        }
        loop {
            {
                let _turn = self.turn.lock().await;
                if self.left.is_cancelled() {
                    return;
                }
                if let Err(e) = self.renew().await {
                    tracing::warn!("renewing this server's lease failed, trying again: {e}");
                }
            }
            tokio::select! {
                () = self.left.cancelled() => return,
                () = tokio::time::sleep(RENEWED) => {}
            }
        }
    }

    /// The server goes: others need not wait for the lease to end.
    pub async fn leave(&self) -> ApiResult<()> {
        self.left.cancel();
        let _turn = self.turn.lock().await;
        let latest = self.latest.lock().take();
        let version = latest.and_then(|lease| Some(lease.at(&["metadata", "resourceVersion"])?.as_str()?.to_owned()));
        match self.remove(&self.name, version).await {
            // The one who follows here has it.
            Err(e) if e.is(Reason::Conflict) => Ok(()),
            done => done,
        }
    }

    async fn renew(&self) -> ApiResult<()> {
        let latest = self.latest.lock().take();
        if let Some(latest) = latest {
            match self.put(latest).await {
                Ok(()) => return Ok(()),
                // Somebody else has written to it, or taken it away.
                Err(e) if e.is(Reason::Conflict) || e.is(Reason::NotFound) => {}
                Err(e) => return Err(e),
            }
        }
        match self.loopback.object(&self.path(&self.name)).await? {
            Some(found) => self.put(found).await,
            None => {
                let lease = value!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": self.name.as_str(), "namespace": "kube-system"}});
                let mut lease = Object::try_from(lease).map_err(|_| ApiError::internal("no object"))?;
                self.complete(&mut lease);
                let made = self.loopback.send(Method::POST, LEASES, Some(&lease.into())).await?;
                *self.latest.lock() = Some(made);
                Ok(())
            }
        }
    }

    async fn put(&self, mut lease: Object) -> ApiResult<()> {
        self.complete(&mut lease);
        let path = self.path(&self.name);
        let written = self.loopback.send(Method::PUT, &path, Some(&lease.into())).await?;
        *self.latest.lock() = Some(written);
        Ok(())
    }

    fn complete(&self, lease: &mut Object) {
        let now = keelson_clock::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        lease.set_at(&["metadata", "labels", LABEL], COMPONENT);
        lease.set_at(&["metadata", "labels", "kubernetes.io/hostname"], self.host.as_str());
        lease.set_at(&["spec", "holderIdentity"], self.holder.as_str());
        lease.set_at(&["spec", "leaseDurationSeconds"], COUNTS);
        lease.set_at(&["spec", "renewTime"], now);
    }

    /// Removes what nobody renews any more, now and every hour. Every server does, and whoever is first has done it.
    async fn collect(&self) {
        loop {
            if let Err(e) = self.collect_once().await {
                tracing::warn!("removing leases of servers that are gone failed, trying again later: {e}");
            }
            tokio::select! {
                () = self.left.cancelled() => return,
                () = tokio::time::sleep(COLLECTED) => {}
            }
        }
    }

    async fn collect_once(&self) -> ApiResult<()> {
        let path = format!("{LEASES}?labelSelector={LABEL}%3D{COMPONENT}&resourceVersion=0");
        let list = self.loopback.send(Method::GET, &path, None).await?;
        let now = keelson_clock::now();
        let ended = list
            .at(&["items"])
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter(|lease| has_ended(lease, now));
        let mut failed = Ok(());
        for lease in ended {
            let text = |path: &[&str]| lease.at(path).and_then(Value::as_str).unwrap_or_default().to_owned();
            let version = text(&["metadata", "resourceVersion"]);
            // One that was renewed meanwhile stays.
            match self.remove(&text(&["metadata", "name"]), Some(version)).await {
                Err(e) if !e.is(Reason::Conflict) => failed = Err(e),
                _ => {}
            }
        }
        failed
    }

    async fn remove(&self, name: &str, version: Option<String>) -> ApiResult<()> {
        let options = version.map(|version| {
            value!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"resourceVersion": version}})
        });
        match self
            .loopback
            .send(Method::DELETE, &self.path(name), options.as_ref())
            .await
        {
            Err(e) if !e.is(Reason::NotFound) => Err(e),
            _ => Ok(()),
        }
    }

    fn path(&self, name: &str) -> String {
        format!("{LEASES}/{name}")
    }
}

/// Whether nobody renews it: one that doesn't say until when it counts is no server's.
fn has_ended(lease: &Value, now: jiff::Timestamp) -> bool {
    let renewed = lease.at(&["spec", "renewTime"]).and_then(Value::as_str);
    let renewed = renewed.and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let seconds = lease.at(&["spec", "leaseDurationSeconds"]).and_then(Value::as_i64);
    match (renewed, seconds) {
        (Some(renewed), Some(seconds)) => now.as_second() - renewed.as_second() > seconds,
        _ => true,
    }
}

/// The name of the server on a machine: the same after each start, and another than that of any other server there.
fn name_of(host: &str) -> String {
    let mut hash = Sha256::new();
    for part in [host, COMPONENT] {
        hash.update((part.len() as u16).to_be_bytes());
        hash.update(part);
    }
    format!("apiserver-{}", base32(&hash.finalize()[..16]))
}

fn base32(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let bit = |at: usize| bytes.get(at / 8).is_some_and(|byte| byte >> (7 - at % 8) & 1 == 1);
    let digit = |at: usize| (at..at + 5).fold(0usize, |sum, at| sum << 1 | usize::from(bit(at)));
    (0..bytes.len() * 8)
        .step_by(5)
        .map(|at| char::from(DIGITS[digit(at)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_has_the_name_that_kube_apiserver_has_there() {
        assert_eq!(name_of("vm"), "apiserver-wlv32tlttr4jl3gtroqexyxapa");
    }

    #[test]
    fn a_lease_ends_with_its_time() {
        let now: jiff::Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        let lease = |renewed: &str| value!({"spec": {"renewTime": renewed, "leaseDurationSeconds": 3600}});
        assert!(!has_ended(&lease("2026-01-01T11:00:00.000000Z"), now));
        assert!(has_ended(&lease("2026-01-01T10:59:59.000000Z"), now));
        assert!(has_ended(&value!({"spec": {"leaseDurationSeconds": 3600}}), now));
    }
}
