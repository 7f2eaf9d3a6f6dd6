//! `keelson store`: its snapshots, and `migrate`. Taking one, of a server that runs or of a store that nobody has open; listing them; and making a store of one.

use super::super::migrate::{self, Direction};
use super::schedule::{Settings, place};
use super::{Snapshots, Source, Taken, Why, bucket, list};
use crate::archive::S3;
use crate::client::block_on;
use crate::config;
use crate::lock::Lock;
use crate::servers::Remembered;
use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use http::Method;
use jiff::Timestamp;
use keelson_apiserver::snapshots::PATH;
use keelson_backup::place::s3;
use keelson_client::rest::Rest;
use keelson_measure::Measures;
use keelson_store::embedded::{self, Options as StoreOptions};
use keelson_store::{Embedded, snapshot};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// As far as etcdutl's users are told to go.
const AHEAD: u64 = 1_000_000_000;

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
    /// Data directory of the server
    #[arg(long, value_name = "DIR", default_value = config::DEFAULT_DATA_DIR, global = true)]
    data_dir: PathBuf,
    #[command(flatten)]
    s3: S3,
}

#[derive(Subcommand)]
enum Command {
    /// Take, list and restore snapshots of the store
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Move the store from an etcd into the data directory, or from there into an etcd's. The server must not run
    #[command(subcommand)]
    Migrate(Direction),
}

#[derive(Subcommand)]
enum Snapshot {
    /// Take one now, of the server that runs, or else of its store. etcdutl can read it
    Save {
        /// Kubeconfig by which a running server is asked [default: DATA_DIR/admin.kubeconfig]
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
        /// Directory for one that is taken without a server, or s3://BUCKET/PREFIX, where it is sent [default: DATA_DIR/snapshots]
        #[arg(long, value_name = "PLACE")]
        store_snapshot_dir: Option<PathBuf>,
    },
    /// List those that are there, the oldest first
    Ls {
        /// The server's option of this name, a directory or s3://BUCKET/PREFIX [default: DATA_DIR/snapshots]
        #[arg(long, value_name = "PLACE")]
        store_snapshot_dir: Option<PathBuf>,
    },
    /// Say what a file has, and whether it is whole
    Check {
        /// A path, or s3://BUCKET/PREFIX/NAME
        file: PathBuf,
        /// Take a file whose sum is missing or wrong, as a copy of a member's own file
        #[arg(long)]
        skip_hash_check: bool,
    },
    /// Make the data directory's store of a snapshot, ours or etcd's. The server must not run; the store that was is kept beside
    Restore {
        /// A path, or s3://BUCKET/PREFIX/NAME
        file: PathBuf,
        /// Go on with the snapshot's revision: only for a store that nothing was written to since, as when it moves
        #[arg(long)]
        keep_revision: bool,
        /// Take a file whose sum is missing or wrong, as a copy of a member's own file
        #[arg(long)]
        skip_hash_check: bool,
    },
}

fn sum(skip_hash_check: bool) -> snapshot::Sum {
    match skip_hash_check {
        true => snapshot::Sum::Ignored,
        false => snapshot::Sum::Wanted,
    }
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let data_dir = config::absolute(options.data_dir)?;
    let s3 = options.s3.settings()?;
    let own = data_dir.join("snapshots");
    let command = match options.command {
        Command::Snapshot(command) => command,
        Command::Migrate(direction) => {
            block_on(migrate::run(direction, &data_dir))?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    match command {
        Snapshot::Save {
            kubeconfig,
            store_snapshot_dir,
        } => {
            let running = Lock::is_held(&data_dir)? || kubeconfig.is_some();
            let taken = block_on(async {
                match running {
                    true => ask(&kubeconfig.unwrap_or_else(|| data_dir.join("admin.kubeconfig"))).await,
                    false => {
                        let (directory, bucket) = place(store_snapshot_dir.as_deref(), s3, &own)?;
                        by_ourselves(&data_dir, &Settings::here(directory, bucket)).await
                    }
                }
            })?;
            let Taken {
                path,
                revision,
                keys,
                bytes,
                sent,
                unsent,
            } = taken;
            println!("{}: {keys} keys at revision {revision}, {bytes} bytes", path.display());
            if let Some(place) = sent {
                println!("It is in {place} too.");
            }
            println!(
                "What is sealed in it needs the keys of {} as well: keep both, apart from this machine.",
                data_dir.join("pki").display()
            );
            if let Some(why) = unsent {
                bail!("it is on this machine only: {why}. It is sent with the next one");
            }
        }
        Snapshot::Ls { store_snapshot_dir } => {
            let (directory, bucket) = place(store_snapshot_dir.as_deref(), s3, &own)?;
            let found = match bucket {
                Some(bucket) => block_on(async move { bucket.list().await })?,
                None => list(&directory)?,
            };
            println!("{:<22} {:<10} {:>12}  FILE", "TAKEN", "WHY", "BYTES");
            for found in found {
                let path = found.path.display();
                println!(
                    "{:<22} {:<10} {:>12}  {path}",
                    found.at.to_string(),
                    found.why.name(),
                    found.bytes
                );
            }
        }
        Snapshot::Check { file, skip_hash_check } => {
            let sum = sum(skip_hash_check);
            let checked = brought(&file, s3, &data_dir, |file| Ok(snapshot::check(file, sum)?));
            let snapshot::Summary { revision, keys, bytes } = checked?;
            println!("{}: {keys} keys at revision {revision}, {bytes} bytes", file.display());
        }
        Snapshot::Restore {
            file,
            keep_revision,
            skip_hash_check,
        } => brought(&file, s3, &data_dir, |file| {
            restore(&data_dir, file, keep_revision, sum(skip_hash_check))
        })?,
    }
    Ok(ExitCode::SUCCESS)
}

/// With a file of this machine, which goes again if it had to be brought.
fn brought<T>(
    file: &Path,
    s3: s3::Settings,
    data_dir: &Path,
    work: impl FnOnce(&Path) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let Some(here) = block_on(bucket::bring(file, s3, data_dir))? else {
        return work(file);
    };
    let done = work(&here).with_context(|| format!("{}", file.display()));
    std::fs::remove_file(&here).with_context(|| format!("removing {}", here.display()))?;
    done
}

pub async fn ask(kubeconfig: &Path) -> anyhow::Result<Taken> {
    let client = keelson_client::from_kubeconfig(kubeconfig, None).await?;
    let rest = Rest::new(client, "keelson-store");
    let answer = rest.call(Method::POST, PATH, "application/json", Vec::new()).await?;
    serde_json::from_slice(&answer).context("the server's answer")
}

async fn by_ourselves(data_dir: &Path, settings: &Settings) -> anyhow::Result<Taken> {
    let store = data_dir.join("store");
    ensure!(
        store.exists(),
        "no server runs with the data directory {}, and there is no store in it",
        data_dir.display()
    );
    let _lock = Lock::take(data_dir)?;
    let store = Embedded::open(store, StoreOptions::default()).await?;
    let taken = Snapshots::new(Source::Embedded(store.clone()), settings, &Measures::default())
        .take(Why::Asked)
        .await;
    store.close().await?;
    taken
}

pub fn restore(data_dir: &Path, file: &Path, keep_revision: bool, sum: snapshot::Sum) -> anyhow::Result<()> {
    let _lock = Lock::take(data_dir)?;
    if Remembered::read(data_dir)?.is_some() {
        bail!(
            "the store of {} is an etcd: restore it there (etcdutl snapshot restore --bump-revision {AHEAD} --mark-compacted; docs/etcd.md)",
            data_dir.display()
        );
    }
    let store = data_dir.join("store");
    // Whatever ends this in between, there is a whole store, or one that the next start takes.
    let restored = super::super::restored(&store);
    if restored.exists() {
        std::fs::remove_dir_all(&restored).with_context(|| format!("removing {}", restored.display()))?;
    }
    let summary = embedded::restore(file, &restored, if keep_revision { 0 } else { AHEAD }, sum)?;
    let before = store.exists().then(|| aside(&store)).transpose()?;
    super::super::take_restored(&store)?;
    println!(
        "{} has {} keys at revision {}",
        store.display(),
        summary.keys,
        summary.revision
    );
    if let Some(before) = before {
        println!(
            "The store that was is in {}: remove it when you don't need it any more",
            before.display()
        );
    }
    Ok(())
}

pub fn aside(store: &Path) -> anyhow::Result<PathBuf> {
    let mut aside = store.as_os_str().to_os_string();
    aside.push(format!(".before-{}", Timestamp::now().as_second()));
    let aside = PathBuf::from(aside);
    ensure!(!aside.exists(), "{} is there already", aside.display());
    std::fs::rename(store, &aside).with_context(|| format!("cannot move {} away", store.display()))?;
    Ok(aside)
}
