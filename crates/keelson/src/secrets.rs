//! `keelson secrets`: the keys by which secrets are sealed in the store. A running server is asked by the API; where none runs,
//! the store is opened here.

use crate::client::block_on;
use crate::config::{self, Config};
use crate::lock::Lock;
use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use http::Method;
use keelson_apiserver::encryption;
use keelson_client::rest::Rest;
use keelson_seal::own::{FILE, Own};
use keelson_seal::{Report, Sealing, Source};
use keelson_store::embedded::Options as StoreOptions;
use keelson_store::{Embedded, Store};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

const PATH: &str = "/keelson/secrets";
/// How often a server that writes everything anew is asked how far it is.
const ASK_AGAIN: Duration = Duration::from_secs(1);

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
    /// Data directory of the cluster
    #[arg(long, value_name = "DIR", default_value = config::DEFAULT_DATA_DIR, global = true)]
    data_dir: PathBuf,
    /// Kubeconfig by which a running server is asked [default: DATA_DIR/admin.kubeconfig]
    #[arg(long, value_name = "FILE", global = true)]
    kubeconfig: Option<PathBuf>,
    /// The server's option of this name; it counts where no server runs
    #[arg(long, env = "KEELSON_ENCRYPTION_PROVIDER_CONFIG", value_name = "FILE", global = true)]
    encryption_provider_config: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Subcommand)]
enum Command {
    /// Which key seals secrets, and how many values of the store are sealed by which
    Status,
    /// Make a new key, and write everything anew by it; older keys are given up when nothing is sealed by them any more
    Rotate,
    /// Write anew what isn't sealed as the configuration says: after a change of your own --encryption-provider-config
    Rewrite,
}

/// Where the server's configuration comes from. `none`: nothing is sealed; nor is by default in an etcd (`shared`), which others
/// may read that don't have a key of ours.
pub fn source(file: Option<&Path>, reload: bool, shared: bool) -> anyhow::Result<Source> {
    match file {
        Some(file) if file == Path::new("none") => {
            ensure!(
                !reload,
                "--encryption-provider-config-automatic-reload must be set with --encryption-provider-config"
            );
            Ok(Source::Plain)
        }
        Some(file) => Ok(Source::File {
            path: config::absolute(file.to_path_buf())?,
            reload,
        }),
        None => {
            ensure!(
                !reload,
                "--encryption-provider-config-automatic-reload must be set with --encryption-provider-config"
            );
            Ok(if shared { Source::Plain } else { Source::Own })
        }
    }
}

/// What stands between the server and its store.
pub async fn open(config: &Config, store: Arc<dyn Store>) -> anyhow::Result<Arc<Sealing>> {
    let place = encryption::place(config.data_dir.join("pki"), config.store.root());
    let opened = Sealing::open(store, config.encryption.clone(), place).await;
    opened.context("encryption at rest")
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let data_dir = config::absolute(options.data_dir.clone())?;
    let running = Lock::is_held(&data_dir)? || options.kubeconfig.is_some();
    let report = block_on(async {
        match running {
            true => ask(&options, &data_dir).await,
            false => by_ourselves(&options, &data_dir).await,
        }
    })?;
    print(&report);
    Ok(ExitCode::SUCCESS)
}

async fn ask(options: &Options, data_dir: &Path) -> anyhow::Result<Report> {
    let kubeconfig = options.kubeconfig.clone();
    let kubeconfig = kubeconfig.unwrap_or_else(|| data_dir.join("admin.kubeconfig"));
    let client = keelson_client::from_kubeconfig(&kubeconfig, None).await?;
    let rest = Rest::new(client, "keelson-secrets");
    let wanted = match options.command {
        Command::Status => None,
        Command::Rotate => Some("rotate"),
        Command::Rewrite => Some("rewrite"),
    };
    if let Some(wanted) = wanted {
        let path = format!("{PATH}/{wanted}");
        rest.call(Method::POST, &path, "application/json", Vec::new()).await?;
    }
    loop {
        let answer = rest.get(PATH, "application/json").await?;
        let report: Report = serde_json::from_slice(&answer).context("the server's answer")?;
        if wanted.is_none() || !report.under_way {
            return Ok(report);
        }
        if let Some(trouble) = report.trouble {
            bail!("the server goes on trying: {trouble}");
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn by_ourselves(options: &Options, data_dir: &Path) -> anyhow::Result<Report> {
    let directory = data_dir.join("store");
    ensure!(
        directory.exists(),
        "no server runs with the data directory {}, and there is no store in it",
        data_dir.display()
    );
    let _lock = Lock::take(data_dir)?;
    let source = source(options.encryption_provider_config.as_deref(), false, false)?;
    let keys = data_dir.join("pki");
    ensure!(
        source != Source::Own || Own::open(&keys)?.is_some(),
        "there is no {}: start the server, which makes the key, or name the configuration that it has by --encryption-provider-config",
        keys.join(FILE).display()
    );
    let store = Embedded::open(directory, StoreOptions::default()).await?;
    let done = offline(store.clone(), source, keys, options.command).await;
    store.close().await?;
    done
}

async fn offline(store: Arc<Embedded>, source: Source, keys: PathBuf, command: Command) -> anyhow::Result<Report> {
    let sealing = Sealing::open(store, source, encryption::place(keys, encryption::ROOT)).await?;
    let mut before = sealing.report().await?;
    // Nobody is at it.
    before.under_way = false;
    if command == Command::Status {
        return Ok(before);
    }
    ensure!(
        before.stored.unreadable == 0,
        "{} values can't be opened (keelson secrets status): this is not the configuration that the server has, or a key is missing; nothing was changed",
        before.stored.unreadable
    );
    if command == Command::Rotate {
        sealing.rotate().await?;
    }
    sealing.settle().await?;
    sealing.report().await
}

fn print(report: &Report) {
    let Report { stored, .. } = report;
    match &report.file {
        Some(file) => println!("keys in      {file}{}", if report.own { "" } else { " (yours)" }),
        None => println!("keys in      none: values are stored as they are"),
    }
    for (resource, by) in &report.writes_by {
        println!("{resource:<12} written by {by}");
    }
    if !report.keys.is_empty() {
        println!("keys         {}", report.keys.join(", "));
    }
    for (by, count) in &stored.values {
        println!("{count:>12} stored by {by}");
    }
    if stored.stale > 0 {
        let how = if report.under_way {
            "being written anew"
        } else {
            "to be written anew"
        };
        println!("{:>12} of these {how}", stored.stale);
    }
    if stored.unreadable > 0 {
        println!("{:>12} can't be opened:", stored.unreadable);
        stored
            .unreadable_keys
            .iter()
            .for_each(|key| println!("             {key}"));
        if stored.unreadable > stored.unreadable_keys.len() as u64 {
            println!("             …");
        }
    }
    if let Some(trouble) = &report.trouble {
        println!("trouble      {trouble}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_store::Expect;

    async fn put(store: &Embedded, key: &str, value: &str) {
        let (key, value) = (key.as_bytes().to_vec(), value.as_bytes().to_vec());
        store.put(key.into(), value.into(), Expect::Any, None).await.unwrap();
    }

    #[tokio::test]
    async fn keys_are_rotated_without_a_server() {
        let data = std::env::temp_dir().join(format!("keelson-secrets-{}", std::process::id()));
        std::fs::create_dir_all(&data).unwrap();
        let options = |command| Options {
            command,
            data_dir: data.clone(),
            kubeconfig: None,
            encryption_provider_config: None,
        };
        let store = Embedded::open(data.join("store"), StoreOptions::default())
            .await
            .unwrap();
        put(&store, "/registry/secrets/default/a", "{}").await;
        put(&store, "/registry/configmaps/default/a", "{}").await;
        store.close().await.unwrap();
        drop(store);
        let none = by_ourselves(&options(Command::Status), &data).await.unwrap_err();
        assert!(
            none.to_string().contains("start the server, which makes the key"),
            "{none}"
        );

        Own::make(&data.join("pki")).unwrap();
        let report = by_ourselves(&options(Command::Status), &data).await.unwrap();
        assert_eq!((report.stored.values["identity"], report.stored.stale), (1, 1));
        let report = by_ourselves(&options(Command::Rotate), &data).await.unwrap();
        assert_eq!(report.keys, ["key2"]);
        assert_eq!((report.stored.values["secretbox/key2"], report.stored.stale), (1, 0));

        let store = Embedded::open(data.join("store"), StoreOptions::default())
            .await
            .unwrap();
        put(&store, "/registry/secrets/default/b", "k8s:enc:secretbox:v1:lost:x").await;
        store.close().await.unwrap();
        drop(store);
        let refused = by_ourselves(&options(Command::Rotate), &data).await.unwrap_err();
        assert!(refused.to_string().contains("nothing was changed"), "{refused}");
        std::fs::remove_dir_all(&data).unwrap();
    }

    #[test]
    fn a_file_is_followed_only_if_there_is_one() {
        let none = Some(Path::new("none"));
        assert!(source(None, true, false).is_err() && source(none, true, false).is_err());
        assert_eq!(source(none, false, false).unwrap(), Source::Plain);
        assert_eq!(source(None, false, false).unwrap(), Source::Own);
        assert_eq!(source(None, false, true).unwrap(), Source::Plain);
    }
}
