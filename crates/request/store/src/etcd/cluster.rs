//! etcd as a cluster of members: who belongs to it, what each says of itself, and what keeps it in order. For whoever runs it.

use super::call::{self, Failure};
use super::members::{Members, Picked};
use super::wire::etcdserverpb::cluster_client::ClusterClient;
use super::wire::etcdserverpb::maintenance_client::MaintenanceClient;
use super::wire::etcdserverpb::{
    self as pb, AlarmRequest, AlarmType, DefragmentRequest, MemberAddRequest, MemberListRequest, MemberPromoteRequest,
    MemberRemoveRequest, StatusRequest, alarm_request::AlarmAction,
};
use super::{Etcd, Options};
use crate::{Error, Result};
use futures::FutureExt;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// A member writes its whole file anew, and answers nobody meanwhile.
const DEFRAGMENT_WITHIN: Duration = Duration::from_secs(120);

/// One of etcd's members, as the others know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: u64,
    /// Empty as long as it hasn't been started.
    pub name: String,
    pub peer_urls: Vec<String>,
    pub client_urls: Vec<String>,
    /// It follows, and has no vote yet.
    pub learner: bool,
}

/// What one member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub id: u64,
    pub version: String,
    /// Whom it follows; 0: nobody.
    pub leader: u64,
    pub learner: bool,
    /// Bytes of its file, those in use, and the most it may have.
    pub size: u64,
    pub used: u64,
    pub quota: u64,
    /// What it complains about.
    pub errors: Vec<String>,
}

/// What stops a member from serving until somebody has seen to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// Its file has reached its quota: nothing is written any more.
    NoSpace { member: u64 },
    /// Its content differs from the others'.
    Corrupt { member: u64 },
}

/// A connection to any of the members.
pub struct Cluster {
    members: Members,
    options: Options,
}

impl Cluster {
    /// Begins to connect. Needs a tokio runtime.
    pub fn new(options: Options) -> Result<Cluster> {
        Ok(Cluster {
            members: Members::new(&options.endpoints, options.tls.as_ref())?,
            options,
        })
    }

    /// Everybody who belongs to it, as the majority knows it.
    pub async fn members(&self) -> Result<Vec<Member>> {
        list(&self.members).await
    }

    /// A member that follows the others until it is promoted; who all are then. Its peers reach it at `url`.
    pub async fn add_learner(&self, url: &str) -> Result<(Member, Vec<Member>)> {
        let request = MemberAddRequest {
            peer_ur_ls: vec![url.into()],
            is_learner: true,
        };
        let send = |channel| {
            let request = request.clone();
            async move { ClusterClient::new(channel).member_add(request).await }.boxed()
        };
        let answer = call::write(&self.members, send).await.map_err(Failure::plain)?;
        let added = answer.member.ok_or_else(|| Error::Answered {
            what: "etcd names no member that it has added".into(),
        })?;
        Ok((member(added), answer.members.into_iter().map(member).collect()))
    }

    /// Gives a learner its vote; refused until it has caught up.
    pub async fn promote(&self, id: u64) -> Result<()> {
        let send = |channel| {
            async move {
                ClusterClient::new(channel)
                    .member_promote(MemberPromoteRequest { id })
                    .await
            }
            .boxed()
        };
        call::write(&self.members, send).await.map_err(Failure::plain).map(drop)
    }

    pub async fn remove(&self, id: u64) -> Result<()> {
        let send = |channel| {
            async move {
                ClusterClient::new(channel)
                    .member_remove(MemberRemoveRequest { id })
                    .await
            }
            .boxed()
        };
        call::write(&self.members, send).await.map_err(Failure::plain).map(drop)
    }

    pub async fn alarms(&self) -> Result<Vec<Alarm>> {
        let request = AlarmRequest {
            action: AlarmAction::Get.into(),
            member_id: 0,
            alarm: AlarmType::None.into(),
        };
        let send = |channel| async move { MaintenanceClient::new(channel).alarm(request).await }.boxed();
        let answer = call::read(&self.members, send).await.map_err(Failure::plain)?;
        let known = answer.alarms.into_iter().filter_map(|alarm| {
            let member = alarm.member_id;
            match alarm.alarm() {
                AlarmType::Nospace => Some(Alarm::NoSpace { member }),
                AlarmType::Corrupt => Some(Alarm::Corrupt { member }),
                AlarmType::None => None,
            }
        });
        Ok(known.collect())
    }

    /// Room has been made: the member may write again.
    pub async fn clear_no_space(&self, member: u64) -> Result<()> {
        let request = AlarmRequest {
            action: AlarmAction::Deactivate.into(),
            member_id: member,
            alarm: AlarmType::Nospace.into(),
        };
        let send = |channel| async move { MaintenanceClient::new(channel).alarm(request).await }.boxed();
        call::write(&self.members, send).await.map_err(Failure::plain).map(drop)
    }

    /// What the member at `url` says.
    pub async fn standing(&self, url: &str) -> Result<Standing> {
        let within = self.options.health_within;
        let (picked, until) = self.one(url, within).await?;
        let mut client = MaintenanceClient::new(picked.channel.clone());
        let answer = timeout_at(until, client.status(StatusRequest {})).await;
        let status = answered(&picked, answer)?;
        Ok(Standing {
            id: status.header.as_ref().map_or(0, |h| h.member_id),
            leader: status.leader,
            learner: status.is_learner,
            size: u64::try_from(status.db_size).unwrap_or_default(),
            used: u64::try_from(status.db_size_in_use).unwrap_or_default(),
            quota: u64::try_from(status.db_size_quota).unwrap_or_default(),
            version: status.version,
            errors: status.errors,
        })
    }

    /// Has the member at `url` write its file anew, without what was given up. It answers nobody until that is done.
    pub async fn defragment(&self, url: &str) -> Result<()> {
        let (picked, until) = self.one(url, DEFRAGMENT_WITHIN).await?;
        let mut client = MaintenanceClient::new(picked.channel.clone());
        let answer = timeout_at(until, client.defragment(DefragmentRequest {})).await;
        answered(&picked, answer).map(drop)
    }

    async fn one(&self, url: &str, within: Duration) -> Result<(Picked, Instant)> {
        let until = Instant::now() + within;
        let one = Members::new(&[url.to_string()], self.options.tls.as_ref())?;
        Ok((one.pick(until).await?, until))
    }
}

impl Etcd {
    /// Everybody who belongs to it, as the majority knows it.
    pub async fn members(&self) -> Result<Vec<Member>> {
        list(&self.members).await
    }

    /// Goes to these members from now on. Connections to those that stay, stay.
    pub fn go_to(&self, endpoints: &[String]) -> Result<()> {
        self.members.replace(endpoints)
    }
}

async fn list(members: &Members) -> Result<Vec<Member>> {
    let request = MemberListRequest { linearizable: true };
    let send = |channel| async move { ClusterClient::new(channel).member_list(request).await }.boxed();
    let answer = call::read(members, send).await.map_err(Failure::plain)?;
    Ok(answer.members.into_iter().map(member).collect())
}

fn answered<T>(
    picked: &Picked,
    answer: std::result::Result<std::result::Result<tonic::Response<T>, tonic::Status>, tokio::time::error::Elapsed>,
) -> Result<T> {
    match answer {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(call::meaning(picked, &status).plain()),
        Err(_) => Err(Error::Stalled {
            what: format!("no answer from {} in time", picked.name()),
        }),
    }
}

fn member(member: pb::Member) -> Member {
    Member {
        id: member.id,
        name: member.name,
        peer_urls: member.peer_ur_ls,
        client_urls: member.client_ur_ls,
        learner: member.is_learner,
    }
}
