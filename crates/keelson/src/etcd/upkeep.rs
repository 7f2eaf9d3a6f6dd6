//! What etcd needs while it runs: its clients go to all members there are; its file is written anew when most of it is unused; what
//! it complains about is told, and mended where it can be.

use super::{Place, program};
use anyhow::{Context, ensure};
use keelson_store::etcd::{Alarm, Cluster, Member, Standing};
use keelson_store::{Etcd, Expect, Revision, Store};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// etcd tells nobody when its members change.
const LOOK: Duration = Duration::from_secs(15);
/// How often the file is looked at, and how long one member may be at writing its own anew: meanwhile no other begins.
const MEASURE: Duration = Duration::from_secs(600);
const TURN: Duration = Duration::from_secs(300);
/// How long a member may take to answer after its start, and how often it is asked.
const STARTS_WITHIN: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(500);
/// A smaller file isn't worth it.
const LEAST_UNUSED: u64 = 64 << 20;

pub struct Upkeep {
    pub place: Place,
    pub store: Arc<Etcd>,
    pub cluster: Cluster,
    /// The key that says whose turn it is.
    pub turn: String,
    /// Is told where all members are, this machine's first.
    pub learned: Box<dyn Fn(&[String]) + Send + Sync>,
}

impl Upkeep {
    pub async fn run(&self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut known = Vec::new();
        let mut complaints = Vec::new();
        let mut measured = tokio::time::Instant::now();
        loop {
            match self.store.members().await {
                Ok(members) => self.learn(&members, &mut known)?,
                Err(error) => tracing::debug!(%error, "who belongs to etcd can't be told now"),
            }
            match self.cluster.alarms().await {
                Ok(alarms) => {
                    if alarms != complaints && !alarms.is_empty() {
                        tracing::error!(?alarms, "etcd complains: keelson etcd status");
                    }
                    self.mend(&alarms).await;
                    complaints = alarms;
                }
                Err(error) => tracing::debug!(%error, "what etcd complains about can't be told now"),
            }
            if let Err(error) = self.trust().await {
                tracing::warn!(error = format!("{error:#}"), "etcd is still to trust another authority");
            }
            if measured.elapsed() >= MEASURE {
                measured = tokio::time::Instant::now();
                if let Err(error) = self.shrink().await {
                    tracing::warn!(error = format!("{error:#}"), "etcd's file could not be written anew");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    fn learn(&self, members: &[Member], known: &mut Vec<String>) -> anyhow::Result<()> {
        let now = addresses(members, &self.place.client_url());
        if now.is_empty() || now == *known {
            return Ok(());
        }
        tracing::info!(members = ?now, "the members of etcd");
        self.store.go_to(&now).context("the members of etcd")?;
        (self.learned)(&now);
        *known = now;
        Ok(())
    }

    /// No space, and yet enough of the file is unused: it is written anew, and may be written to again. One member at a time, in the
    /// order of their numbers: who has no space can't be told by a key whose turn it is.
    async fn mend(&self, alarms: &[Alarm]) {
        let Some(member) = next_without_space(alarms) else {
            return;
        };
        let mended = async {
            let url = self.place.client_url();
            let mut standing = self.cluster.standing(&url).await?;
            if standing.id != member {
                return anyhow::Ok(());
            }
            if !has_room(&standing) {
                if !would_have_room(&standing) {
                    return Ok(());
                }
                self.cluster.defragment(&url).await?;
                standing = self.cluster.standing(&url).await?;
            }
            if has_room(&standing) {
                self.cluster.clear_no_space(member).await?;
                tracing::info!("etcd has room again");
            }
            Ok(())
        };
        if let Err(error) = mended.await {
            tracing::warn!(
                error = format!("{error:#}"),
                "etcd has no space, and none could be made"
            );
        }
    }

    /// etcd reads once whom it trusts: when that is somebody else its program is started again, one member at a time and only while all
    /// others answer.
    async fn trust(&self) -> anyhow::Result<()> {
        if program::trusts(&self.place)? {
            return Ok(());
        }
        let Some(revision) = self.take_turn().await? else {
            return Ok(());
        };
        let restarted = async {
            let own = self.place.client_url();
            for url in addresses(&self.store.members().await?, &own) {
                self.cluster
                    .standing(&url)
                    .await
                    .with_context(|| format!("the member at {url}"))?;
            }
            tracing::info!("etcd is started again: it is to trust another authority");
            program::end(&self.place.data_dir).await?;
            // Who looks after it starts it.
            let until = tokio::time::Instant::now() + STARTS_WITHIN;
            while let Err(error) = self.cluster.standing(&own).await {
                ensure!(tokio::time::Instant::now() < until, "it doesn't answer yet: {error}");
                tokio::time::sleep(AGAIN).await;
            }
            anyhow::Ok(())
        };
        let done = restarted.await;
        let ended = self.end_turn(revision).await;
        // Why it wasn't started again counts more than a turn that runs out by itself.
        done.and(ended)
    }

    /// Whoever keeps its member from answering takes a turn: one at a time. `None`: it is another's.
    async fn take_turn(&self) -> anyhow::Result<Option<Revision>> {
        let value = self.place.name.clone().into_bytes();
        let taken = self
            .store
            .put(self.turn.clone().into(), value.into(), Expect::Absent, Some(TURN))
            .await;
        Ok(taken.context("whose turn it is")?.done())
    }

    async fn end_turn(&self, revision: Revision) -> anyhow::Result<()> {
        let ended = self
            .store
            .delete(self.turn.clone().into(), Expect::ModRevision(revision));
        ended.await.context("giving the turn up")?;
        Ok(())
    }

    async fn shrink(&self) -> anyhow::Result<()> {
        let url = self.place.client_url();
        let standing = self.cluster.standing(&url).await?;
        if !worth_it(&standing) {
            return Ok(());
        }
        // Who writes its file anew answers nobody.
        let Some(revision) = self.take_turn().await? else {
            return Ok(());
        };
        let before = standing.size;
        // Without an answer the member may still be at it: then the turn runs out by itself.
        self.cluster.defragment(&url).await?;
        self.end_turn(revision).await?;
        let after = self.cluster.standing(&url).await?.size;
        tracing::info!(before, after, "etcd's file was written anew");
        Ok(())
    }
}

/// Where clients go: this machine's member first, then others that have a vote.
pub fn addresses(members: &[Member], own: &str) -> Vec<String> {
    let serving = members.iter().filter(|m| !m.learner && !m.name.is_empty());
    let mut all: Vec<String> = serving.flat_map(|m| m.client_urls.iter().take(1).cloned()).collect();
    all.sort_by_key(|url| (url != own, url.clone()));
    all.dedup();
    all
}

fn unused(standing: &Standing) -> u64 {
    standing.size.saturating_sub(standing.used)
}

fn worth_it(standing: &Standing) -> bool {
    unused(standing) >= LEAST_UNUSED && unused(standing) > standing.size / 2
}

fn next_without_space(alarms: &[Alarm]) -> Option<u64> {
    let members = alarms.iter().filter_map(|alarm| match alarm {
        Alarm::NoSpace { member } => Some(*member),
        Alarm::Corrupt { .. } => None,
    });
    members.min()
}

/// How large the file may be for a tenth to be free. etcd before 3.6 doesn't tell its quota: then its default counts.
fn roomy(standing: &Standing) -> u64 {
    let quota = if standing.quota > 0 { standing.quota } else { 2 << 30 };
    quota - quota / 10
}

fn has_room(standing: &Standing) -> bool {
    standing.size < roomy(standing)
}

/// Once its file is written anew.
fn would_have_room(standing: &Standing) -> bool {
    standing.used < roomy(standing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_go_to_members_that_vote_their_own_first() {
        let member = |name: &str, ip: u8, learner: bool| Member {
            id: ip.into(),
            name: name.into(),
            peer_urls: Vec::new(),
            client_urls: vec![format!("https://10.0.0.{ip}:2379")],
            learner,
        };
        let members = [
            member("a", 1, false),
            member("b", 2, false),
            member("c", 3, true),
            member("", 4, false),
        ];
        assert_eq!(
            addresses(&members, "https://10.0.0.2:2379"),
            ["https://10.0.0.2:2379", "https://10.0.0.1:2379"]
        );
    }

    #[test]
    fn a_file_is_written_anew_when_most_of_it_is_unused() {
        let standing = |size: u64, used: u64| Standing {
            id: 1,
            version: "3.7.3".into(),
            leader: 1,
            learner: false,
            size: size << 20,
            used: used << 20,
            quota: 1000 << 20,
            errors: Vec::new(),
        };
        assert!(worth_it(&standing(200, 20)));
        assert!(!worth_it(&standing(60, 1)), "too small");
        assert!(!worth_it(&standing(500, 300)), "mostly used");
        assert!(has_room(&standing(800, 1)) && !has_room(&standing(950, 1)));
        assert!(would_have_room(&standing(950, 800)) && !would_have_room(&standing(950, 940)));
        let silent = Standing {
            quota: 0,
            ..standing(1000, 1)
        };
        assert!(has_room(&silent), "of etcd's default of 2 GiB");
        let alarms = [
            Alarm::Corrupt { member: 1 },
            Alarm::NoSpace { member: 3 },
            Alarm::NoSpace { member: 2 },
        ];
        assert_eq!(next_without_space(&alarms), Some(2));
    }
}
