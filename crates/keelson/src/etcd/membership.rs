//! How a machine becomes a member, and gets its vote.

use super::Place;
use super::program::Begin;
use anyhow::{Context, bail};
use keelson_store::etcd::{Cluster, Member};
use std::time::Duration;
use tokio::time::Instant;

/// How long a machine waits to be let in (another one may be joining) and for its vote: it has to read all there is first.
const PATIENCE: Duration = Duration::from_secs(600);
const AGAIN: Duration = Duration::from_millis(500);

/// Has the others take this machine in, as one that follows. Whatever an earlier attempt got done counts.
pub async fn join(cluster: &Cluster, place: &Place) -> anyhow::Result<Begin> {
    let until = Instant::now() + PATIENCE;
    loop {
        let members = cluster.members().await.context("who belongs to etcd")?;
        match step(&members, place) {
            Step::Start(all) => return Ok(Begin::Join(all)),
            // It was started once, and what it had is gone: it can't come back as the same.
            Step::Forget(id) => {
                tracing::warn!("this machine was a member of etcd before, and its data is gone: it begins anew");
                cluster
                    .remove(id)
                    .await
                    .context("forgetting this machine's earlier member of etcd")?;
            }
            Step::Taken(other) => bail!(
                "etcd has a member {} already, at {}: give another --node-name; or, if that machine is gone for good, run keelson etcd remove {} on a server",
                place.name,
                other,
                place.name
            ),
            Step::Add => match cluster.add_learner(&place.peer_url()).await {
                Ok(_) => {}
                // Somebody else is joining, or has joined just now.
                Err(error) if Instant::now() < until && is_passing(&error) => {
                    tracing::info!(%error, "waiting to be taken in by etcd");
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => return Err(error).context("joining etcd"),
            },
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Add,
    Forget(u64),
    /// Somebody else has the name, at this address.
    Taken(String),
    Start(Vec<(String, String)>),
}

/// What to do next, for a machine without data.
fn step(members: &[Member], place: &Place) -> Step {
    let own = place.peer_url();
    let Some(known) = members.iter().find(|m| m.peer_urls.contains(&own)) else {
        return match members.iter().find(|m| m.name == place.name) {
            Some(other) => Step::Taken(other.peer_urls.join(" ")),
            None => Step::Add,
        };
    };
    if !known.name.is_empty() {
        return Step::Forget(known.id);
    }
    let all = members.iter().flat_map(|member| {
        let name = match (member.id == known.id, member.name.as_str()) {
            (true, _) => place.name.clone(),
            // Added and not yet started: etcd goes by the addresses, and wants a name.
            (false, "") => format!("{:x}", member.id),
            (false, name) => name.to_string(),
        };
        member.peer_urls.iter().map(move |url| (name.clone(), url.clone()))
    });
    Step::Start(all.collect())
}

fn is_passing(error: &keelson_store::Error) -> bool {
    let text = error.to_string();
    [
        "too many learner",
        "unhealthy cluster",
        "not enough started",
        "Peer URLs already exists",
    ]
    .iter()
    .any(|known| text.contains(known))
        || !matches!(error, keelson_store::Error::Answered { .. })
}

/// Until this machine's member has its vote.
pub async fn vote(cluster: &Cluster, place: &Place) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    let own = place.peer_url();
    let mut told = String::new();
    loop {
        let members = cluster.members().await;
        let error = match &members {
            Ok(members) => match members.iter().find(|m| m.peer_urls.contains(&own)) {
                Some(member) if !member.learner => return Ok(()),
                Some(member) => match cluster.promote(member.id).await {
                    Ok(()) => {
                        tracing::info!("this machine's member of etcd has its vote");
                        return Ok(());
                    }
                    Err(error) => error,
                },
                None => bail!(
                    "this machine is no member of etcd any more: somebody has removed it. keelson etcd leave forgets what it had; then it can join again"
                ),
            },
            Err(error) => error.clone(),
        };
        if Instant::now() > until {
            return Err(error).context("this machine's member of etcd gets no vote");
        }
        let text = error.to_string();
        if told != text {
            tracing::info!(
                error = text,
                "waiting for etcd to have caught up, and for a majority of its members"
            );
            told = text;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_without_data_does() {
        let place = Place {
            data_dir: "/data".into(),
            name: "n2".into(),
            ip: [10, 0, 0, 2].into(),
            program: None,
        };
        let member = |id: u64, name: &str, ip: u8| Member {
            id,
            name: name.into(),
            peer_urls: vec![format!("https://10.0.0.{ip}:2380")],
            client_urls: Vec::new(),
            learner: false,
        };
        let first = member(1, "n1", 1);
        assert_eq!(step(std::slice::from_ref(&first), &place), Step::Add);
        assert_eq!(step(&[first.clone(), member(2, "n2", 2)], &place), Step::Forget(2));
        assert_eq!(
            step(&[first.clone(), member(3, "n2", 3)], &place),
            Step::Taken("https://10.0.0.3:2380".into())
        );
        let pairs =
            |all: &[(&str, &str)]| Step::Start(all.iter().map(|(n, u)| (n.to_string(), u.to_string())).collect());
        assert_eq!(
            step(&[first, member(2, "", 2), member(0xab, "", 3)], &place),
            pairs(&[
                ("n1", "https://10.0.0.1:2380"),
                ("n2", "https://10.0.0.2:2380"),
                ("ab", "https://10.0.0.3:2380")
            ])
        );
    }
}
