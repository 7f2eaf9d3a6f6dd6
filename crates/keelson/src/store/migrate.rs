//! `keelson store migrate`: the whole store from an etcd into the data directory, or from there into an etcd's directory. Every key
//! keeps its revisions, so that servers go on as after a restart; the past before is given up. What was made is summed up and
//! compared with what there was before anything takes its place.

use super::snapshot::command::aside;
use super::{Choice, Opened, restored, take_restored};
use crate::config;
use crate::lock::Lock;
use crate::servers::Remembered;
use anyhow::{Context, bail, ensure};
use clap::Subcommand;
use keelson_store::embedded::{self, Options as StoreOptions};
use keelson_store::snapshot::{Sum, Summary, digest};
use keelson_store::{Embedded, Transact};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Subcommand)]
pub enum Direction {
    /// Make the data directory's store of what an etcd has. Nothing may write to it meanwhile; the store that was is kept beside
    FromEtcd {
        /// Its members (http://HOST:PORT or https://HOST:PORT)
        #[arg(long, value_name = "LIST", value_delimiter = ',', required = true)]
        etcd_servers: Vec<String>,
        /// Authority of their certificates [default: the machine's own list]
        #[arg(long, value_name = "FILE")]
        etcd_cafile: Option<PathBuf>,
        /// Certificate by which they know this program
        #[arg(long, value_name = "FILE")]
        etcd_certfile: Option<PathBuf>,
        /// Key of that certificate
        #[arg(long, value_name = "FILE")]
        etcd_keyfile: Option<PathBuf>,
    },
    /// Make an etcd's data directory of the store, by etcdutl
    ToEtcd {
        /// The directory, which isn't there yet: etcd's --data-dir
        #[arg(long, value_name = "DIR")]
        etcd_data_dir: PathBuf,
        /// The program that makes it
        #[arg(long, value_name = "FILE", default_value = "etcdutl")]
        etcdutl: PathBuf,
        /// More options of etcdutl snapshot restore, as --name and --initial-cluster
        #[arg(last = true, value_name = "OPTION")]
        more: Vec<String>,
    },
}

pub async fn run(direction: Direction, data_dir: &Path) -> anyhow::Result<()> {
    let _lock = Lock::take(data_dir).context("the server has to be stopped")?;
    if Remembered::read(data_dir)?.is_some() {
        bail!(
            "the servers of {} share an etcd: migrate it by its snapshots (docs/etcd.md)",
            data_dir.display()
        );
    }
    // Between the two, named so that the next attempt replaces it.
    let file = data_dir.join("store.migrating");
    let done = match direction {
        Direction::FromEtcd {
            etcd_servers,
            etcd_cafile,
            etcd_certfile,
            etcd_keyfile,
        } => {
            let options = config::Options {
                etcd_servers: Some(etcd_servers),
                etcd_cafile,
                etcd_certfile,
                etcd_keyfile,
                ..config::Options::default()
            };
            from_etcd(&Choice::of(&options, data_dir)?, data_dir, &file).await
        }
        Direction::ToEtcd {
            etcd_data_dir,
            etcdutl,
            more,
        } => to_etcd(data_dir, &file, &config::absolute(etcd_data_dir)?, &etcdutl, &more).await,
    };
    match std::fs::remove_file(&file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return done.and(Err(error).with_context(|| format!("removing {}", file.display())));
        }
        _ => {}
    }
    let (Summary { keys, revision, .. }, sum, to) = done?;
    println!(
        "{}: {keys} keys at revision {revision}, sum {sum:08x}, as before",
        to.display()
    );
    Ok(())
}

type Done = anyhow::Result<(Summary, u32, PathBuf)>;

async fn from_etcd(choice: &Choice, data_dir: &Path, file: &Path) -> Done {
    let Opened::Etcd(etcd) = Opened::open(choice).await? else {
        bail!("--etcd-servers names no etcd");
    };
    etcd.save(file).await.context("etcd's snapshot")?;
    let wanted = digest(file, Sum::Wanted)?;
    let store = data_dir.join("store");
    let fresh = restored(&store);
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh).with_context(|| format!("removing {}", fresh.display()))?;
    }
    let summary = embedded::restore(file, &fresh, 0, Sum::Wanted)?;
    // Where there was no store the next server would take it as it is.
    if let Err(odd) = compare(&fresh, &summary, wanted).await {
        std::fs::remove_dir_all(&fresh).with_context(|| format!("removing {}: {odd:#}", fresh.display()))?;
        return Err(odd.context("nothing was changed"));
    }
    if store.exists() {
        println!("The store that was is in {}", aside(&store)?.display());
    }
    take_restored(&store)?;
    Ok((summary, wanted, store))
}

async fn compare(made: &Path, summary: &Summary, wanted: u32) -> anyhow::Result<()> {
    let opened = Embedded::open(made, StoreOptions::default()).await?;
    // What ends at once goes while it is looked at, by a later change.
    let found = opened.digest(Some(summary.revision)).await;
    opened.close().await?;
    let sum = found?.sum;
    ensure!(
        sum == wanted,
        "what was made sums up to {sum:08x}, and etcd's to {wanted:08x}"
    );
    Ok(())
}

async fn to_etcd(data_dir: &Path, file: &Path, to: &Path, etcdutl: &Path, more: &[String]) -> Done {
    let store = data_dir.join("store");
    ensure!(store.exists(), "there is no store in {}", data_dir.display());
    ensure!(!to.exists(), "{} is there already", to.display());
    let opened = Embedded::open(&store, StoreOptions::default()).await?;
    let saved = opened.save(file).await;
    opened.close().await?;
    let summary = saved?;
    let wanted = digest(file, Sum::Wanted)?;
    let mut restore = Command::new(etcdutl);
    restore
        .args(["snapshot", "restore"])
        .arg(file)
        .arg("--data-dir")
        .arg(to)
        .args(more);
    let ended = restore
        .status()
        .with_context(|| format!("{} can't be run: give --etcdutl", etcdutl.display()))?;
    ensure!(ended.success(), "{} failed: {ended}", etcdutl.display());
    // A member's own file has no sum of its own.
    let sum = digest(&to.join("member/snap/db"), Sum::Ignored)?;
    ensure!(
        sum == wanted,
        "what etcdutl made in {} sums up to {sum:08x}, and the store to {wanted:08x}: don't use it",
        to.display()
    );
    Ok((summary, sum, to.into()))
}
