//! Which repository, what opens it, and when backups are made by themselves.

use crate::archive::S3;
use crate::config::{absolute, fill};
use crate::store::snapshot::schedule::Plan;
use anyhow::{Context, bail, ensure};
use clap::Args;
use keelson_backup::place::{self, Place, s3};
use keelson_backup::repository::Secret;
use serde::Deserialize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// In place of a file.
const PASSPHRASE: &str = "KEELSON_BACKUP_PASSPHRASE";
const BY_DEFAULT: &str = "0 2 * * *";
const KEPT: usize = 7;

/// The server's options.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Scheduled {
    /// Repository of backups that are made by themselves: a directory, best of another machine, or s3://BUCKET/PREFIX [default: none]
    #[arg(long, env = "KEELSON_BACKUP_REPOSITORY", value_name = "PLACE")]
    pub backup_repository: Option<String>,
    /// When backups are made, as cron writes it, in UTC [default: 0 2 * * *]
    #[arg(long, env = "KEELSON_BACKUP_SCHEDULE", value_name = "CRON")]
    pub backup_schedule: Option<String>,
    /// How many of the schedule's backups are kept [default: 7]
    #[arg(long, env = "KEELSON_BACKUP_RETENTION", value_name = "N")]
    pub backup_retention: Option<usize>,
    /// File with the passphrase of that repository, readable by its owner only [default: KEELSON_BACKUP_PASSPHRASE in the environment]
    #[arg(long, env = "KEELSON_BACKUP_PASSPHRASE_FILE", value_name = "FILE")]
    pub backup_passphrase_file: Option<PathBuf>,
    /// Encrypt nothing in the repository, not even the cluster's keys
    #[arg(long, env = "KEELSON_BACKUP_UNENCRYPTED", num_args = 0..=1, default_missing_value = "true")]
    pub backup_unencrypted: Option<bool>,
}

impl Scheduled {
    /// Takes over from another list what this one leaves open.
    pub fn fill(&mut self, other: Scheduled) {
        fill!(self from other: backup_repository, backup_schedule, backup_retention, backup_passphrase_file, backup_unencrypted);
    }

    /// `None`: none are made by themselves. `own`: the store is this server's own, in its data directory.
    pub fn resolve(&self, s3: &S3, data_dir: &Path, own: bool) -> anyhow::Result<Option<(Target, Plan)>> {
        let Some(repository) = &self.backup_repository else {
            ensure!(
                self.backup_schedule.is_none()
                    && self.backup_retention.is_none()
                    && self.backup_passphrase_file.is_none()
                    && self.backup_unencrypted != Some(true),
                "--backup-schedule, --backup-retention, --backup-passphrase-file and --backup-unencrypted are of no use without --backup-repository"
            );
            return Ok(None);
        };
        ensure!(
            own,
            "--backup-repository: the cluster is kept in an etcd, and backups are of a store in the data directory; of an etcd there are snapshots (--store-snapshot-dir)"
        );
        let target = Target::of(
            repository,
            self.backup_passphrase_file.as_deref(),
            self.backup_unencrypted.unwrap_or(false),
            s3,
            data_dir,
        )?;
        // What can't be opened is told at the start.
        target.place()?;
        target.secret()?;
        let schedule = self.backup_schedule.as_deref().unwrap_or(BY_DEFAULT);
        let plan = Plan::parse(
            "--backup-schedule",
            schedule,
            "--backup-retention",
            self.backup_retention.unwrap_or(KEPT),
        )?;
        Ok(Some((target, plan)))
    }
}

/// A repository, and what opens it. Read when it is needed: both may be exchanged.
#[derive(Clone, Debug)]
pub struct Target {
    repository: String,
    passphrase_file: Option<PathBuf>,
    unencrypted: bool,
    s3: s3::Settings,
}

impl Target {
    pub fn of(
        repository: &str,
        passphrase_file: Option<&Path>,
        unencrypted: bool,
        s3: &S3,
        data_dir: &Path,
    ) -> anyhow::Result<Target> {
        let repository = match place::is_bucket(repository) || repository.contains("://") {
            true => repository.to_string(),
            false => absolute(PathBuf::from(repository))?.display().to_string(),
        };
        let workshop = super::workshop(data_dir);
        ensure!(
            !Path::new(&repository).starts_with(&workshop),
            "{repository}: {} is where backups are made, and is cleared each time; take another place for them",
            workshop.display()
        );
        ensure!(
            !(unencrypted && passphrase_file.is_some()),
            "a passphrase file, and nothing is to be encrypted: leave one out"
        );
        let passphrase_file = passphrase_file.map(|file| absolute(file.to_path_buf())).transpose()?;
        Ok(Target {
            repository,
            passphrase_file,
            unencrypted,
            s3: s3.settings()?,
        })
    }

    pub fn told(&self) -> &str {
        &self.repository
    }

    pub fn place(&self) -> anyhow::Result<Arc<dyn Place>> {
        place::open(&self.repository, &self.s3).context("the repository of backups")
    }

    pub fn secret(&self) -> anyhow::Result<Secret> {
        if self.unencrypted {
            return Ok(Secret::None);
        }
        let text = match (&self.passphrase_file, std::env::var(PASSPHRASE)) {
            (Some(file), _) => read(file)?,
            (None, Ok(text)) => text,
            (None, Err(_)) => bail!(
                "a backup has the cluster's keys in it: give a passphrase (a file by option, or {PASSPHRASE} in the environment), \
                 or ask for no encryption by name (--unencrypted, --backup-unencrypted)"
            ),
        };
        Ok(Secret::passphrase(&text)?)
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    let wrong = || format!("the passphrase file {}", file.display());
    let metadata = std::fs::metadata(file).with_context(wrong)?;
    ensure!(
        metadata.permissions().mode() & 0o077 == 0,
        "{} can be read by others than its owner; chmod 600 it",
        wrong()
    );
    ensure!(metadata.len() < 64 << 10, "{} is no passphrase", wrong());
    std::fs::read_to_string(file).with_context(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(options: Scheduled, own: bool) -> anyhow::Result<bool> {
        Ok(options.resolve(&S3::default(), Path::new("/data"), own)?.is_some())
    }

    #[test]
    fn options_are_honoured_or_refused() {
        let plain = Scheduled {
            backup_repository: Some("/backups".into()),
            backup_unencrypted: Some(true),
            ..Scheduled::default()
        };
        assert!(!resolve(Scheduled::default(), true).unwrap());
        assert!(resolve(plain.clone(), true).unwrap());
        let refused = |options, own| format!("{:#}", resolve(options, own).unwrap_err());
        assert!(refused(plain.clone(), false).contains("etcd"));
        let never = Scheduled {
            backup_schedule: Some("at noon".into()),
            ..plain.clone()
        };
        assert!(refused(never, true).contains("--backup-schedule"));
        let none = Scheduled {
            backup_retention: Some(0),
            ..plain.clone()
        };
        assert!(refused(none, true).contains("--backup-retention"));
        let alone = Scheduled {
            backup_schedule: Some("@daily".into()),
            ..Scheduled::default()
        };
        assert!(refused(alone, true).contains("--backup-repository"));
        let within = Scheduled {
            backup_repository: Some("/data/backup/mine".into()),
            ..plain.clone()
        };
        assert!(refused(within, true).contains("is cleared"));
        let bare = Scheduled {
            backup_unencrypted: Some(true),
            ..Scheduled::default()
        };
        assert!(refused(bare, true).contains("--backup-repository"));
        let both = Scheduled {
            backup_passphrase_file: Some("/a".into()),
            ..plain.clone()
        };
        assert!(refused(both, true).contains("leave one out"));
        let missing = Scheduled {
            backup_passphrase_file: Some("/nowhere".into()),
            backup_unencrypted: None,
            ..plain
        };
        assert!(refused(missing, true).contains("/nowhere"));
    }
}
