//! Leader election: of several candidates one holds a Lease, and works while it does.
//!
//! The holder renews; the others watch for the lease to run out by their own clock, never by comparing clocks between
//! machines. A holder that can't renew in time stops before another may start. One that stops as planned ends its work
//! first and then gives the lease back, which the others watch for.

use crate::informer::{Informer, InformerOptions};
use crate::objects::{Objects, found};
use crate::rest::{Rest, Result, is_already_exists, is_conflict};
use crate::telling::Requests;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long giving the lease back may take.
const GIVE_BACK: Duration = Duration::from_secs(2);

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
    told: Option<Arc<Requests>>,
}

impl Candidate {
    fn leads(&self, so: bool) {
        if let Some(told) = &self.told {
            told.leads(&self.election.name, so);
        }
    }
}

/// The lease, held. It is renewed until [`Leading::finish`], or until this is dropped: then it is given back.
pub struct Leading {
    token: CancellationToken,
    finished: DropGuard,
    holding: JoinHandle<()>,
}

impl Leading {
    /// Cancelled when leadership is lost, or the stop given to [`acquire`] fires: no more work is to be begun.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// What was begun has been ended: gives the lease back, so that the next leader needs not wait for it to run out.
    pub async fn finish(self) {
        drop(self.finished);
        if let Err(error) = self.holding.await {
            tracing::warn!(%error, "the lease will run out");
        }
    }
}

/// Waits to be the leader; `None` after `stop`.
pub async fn acquire(rest: &Rest, election: Election, stop: &CancellationToken) -> Option<Leading> {
    let waiting = CancellationToken::new();
    let _waited = waiting.clone().drop_guard();
    let free = told_when_free(rest, &election, &waiting);
    let mut candidate = Candidate {
        leases: Objects::new(rest),
        election,
        seen: None,
        told: rest.told().cloned(),
    };
    candidate.leads(false);
    let renewed = loop {
        let began = Instant::now();
        let attempt = tokio::select! {
            () = stop.cancelled() => {
                // The attempt may have arrived.
                candidate.give_back().await;
                return None;
            }
            attempt = candidate.attempt() => attempt,
        };
        match attempt {
            // What was granted long ago has to be renewed before it counts.
            Ok(true) if began.elapsed() < candidate.election.renew => break began,
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) if is_conflict(&error) || is_already_exists(&error) => {}
            Err(error) => {
                tracing::warn!(lease = candidate.election.name, %error, "can't acquire the lease; will retry")
            }
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = free.notified() => {}
            () = tokio::time::sleep(candidate.election.retry) => {}
        }
    };
    tracing::info!(
        lease = candidate.election.name,
        identity = candidate.election.identity,
        "leading"
    );
    candidate.leads(true);
    let (token, finished) = (stop.child_token(), CancellationToken::new());
    let holding = tokio::spawn(hold(candidate, renewed, finished.clone(), token.clone()));
    Some(Leading {
        token,
        finished: finished.drop_guard(),
        holding,
    })
}

/// Notified when the lease is given back or removed: what is watched for is not waited for.
fn told_when_free(rest: &Rest, election: &Election, stop: &CancellationToken) -> Arc<Notify> {
    let options = InformerOptions {
        namespace: election.namespace.clone(),
        fields: format!("metadata.name={}", election.name),
        ..InformerOptions::default()
    };
    let free = Arc::new(Notify::new());
    let note = free.clone();
    let lease: Informer<Lease> = Informer::start(rest, options, stop);
    lease.on_change(move |change| {
        let holder = change.object().spec.as_ref().and_then(|s| s.holder_identity.as_deref());
        if change.is_deleted() || holder.is_none_or(str::is_empty) {
            note.notify_one();
        }
    });
    let stop = stop.clone();
    tokio::spawn(async move {
        stop.cancelled().await;
        drop(lease);
    });
    free
}

async fn hold(mut candidate: Candidate, renewed: Instant, finished: CancellationToken, leading: CancellationToken) {
    let lost = tokio::select! {
        () = finished.cancelled() => false,
        () = candidate.renew_from(renewed) => true,
    };
    leading.cancel();
    candidate.leads(false);
    if !lost {
        candidate.give_back().await;
    }
}

impl Candidate {
    /// Renews until that fails for too long. A renewal counts from when it was asked for: how long ago the server granted
    /// it, when the answer comes, nobody knows.
    async fn renew_from(&mut self, mut renewed: Instant) {
        let Election { renew, retry, .. } = self.election;
        loop {
            let due = renewed + renew;
            tokio::time::sleep_until(due.min(Instant::now() + retry)).await;
            let began = Instant::now();
            let name = self.election.name.clone();
            match tokio::time::timeout_at(due, self.attempt()).await {
                Ok(Ok(true)) => renewed = began,
                Ok(Ok(false)) => {
                    tracing::error!(lease = name, "somebody else holds the lease: no longer leading");
                    return;
                }
                Ok(Err(error)) => tracing::warn!(lease = name, %error, "can't renew the lease"),
                Err(_) => {
                    tracing::error!(
                        lease = name,
                        "the lease could not be renewed in time: no longer leading"
                    );
                    return;
                }
            }
        }
    }

    /// Within a bound: who can't reach the server leaves the lease to run out.
    async fn give_back(&self) {
        let why = match tokio::time::timeout(GIVE_BACK, self.release()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".into(),
        };
        tracing::warn!(
            lease = self.election.name,
            why,
            "the lease could not be given back; it will run out"
        );
    }

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

    /// As upstream does it: nobody's, and for a second.
    async fn release(&self) -> Result<()> {
        let Election {
            namespace,
            name,
            identity,
            ..
        } = &self.election;
        let Some(mut current) = found(self.leases.get(namespace, name).await)? else {
            return Ok(());
        };
        let spec = current.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(identity) {
            return Ok(());
        }
        let now = MicroTime(keelson_clock::now());
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.acquire_time = Some(now.clone());
        spec.renew_time = Some(now);
        self.leases.update(&current).await.map(drop)
    }
}
