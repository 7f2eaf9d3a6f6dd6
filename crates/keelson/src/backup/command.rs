//! `keelson backup`.

use super::back::Back;
use super::create::{Made, Making, lacking};
use super::picture::{Picture, Pictures};
use super::reading::Reading;
use super::selection::{Kinds, Selection};
use super::volume::Volumes;
use super::{Target, Turn, restore};
use crate::archive::S3;
use crate::client::block_on;
use crate::config;
use crate::lock::Lock;
use crate::store::snapshot::Source;
use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use http::{Method, StatusCode};
use keelson_apiserver::snapshots::PICTURES;
use keelson_backup::manifest::{self, Backup, Verified};
use keelson_backup::objects::{Existing, plan};
use keelson_backup::repository::Repository;
use keelson_client::rest::{Error, Rest};
use keelson_store::Embedded;
use keelson_store::embedded::Options as StoreOptions;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// How often a server that is still taking a picture is asked again: each waits for most of a minute.
const ASKED: usize = 120;

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
    /// Where backups are: a directory, or s3://BUCKET/PREFIX
    #[arg(long, env = "KEELSON_BACKUP_REPOSITORY", value_name = "PLACE", global = true)]
    repository: Option<String>,
    /// File with the repository's passphrase, readable by its owner only [default: KEELSON_BACKUP_PASSPHRASE in the environment]
    #[arg(long, env = "KEELSON_BACKUP_PASSPHRASE_FILE", value_name = "FILE", global = true)]
    passphrase_file: Option<PathBuf>,
    /// The repository isn't encrypted, not even the cluster's keys in it
    #[arg(long, global = true)]
    unencrypted: bool,
    /// Data directory of the server
    #[arg(long, value_name = "DIR", default_value = config::DEFAULT_DATA_DIR, global = true)]
    data_dir: PathBuf,
    #[command(flatten)]
    s3: S3,
}

#[derive(Subcommand)]
enum Command {
    /// Make one now: objects, keys, and this machine's volumes, of the server that runs, or else of its data directory
    Create {
        /// Kubeconfig by which a running server is asked [default: DATA_DIR/admin.kubeconfig]
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
    },
    /// List those that are there, the oldest first
    Ls,
    /// Read everything back, and compare it with what was written
    Verify {
        /// Only this one
        backup: Option<String>,
    },
    /// Bring a whole one into a data directory without a cluster; or of one a namespace (-n) or an object (--object) into the cluster that runs
    Restore(Restore),
}

#[derive(Args)]
struct Restore {
    /// Which one, as `ls` names it
    #[arg(default_value = "latest")]
    backup: String,
    /// All of this namespace, or the object's, into the cluster that runs
    #[arg(short, long)]
    namespace: Option<String>,
    /// One object, KIND/NAME, into the cluster that runs
    #[arg(long, value_name = "KIND/NAME")]
    object: Option<String>,
    /// Say what would be done, and how what is there differs, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Objects that are there become what they were; they stay as they are otherwise
    #[arg(long)]
    update: bool,
    /// This machine's name in the cluster, to which volumes belong that come back [default: the host name]
    #[arg(long, env = "KEELSON_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// Kubeconfig of the cluster that runs [default: DATA_DIR/admin.kubeconfig]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The server's option of this name when the backup was made, if it had a file of yours
    #[arg(long, env = "KEELSON_ENCRYPTION_PROVIDER_CONFIG", value_name = "FILE")]
    encryption_provider_config: Option<PathBuf>,
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let data_dir = config::absolute(options.data_dir.clone())?;
    let place = options.repository.as_deref();
    let place =
        place.context("say where backups are: --repository, or KEELSON_BACKUP_REPOSITORY in the environment")?;
    let target = Target::of(
        place,
        options.passphrase_file.as_deref(),
        options.unencrypted,
        &options.s3,
        &data_dir,
    )?;
    block_on(async {
        match options.command {
            Command::Create { kubeconfig } => create(&target, &data_dir, kubeconfig).await?,
            Command::Ls => list(&open(&target).await?).await?,
            Command::Verify { backup } => {
                let verified = manifest::verify(&open(&target).await?, backup.as_deref()).await?;
                return Ok(told(&verified));
            }
            Command::Restore(wanted) => {
                let repository = open(&target).await?;
                let backup = manifest::read(&repository, Some(&wanted.backup)).await?;
                if wanted.namespace.is_some() || wanted.object.is_some() {
                    return back(&repository, &backup, &data_dir, wanted).await;
                }
                ensure!(
                    !wanted.dry_run && !wanted.update && wanted.kubeconfig.is_none(),
                    "--dry-run, --update and --kubeconfig are for a namespace (-n) or an object (--object); a whole backup goes into an empty directory"
                );
                restore::whole(&repository, &backup, &data_dir).await?;
                let (volumes, node) = (backup.manifest.volumes.len(), &backup.manifest.node);
                println!(
                    "{}: the cluster of {} is in {}, with {volumes} volumes. Start the server as {node} was started (--node-name {node})",
                    backup.name,
                    backup.manifest.at,
                    data_dir.display()
                );
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn open(target: &Target) -> anyhow::Result<Repository> {
    Ok(Repository::open(target.place()?, &target.secret()?).await?)
}

/// Of a backup, into the cluster that runs.
async fn back(repository: &Repository, backup: &Backup, data_dir: &Path, wanted: Restore) -> anyhow::Result<ExitCode> {
    let kubeconfig = wanted.kubeconfig.unwrap_or_else(|| data_dir.join("admin.kubeconfig"));
    let client = keelson_client::from_kubeconfig(&kubeconfig, None).await?;
    let turn = Turn::take(data_dir)?;
    let directory = turn.directory("reading")?;
    let reading = Reading::open(
        repository,
        backup,
        &directory,
        wanted.encryption_provider_config.as_deref(),
    )
    .await?;
    let node = wanted.node_name.map_or_else(config::host_name, Ok)?;
    let existing = match wanted.update {
        true => Existing::Updated,
        false => Existing::Kept,
    };
    let selection = Selection {
        namespace: wanted.namespace,
        object: wanted.object,
    };
    let to = Rest::new(client, "keelson-backup");
    let bring = async {
        let was = Kinds::of(&reading.rest).await?.read(&reading.rest, &selection).await?;
        ensure!(!was.is_empty(), "the backup has nothing of that");
        let kinds = Kinds::of(&to).await?;
        let planned = plan(was, &kinds.read(&to, &selection).await?, existing);
        let back = Back {
            to: &to,
            kinds: &kinds,
            dry_run: wanted.dry_run,
            claims: Volumes {
                from: &reading.rest,
                repository,
                backup,
                data_dir,
                node: &node,
            },
        };
        anyhow::Ok(back.run(&planned).await)
    };
    let failed = bring.await;
    reading.close().await;
    Ok(match failed? {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

async fn create(target: &Target, data_dir: &Path, kubeconfig: Option<PathBuf>) -> anyhow::Result<()> {
    let running = Lock::is_held(data_dir)?;
    ensure!(
        running || data_dir.join("store").exists(),
        "no server runs with the data directory {}, and there is no store in it",
        data_dir.display()
    );
    ensure!(
        running || kubeconfig.is_none(),
        "--kubeconfig: no server runs with the data directory {}; without this option its store is read",
        data_dir.display()
    );
    let turn = Turn::take(data_dir)?;
    let making = Making::begin(&turn, target, data_dir, None).await?;
    let taken = match running {
        true => asked(data_dir, kubeconfig).await,
        false => alone(data_dir).await,
    };
    let made = making.finish(taken).await?;
    drop(turn);
    tell(&made, target);
    Ok(())
}

/// Of a server that runs.
async fn asked(data_dir: &Path, kubeconfig: Option<PathBuf>) -> anyhow::Result<(Picture, Vec<String>)> {
    let kubeconfig = kubeconfig.unwrap_or_else(|| data_dir.join("admin.kubeconfig"));
    let client = keelson_client::from_kubeconfig(&kubeconfig, None).await?;
    let rest = Rest::new(client, "keelson-backup");
    let picture = ask(&rest).await?;
    let lacking = lacking(&rest, &picture).await?;
    Ok((picture, lacking))
}

async fn ask(rest: &Rest) -> anyhow::Result<Picture> {
    for _ in 0..ASKED {
        match rest.call(Method::POST, PICTURES, "application/json", Vec::new()).await {
            Ok(answer) => return serde_json::from_slice(&answer).context("the server's answer"),
            // It is still at it.
            Err(Error::Api(status)) if status.code == StatusCode::GATEWAY_TIMEOUT.as_u16() => {}
            Err(error) => return Err(error).context("a picture of the server"),
        }
    }
    bail!("the server takes too long for a picture of its volumes")
}

async fn alone(data_dir: &Path) -> anyhow::Result<(Picture, Vec<String>)> {
    let _lock = Lock::take(data_dir)?;
    let store = Embedded::open(data_dir.join("store"), StoreOptions::default()).await?;
    let pictures = Pictures::alone(Source::Embedded(store.clone()), data_dir, &config::host_name()?)?;
    let picture = pictures.take().await;
    store.close().await?;
    Ok((
        picture?,
        vec!["what other nodes have: nobody was asked, for no server runs".into()],
    ))
}

fn tell(made: &Made, target: &Target) {
    let Made {
        name, manifest, sent, ..
    } = made;
    println!(
        "{name} in {}: {} objects at revision {}, {} keys, {} volumes; {} new pieces, {} bytes",
        target.told(),
        manifest.keys,
        manifest.revision,
        manifest.pki.len(),
        manifest.volumes.len(),
        sent.pieces,
        sent.bytes
    );
    if !manifest.one_moment {
        println!("Each volume is of a moment of its own: the disk's file system can't share blocks.");
    }
    for volume in &manifest.lacking {
        println!("without {volume}");
    }
}

async fn list(repository: &Repository) -> anyhow::Result<()> {
    println!(
        "{:<44} {:<22} {:<20} {:>8} {:>8}",
        "BACKUP", "TAKEN", "NODE", "OBJECTS", "VOLUMES"
    );
    for name in manifest::names(repository).await? {
        let manifest = manifest::read(repository, Some(&name)).await;
        match manifest.map(|backup| backup.manifest) {
            Ok(is) => println!(
                "{name:<44} {:<22} {:<20} {:>8} {:>8}",
                format!("{:.0}", is.at),
                is.node,
                is.keys,
                is.volumes.len()
            ),
            Err(error) => println!("{name:<44} {error}"),
        }
    }
    Ok(())
}

fn told(verified: &Verified) -> ExitCode {
    for fault in &verified.faults {
        println!("{}: {}", fault.backup, fault.what);
    }
    if verified.more > 0 {
        println!("and {} more", verified.more);
    }
    println!(
        "{} backups, {} pieces with {} bytes read; {} faults",
        verified.backups,
        verified.pieces,
        verified.bytes,
        verified.faults.len() as u64 + verified.more
    );
    match verified.faults.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
