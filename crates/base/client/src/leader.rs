//! Leader election: of several candidates one holds a Lease, and works while it does.
//!
//! The holder renews; the others watch for the lease to run out by their own clock, never by comparing clocks between
//! machines. A holder that can't renew in time stops before another may start.

use crate::objects::{Objects, found};
use crate::rest::{Rest, Result};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

#[derive(Clone, Debug)]
pub struct Election {
    pub namespace: String,
    pub name: String,
    /// Unique among the candidates.
    pub identity: String,
    pub lease: Duration,
    pub renew: Duration,
    pub retry: Duration,
}

impl Election {
    pub fn new(name: &str, identity: &str) -> Self {
        Election {
            namespace: "kube-system".into(),
            name: name.into(),
            identity: identity.into(),
            lease: Duration::from_secs(15),
            renew: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

struct Seen {
    holder: String,
    renewed: Option<MicroTime>,
    at: Instant,
}

struct Candidate {
    leases: Objects<Lease>,
    election: Election,
    seen: Option<Seen>,
}

/// Waits to be the leader; the token returned is cancelled when leadership is lost or `stop` fires. `None` after `stop`.
pub async fn acquire(rest: &Rest, election: Election, stop: &CancellationToken) -> Option<CancellationToken> {
    let mut candidate = Candidate {
        leases: Objects::new(rest),
        election,
        seen: None,
    };
    loop {
        let attempt = tokio::select! {
            () = stop.cancelled() => return None,
            attempt = candidate.attempt() => attempt,
        };
        match attempt {
            Ok(true) => break,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(lease = candidate.election.name, %error, "can't acquire the lease; will retry")
            }
        }
        let wait = candidate.election.retry;
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(wait) => {}
        }
    }
    tracing::info!(
        lease = candidate.election.name,
        identity = candidate.election.identity,
        "leading"
    );
    let leading = stop.child_token();
    tokio::spawn(hold(candidate, stop.clone(), leading.clone()));
    Some(leading)
}

async fn hold(mut candidate: Candidate, stop: CancellationToken, leading: CancellationToken) {
    let mut renewed = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(candidate.election.retry) => {}
        }
        match tokio::time::timeout_at(renewed + candidate.election.renew, candidate.attempt()).await {
            Ok(Ok(true)) => renewed = Instant::now(),
            Ok(Ok(false)) => {
                tracing::error!(
                    lease = candidate.election.name,
                    "somebody else holds the lease: no longer leading"
                );
                break;
            }
            Ok(Err(error)) => {
                tracing::warn!(lease = candidate.election.name, %error, "can't renew the lease");
                if renewed.elapsed() >= candidate.election.renew {
                    break;
                }
            }
            Err(_) => {
                tracing::error!(
                    lease = candidate.election.name,
                    "the lease could not be renewed in time: no longer leading"
                );
                break;
            }
        }
    }
    leading.cancel();
    if stop.is_cancelled()
        && let Err(error) = candidate.release().await
    {
        tracing::debug!(%error, "the lease could not be given back; it will run out");
    }
}

impl Candidate {
    async fn attempt(&mut self) -> Result<bool> {
        let Election {
            namespace,
            name,
            identity,
            lease,
            ..
        } = &self.election;
        let now = MicroTime(keelson_clock::now());
        let seconds = lease.as_secs().max(1) as i32;
        let Some(mut current) = found(self.leases.get(namespace, name).await)? else {
            let wanted = Lease {
                metadata: ObjectMeta {
                    namespace: Some(namespace.clone()),
                    name: Some(name.clone()),
                    ..Default::default()
                },
                spec: Some(LeaseSpec {
                    holder_identity: Some(identity.clone()),
                    lease_duration_seconds: Some(seconds),
                    acquire_time: Some(now.clone()),
                    renew_time: Some(now),
                    lease_transitions: Some(0),
                    ..Default::default()
                }),
            };
            self.leases.create(&wanted).await?;
            return Ok(true);
        };
        let spec = current.spec.get_or_insert_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if self
            .seen
            .as_ref()
            .is_none_or(|seen| seen.holder != holder || seen.renewed != spec.renew_time)
        {
            self.seen = Some(Seen {
                holder: holder.clone(),
                renewed: spec.renew_time.clone(),
                at: Instant::now(),
            });
        }
        let term = Duration::from_secs(spec.lease_duration_seconds.unwrap_or(seconds).max(1) as u64);
        let runs = self.seen.as_ref().is_some_and(|seen| seen.at.elapsed() < term);
        if !holder.is_empty() && holder != *identity && runs {
            return Ok(false);
        }
        if holder != *identity {
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0) + 1);
        }
        spec.holder_identity = Some(identity.clone());
        spec.lease_duration_seconds = Some(seconds);
        spec.renew_time = Some(now);
        self.leases.update(&current).await?;
        Ok(true)
    }

    async fn release(&mut self) -> Result<()> {
        let Election {
            namespace,
            name,
            identity,
            ..
        } = &self.election;
        let mut current = self.leases.get(namespace, name).await?;
        let spec = current.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(identity) {
            return Ok(());
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(keelson_clock::now()));
        self.leases.update(&current).await.map(drop)
    }
}
