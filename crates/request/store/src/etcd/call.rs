//! One request to etcd: to which member, how often, how long, and what its failure means.
//!
//! A read is tried at another member as long as there is time. A write is sent once: when no answer came, or one that
//! leaves open what happened, nobody but the store's content can tell ([`Failure::Unsure`]). As with upstream's client, a
//! write goes to another member only if it has certainly not left.

use super::members::{Members, Picked, chain};
use crate::Error;
use futures::future::BoxFuture;
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, ConnectError, Response, Status};

/// From the first attempt to the last. etcd gives up what it can't agree on after seven seconds.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// After so long another member is asked, if it is a read.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(4);
pub(super) const PAUSE: Duration = Duration::from_millis(25);

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    Compacted,
    Future,
    /// The lease is gone, and what should have hung on it was not written.
    NoLease,
    /// Nothing was done; what etcd says.
    Refused(String),
    /// A write may have happened.
    Unsure(Error),
    /// Nothing was done.
    Unsent(Error),
}

impl Failure {
    /// For a request that has nothing to do with revisions.
    pub fn plain(self) -> Error {
        let answered = |what: &str| Error::Answered { what: what.into() };
        match self {
            Failure::Compacted => answered("etcdserver: mvcc: required revision has been compacted"),
            Failure::Future => answered("etcdserver: mvcc: required revision is a future revision"),
            Failure::NoLease => answered("etcdserver: requested lease not found"),
            Failure::Refused(what) => Error::Answered { what },
            Failure::Unsure(error) | Failure::Unsent(error) => error,
        }
    }
}

type Sent<T> = BoxFuture<'static, Result<Response<T>, Status>>;

/// A request that changes nothing.
pub(super) async fn read<T>(members: &Members, send: impl Fn(Channel) -> Sent<T>) -> Result<T, Failure> {
    read_within(members, ANSWER_WITHIN, send).await
}

pub(super) async fn read_within<T>(
    members: &Members,
    within: Duration,
    send: impl Fn(Channel) -> Sent<T>,
) -> Result<T, Failure> {
    let until = Instant::now() + within;
    loop {
        let picked = members.pick(until).await.map_err(Failure::Unsent)?;
        let patience = until.min(Instant::now() + ATTEMPT_WITHIN);
        let failure = match tokio::time::timeout_at(patience, send(picked.channel.clone())).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => meaning(&picked, &status),
            Err(_) => late(&picked),
        };
        match failure {
            Failure::Unsure(_) | Failure::Unsent(_) if Instant::now() + PAUSE < until => {
                tokio::time::sleep(PAUSE).await;
            }
            failure => return Err(failure),
        }
    }
}

/// A request that changes something if it arrives.
pub(super) async fn write<T>(members: &Members, send: impl Fn(Channel) -> Sent<T>) -> Result<T, Failure> {
    let until = Instant::now() + ANSWER_WITHIN;
    loop {
        let picked = members.pick(until).await.map_err(Failure::Unsent)?;
        let failure = match tokio::time::timeout_at(until, send(picked.channel.clone())).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => meaning(&picked, &status),
            Err(_) => late(&picked),
        };
        match failure {
            Failure::Unsent(_) if Instant::now() + PAUSE < until => tokio::time::sleep(PAUSE).await,
            failure => return Err(failure),
        }
    }
}

/// The member took the request and is silent.
fn late(picked: &Picked) -> Failure {
    picked.shun();
    picked.broken();
    Failure::Unsure(Error::Stalled {
        what: format!("no answer from {} in time", picked.name()),
    })
}

/// What a failed request means; the member's standing is adjusted to it.
pub(super) fn meaning(picked: &Picked, status: &Status) -> Failure {
    let message = status.message();
    if let Some(words) = message.strip_prefix("etcdserver: ") {
        return match words {
            "mvcc: required revision has been compacted" => Failure::Compacted,
            "mvcc: required revision is a future revision" => Failure::Future,
            "requested lease not found" => Failure::NoLease,
            // A member without a vote refuses before it looks, until it has its vote: another may serve.
            "rpc not supported for learner" => {
                picked.shun();
                Failure::Unsent(Error::Unavailable {
                    what: format!("{}: {message}", picked.name()),
                })
            }
            // It has no leader, or lost it, or is going down; what it had taken may still be agreed on.
            _ if status.code() == Code::Unavailable => {
                picked.shun();
                Failure::Unsure(Error::Answered { what: message.into() })
            }
            _ => Failure::Refused(message.into()),
        };
    }
    match status.code() {
        // More than etcd takes as a message at all: the same fault, found one step earlier.
        Code::ResourceExhausted => Failure::Refused("etcdserver: request is too large".into()),
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => Failure::Refused(format!("rpc error: code = {:?} desc = {message}", status.code())),
        _ => {
            picked.broken();
            let error = Error::Unavailable {
                what: format!("{}: {}", picked.name(), chain(status)),
            };
            match never_left(status) {
                true => Failure::Unsent(error),
                false => Failure::Unsure(Error::Stalled {
                    what: format!("the connection to {} broke: {}", picked.name(), chain(status)),
                }),
            }
        }
    }
}

/// There was no connection that it could have gone by.
fn never_left(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}
