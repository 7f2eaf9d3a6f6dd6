//! `keelson etcd`: the etcd that Keelson runs, on a machine that is a member or was one; and the store as an etcd of its own.

use super::followed;
use super::{pki, program};
use crate::client::block_on;
use crate::components;
use crate::config;
use crate::lock::Lock;
use crate::servers::Remembered;
use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use keelson_store::etcd::{Alarm, Cluster, Member, Options as StoreOptions, Standing};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    pub command: Command,
    /// Data directory of the server [default: /var/lib/keelson; of serve NAME.etcd]
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the store alone, as an etcd of one member: also if this program is called etcd
    Serve(Box<components::etcd::Options>),
    /// Which members there are, who leads, what they take up on disk, what they complain about
    Status,
    /// Write the members' files anew, without what was given up, one after the other
    Defragment,
    /// Remove a member whose machine is gone for good
    Remove {
        /// The member's name: its node's
        name: String,
    },
    /// Take this machine out of etcd, and forget what it had. Its server must not run
    Leave,
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let given = options.data_dir;
    let command = match options.command {
        Command::Serve(serve) => return components::etcd::main(*serve, given),
        command => command,
    };
    let data_dir = config::absolute(given.unwrap_or_else(|| config::DEFAULT_DATA_DIR.into()))?;
    block_on(async {
        match command {
            Command::Serve(_) => Ok(()),
            Command::Status => status(&data_dir).await,
            Command::Defragment => defragment(&data_dir).await,
            Command::Remove { name } => remove(&data_dir, &name).await,
            Command::Leave => leave(&data_dir).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Certificates by which this machine is known to members, wherever they are.
pub fn options(data_dir: &Path, endpoints: Vec<String>) -> anyhow::Result<StoreOptions> {
    let pki = pki(data_dir);
    let (cert, key) = (pki.join("client.crt"), pki.join("client.key"));
    Ok(StoreOptions {
        tls: Some(followed::config(Some(&pki.join("ca.crt")), Some((&cert, &key)))?),
        ..StoreOptions::new(endpoints)
    })
}

fn cluster(data_dir: &Path) -> anyhow::Result<Cluster> {
    let known = Remembered::read(data_dir)?.filter(|known| known.member.is_some());
    let known = known.with_context(|| {
        format!(
            "{} is of no server with an etcd that Keelson runs (keelson server --cluster-init, keelson server --server)",
            data_dir.display()
        )
    })?;
    Ok(Cluster::new(options(data_dir, known.etcd_servers)?)?)
}

async fn standings(cluster: &Cluster, members: &[Member]) -> Vec<Result<Standing, keelson_store::Error>> {
    let asked = members.iter().map(|member| async {
        match member.client_urls.first() {
            Some(url) => cluster.standing(url).await,
            None => Err(keelson_store::Error::Unavailable {
                what: "it was never started".into(),
            }),
        }
    });
    futures::future::join_all(asked).await
}

async fn status(data_dir: &Path) -> anyhow::Result<()> {
    let cluster = cluster(data_dir)?;
    let members = cluster
        .members()
        .await
        .context("etcd doesn't answer, or has no majority")?;
    let standings = standings(&cluster, &members).await;
    println!(
        "{:<16} {:<28} {:<9} {:<8} {:>9} {:>9}",
        "NAME", "ADDRESS", "ROLE", "VERSION", "FILE", "IN USE"
    );
    for (member, standing) in members.iter().zip(&standings) {
        let address = member.peer_urls.join(",");
        match standing {
            Ok(now) => {
                let role = match (member.learner, now.leader == member.id) {
                    (true, _) => "learner",
                    (_, true) => "leader",
                    _ => "follower",
                };
                println!(
                    "{:<16} {address:<28} {role:<9} {:<8} {:>9} {:>9}",
                    member.name,
                    now.version,
                    mebibytes(now.size),
                    mebibytes(now.used)
                );
                now.errors.iter().for_each(|error| println!("                 {error}"));
            }
            Err(error) => println!("{:<16} {address:<28} {error}", member.name),
        }
    }
    for alarm in cluster.alarms().await? {
        let (what, id) = match alarm {
            Alarm::NoSpace { member } => ("has no space left: nothing is written any more", member),
            Alarm::Corrupt { member } => (
                "differs from the others: remove it, and join again with its machine",
                member,
            ),
        };
        let name = members
            .iter()
            .find(|m| m.id == id)
            .map_or("a member", |m| m.name.as_str());
        println!("ALARM            {name} {what}");
    }
    Ok(())
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

async fn defragment(data_dir: &Path) -> anyhow::Result<()> {
    let cluster = cluster(data_dir)?;
    for member in cluster.members().await?.iter().filter(|m| !m.learner) {
        let Some(url) = member.client_urls.first() else {
            continue;
        };
        let before = cluster.standing(url).await.with_context(|| member.name.clone())?.size;
        cluster.defragment(url).await.with_context(|| member.name.clone())?;
        let after = cluster.standing(url).await.with_context(|| member.name.clone())?.size;
        println!("{:<16} {} to {}", member.name, mebibytes(before), mebibytes(after));
    }
    Ok(())
}

async fn remove(data_dir: &Path, name: &str) -> anyhow::Result<()> {
    let cluster = cluster(data_dir)?;
    let members = cluster.members().await?;
    let Some(member) = members.iter().find(|m| m.name == name || format!("{:x}", m.id) == name) else {
        bail!("etcd has no member {name} (keelson etcd status)");
    };
    let standings = standings(&cluster, &members).await;
    let up: Vec<bool> = standings.iter().map(Result::is_ok).collect();
    removable(&members, &up, member.id)?;
    cluster.remove(member.id).await?;
    println!("{name} is no member of etcd any more");
    Ok(())
}

/// Whether a majority of those that stay is there.
fn removable(members: &[Member], up: &[bool], id: u64) -> anyhow::Result<()> {
    let staying = || members.iter().zip(up).filter(|(m, _)| m.id != id && !m.learner);
    let (all, there) = (staying().count(), staying().filter(|(_, up)| **up).count());
    ensure!(all > 0, "it is the last member: without it nothing is left");
    ensure!(
        there > all / 2,
        "of the {all} members that would stay {there} answer: that is no majority, and nothing could be written any more"
    );
    Ok(())
}

async fn leave(data_dir: &Path) -> anyhow::Result<()> {
    if let Some(pid) = Lock::holder(data_dir)? {
        bail!(
            "the server of {} runs (process {pid}): stop it first",
            data_dir.display()
        );
    }
    let _lock = Lock::take(data_dir)?;
    let known = Remembered::read(data_dir)?;
    let name = known.as_ref().and_then(|known| known.member.clone());
    let name = name.context("this machine is no member of an etcd that Keelson runs")?;
    let cluster = cluster(data_dir)?;
    let members = cluster
        .members()
        .await
        .context(
            "the other members don't answer, or are no majority without this one: if they run, keelson etcd remove of this machine's name \
             on one of them first, while this server runs",
        )?;
    if let Some(own) = members.iter().find(|m| m.name == name) {
        let standings = standings(&cluster, &members).await;
        let up: Vec<bool> = standings.iter().map(Result::is_ok).collect();
        removable(&members, &up, own.id)?;
        cluster.remove(own.id).await?;
    }
    program::end(data_dir).await?;
    std::fs::remove_dir_all(super::directory(data_dir)).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    Remembered::forget(data_dir)?;
    crate::servers::forget_what_was_told(data_dir)?;
    println!("{name} is no member of etcd any more. keelson uninstall removes what else it has here");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_removed_whose_going_stops_the_rest() {
        let member = |id: u64, learner: bool| Member {
            id,
            name: format!("n{id}"),
            peer_urls: Vec::new(),
            client_urls: Vec::new(),
            learner,
        };
        let three = [member(1, false), member(2, false), member(3, false)];
        assert!(removable(&three, &[true, true, false], 3).is_ok());
        assert!(removable(&three, &[true, false, true], 3).is_err());
        assert!(removable(&three[..1], &[true], 1).is_err());
        assert!(removable(&[member(1, false), member(2, true)], &[true, true], 2).is_ok());
        assert!(removable(&[member(1, false), member(2, true)], &[true, true], 1).is_err());
    }
}
