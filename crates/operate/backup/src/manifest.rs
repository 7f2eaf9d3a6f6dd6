//! What a backup is made of, and what is done with one as a whole: written, read, held against what was kept, given up.

use crate::repository::{Damage, File, Id, Lock, Repository, Result, files::Sent};
use futures::{StreamExt, stream};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

/// To the millisecond: two backups of one second have an order. Names of before have none.
const TIME: &str = "%Y%m%dT%H%M%S%.3fZ";
const TIME_READ: &str = "%Y%m%dT%H%M%S%.fZ";
const SCHEDULED: &str = "scheduled";
/// How many faults are told one by one.
const TOLD: usize = 50;
const AT_ONCE: usize = 6;
/// By how much clocks of several machines may differ.
const AHEAD: SignedDuration = SignedDuration::from_hours(1);
/// A key's file is short.
pub const KEY_MOST: u64 = 1 << 20;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub at: Timestamp,
    /// The program's version, and Kubernetes'.
    pub keelson: String,
    pub kubernetes: String,
    pub node: String,
    /// Of the store.
    pub revision: u64,
    pub keys: u64,
    pub scheduled: bool,
    /// A snapshot, as `keelson store snapshot` takes them.
    pub store: File,
    /// The cluster's keys, below its directory of them.
    pub pki: Vec<Key>,
    pub volumes: Vec<Volume>,
    /// Whether all volumes are of one moment; else each is of one of its own.
    pub one_moment: bool,
    /// Volumes that the cluster has and the backup hasn't, and why.
    #[serde(default)]
    pub lacking: Vec<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    pub path: String,
    pub mode: u32,
    pub content: File,
}

/// A volume of this machine's disk.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    pub id: String,
    /// What the driver knows of it, as it writes it.
    pub record: serde_json::Value,
    pub at: Timestamp,
    pub data: File,
}

impl Key {
    /// Where it goes, if its path leads nowhere else.
    pub fn relative(&self) -> Option<PathBuf> {
        let path = Path::new(&self.path);
        let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        (plain && !self.path.is_empty()).then(|| path.to_path_buf())
    }
}

impl Manifest {
    /// Each file, and what it is called.
    pub fn files(&self) -> impl Iterator<Item = (String, &File)> {
        let store = std::iter::once(("the store".to_string(), &self.store));
        let keys = self.pki.iter().map(|key| (format!("key {}", key.path), &key.content));
        let volumes = self.volumes.iter().map(|v| (format!("volume {}", v.id), &v.data));
        store.chain(keys).chain(volumes)
    }
}

/// A backup and its name.
#[derive(Clone, Debug)]
pub struct Backup {
    pub name: String,
    pub manifest: Manifest,
}

/// What is wrong with a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub backup: String,
    pub what: String,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    pub backups: u64,
    pub pieces: u64,
    pub bytes: u64,
    pub faults: Vec<Fault>,
    /// Beyond those that are told.
    pub more: u64,
}

impl Verified {
    fn fault(&mut self, backup: &str, what: String) {
        if self.faults.len() < TOLD {
            let backup = backup.to_string();
            self.faults.push(Fault { backup, what });
        } else {
            self.more += 1;
        }
    }
}

fn full(name: &str) -> String {
    format!("{}{name}", crate::repository::BACKUPS)
}

/// Puts files into a repository.
pub struct Writer<'a> {
    repository: &'a Repository,
    known: Mutex<HashSet<Id>>,
    sent: Mutex<Sent>,
}

impl<'a> Writer<'a> {
    pub async fn new(repository: &'a Repository) -> Result<Writer<'a>> {
        Ok(Writer {
            known: Mutex::new(repository.known().await?),
            sent: Mutex::default(),
            repository,
        })
    }

    pub async fn keep(&self, path: &Path) -> Result<File> {
        self.repository.keep(&self.known, &self.sent, path).await
    }

    /// From now on there is such a backup. Gives its name.
    pub async fn finish(self, manifest: &Manifest) -> Result<(String, Sent)> {
        let at = manifest.at.to_zoned(TimeZone::UTC).strftime(TIME);
        let why = if manifest.scheduled { SCHEDULED } else { "manual" };
        let name = format!("{at}-{why}-{}", &uuid::Uuid::new_v4().simple().to_string()[..6]);
        let json = serde_json::to_vec(manifest).map_err(|e| Damage::Refused(e.to_string()))?;
        self.repository.put_list(&full(&name), json).await?;
        Ok((name, self.sent.into_inner()))
    }
}

/// Names of backups, the oldest first. Those that a clock which was ahead has dated are older than any of today's.
pub async fn names(repository: &Repository) -> Result<Vec<String>> {
    let found = repository.backups().await?;
    let names = found
        .iter()
        .filter_map(|object| object.name.strip_prefix(crate::repository::BACKUPS));
    Ok(in_order(names.map(str::to_string).collect(), Timestamp::now()))
}

fn in_order(mut names: Vec<String>, now: Timestamp) -> Vec<String> {
    names.sort_by_cached_key(|name| {
        let at = moment(name);
        let is_past = at.is_some_and(|at| at.duration_since(now) < AHEAD);
        // One without a moment was dated by no clock that can be believed.
        (is_past, at.unwrap_or(Timestamp::MAX), name.clone())
    });
    names
}

/// One by its name, or the newest.
pub async fn read(repository: &Repository, name: Option<&str>) -> Result<Backup> {
    let names = names(repository).await?;
    let found = match name.filter(|name| *name != "latest") {
        Some(name) => names.into_iter().find(|found| found == name),
        None => names.into_iter().next_back(),
    };
    let told = repository.told();
    let name = found.ok_or_else(|| match name {
        Some(name) => Damage::Refused(format!(
            "{told}: there is no backup {name}; `keelson backup ls` shows those that are"
        )),
        None => Damage::Refused(format!("{told}: there is no backup yet")),
    })?;
    let json = repository.get_list(&full(&name)).await?;
    let manifest = serde_json::from_slice(&json).map_err(|_| Damage::Changed(full(&name)))?;
    Ok(Backup { name, manifest })
}

/// Reads back every piece of every backup, or of one.
pub async fn verify(repository: &Repository, only: Option<&str>) -> Result<Verified> {
    let mut verified = Verified::default();
    let names = match only {
        Some(name) => vec![read(repository, Some(name)).await?.name],
        None => names(repository).await?,
    };
    // Where each piece is first used.
    let mut pieces: HashMap<Id, (String, String)> = HashMap::new();
    for name in names {
        match read(repository, Some(&name)).await {
            Ok(backup) => {
                for (what, file) in backup.manifest.files() {
                    for id in file.ids() {
                        pieces.entry(id).or_insert_with(|| (name.clone(), what.clone()));
                    }
                }
                verified.backups += 1;
            }
            Err(error @ (Damage::Missing(_) | Damage::Changed(_))) => verified.fault(&name, error.to_string()),
            Err(other) => return Err(other),
        }
    }
    let mut read = stream::iter(pieces)
        .map(|(id, of)| async move { (repository.fetch(&id).await, of) })
        .buffer_unordered(AT_ONCE);
    while let Some((piece, (backup, what))) = read.next().await {
        match piece {
            Ok(content) => {
                verified.pieces += 1;
                verified.bytes += content.len() as u64;
            }
            Err(error @ (Damage::Missing(_) | Damage::Changed(_))) => {
                verified.fault(&backup, format!("{what}: {error}"))
            }
            Err(other) => return Err(other),
        }
    }
    verified
        .faults
        .sort_by(|a, b| (&a.backup, &a.what).cmp(&(&b.backup, &b.what)));
    Ok(verified)
}

/// When a backup of this name was made.
pub fn moment(name: &str) -> Option<Timestamp> {
    let at = jiff::civil::DateTime::strptime(TIME_READ, name.split_once('-')?.0).ok()?;
    Some(at.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

/// Whether the schedule made a backup of this name.
pub fn is_scheduled(name: &str) -> bool {
    name.split('-').nth(1) == Some(SCHEDULED)
}

/// Which of the schedule's backups go, so that so many are left. Names are the oldest first.
pub fn superfluous(names: &[String], kept: usize) -> Vec<String> {
    let scheduled: Vec<_> = names.iter().filter(|name| is_scheduled(name)).cloned().collect();
    let many = scheduled.len().saturating_sub(kept);
    scheduled.into_iter().take(many).collect()
}

/// Gives up backups, and the pieces that no other needs. One whose list can't be read keeps everything.
pub async fn give_up(repository: &Repository, lock: &Lock, names_of: &[String]) -> Result<u64> {
    let mut needed = HashSet::new();
    let gone: BTreeSet<&String> = names_of.iter().collect();
    for name in names(repository).await?.iter().filter(|name| !gone.contains(name)) {
        let backup = read(repository, Some(name)).await?;
        needed.extend(
            backup
                .manifest
                .files()
                .flat_map(|(_, file)| file.ids().collect::<Vec<_>>()),
        );
    }
    lock.held().await?;
    for name in names_of {
        repository.forget(&full(name)).await?;
    }
    repository.sweep(lock, &needed).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedules_oldest_go_and_nobody_elses() {
        let names = [
            "20260301T020000Z-scheduled-aaaaaa",
            "20260301T120000Z-manual-bbbbbb",
            "20260302T020000Z-scheduled-cccccc",
        ];
        let names = names.map(String::from);
        assert_eq!(superfluous(&names, 1), [names[0].clone()]);
        assert!(superfluous(&names, 2).is_empty() && superfluous(&[], 1).is_empty());
        assert_eq!(moment(&names[0]).unwrap().to_string(), "2026-03-01T02:00:00Z");
        assert!(moment("yesterday-scheduled-a").is_none() && !is_scheduled("20260301T020000Z"));
    }

    #[test]
    fn what_a_clock_that_was_ahead_has_dated_is_not_the_newest() {
        let names = [
            "20310101T020000Z-scheduled-dddddd",
            "20260302T123000Z-manual-cccccc",
            "20260301T020000Z-scheduled-aaaaaa",
            "20260302T020000Z-scheduled-bbbbbb",
            "tomorrow-scheduled-e",
        ];
        let now = "2026-03-02T12:00:00Z".parse().unwrap();
        let ordered = in_order(names.map(String::from).to_vec(), now);
        assert_eq!(ordered, [names[0], names[4], names[2], names[3], names[1]]);
        assert_eq!(superfluous(&ordered, 2), [names[0], names[4]]);
        // Of a machine that doesn't know the time all are alike.
        let ordered = in_order(names.map(String::from).to_vec(), Timestamp::UNIX_EPOCH);
        assert_eq!(ordered, [names[2], names[3], names[1], names[0], names[4]]);
    }

    #[test]
    fn backups_of_one_second_are_in_the_order_of_their_making() {
        let names = [
            "20260301T120000Z-manual-ffffff",
            "20260301T120000.250Z-manual-eeeeee",
            "20260301T120000.750Z-manual-111111",
            "20260301T120001Z-manual-000000",
        ];
        let now = "2026-03-02T12:00:00Z".parse().unwrap();
        let shuffled = [2, 0, 3, 1].map(|at| names[at].to_string()).to_vec();
        assert_eq!(in_order(shuffled, now), names);
        assert_eq!(moment(names[2]).unwrap().to_string(), "2026-03-01T12:00:00.75Z");
        let at: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        let written = at.to_zoned(TimeZone::UTC).strftime(TIME).to_string();
        assert_eq!(written, "20260301T120000.000Z");
        assert_eq!(moment(&format!("{written}-manual-a")), Some(at));
    }

    #[test]
    fn keys_go_below_their_directory() {
        let key = |path: &str| {
            let content = serde_json::from_str(r#"{"bytes":0,"pieces":[]}"#).unwrap();
            let (path, mode) = (path.to_string(), 0o600);
            Key { path, mode, content }.relative().is_some()
        };
        assert!(key("ca.crt") && key("etcd/ca.key"));
        for wrong in ["", "/etc/shadow", "../ca.key", "a/../../b", "./a"] {
            assert!(!key(wrong), "{wrong}");
        }
    }
}
