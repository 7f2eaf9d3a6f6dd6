//! `keelson logs`: what a container of this node writes, out of the file that its runtime writes; or, asked of the cluster, what a deleted pod
//! wrote ([`crate::history::logs`]).

use super::Reach;
use super::live::Live;
use super::node::{Detail, Node};
use super::select::{self, Instance, Wanted};
use crate::client::block_on;
use crate::history::Target;
use crate::history::logs::{Asked, print};
use crate::history::plain::{self, Plain, UNREAD};
use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use jiff::Timestamp;
use keelson_kubelet::server::follow;
use keelson_kubelet::server::logs::Options as Shown;
use keelson_past::At;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::sync::mpsc;

/// Pieces on their way to a slow reader.
const QUEUE: usize = 8;

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    wanted: Wanted,
    /// Go on as the log grows, until the container ends
    #[arg(short, long, conflicts_with = "deleted")]
    follow: bool,
    /// Of the container's instance before the last one
    #[arg(short, long)]
    previous: bool,
    /// The last so many lines
    #[arg(long, value_name = "N")]
    tail: Option<u32>,
    /// Only what was written since: an age (10m, 1h30m, 2d) or a date (2026-03-01T12:00:00Z)
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// Each line with its time
    #[arg(long)]
    timestamps: bool,
    /// Of a pod that is deleted: asks the cluster, wherever the pod was
    #[arg(long)]
    deleted: bool,
    /// Which deleted pod, of several of that name [default: the last one]
    #[arg(long, value_name = "UID", requires = "deleted")]
    uid: Option<String>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    reach: Reach,
}

pub const AFTER_HELP: &str = "\
Pods of this node are found by its runtime, without the API; without --namespace a pod may be in any. kubectl shows those of other nodes.
On a terminal colours are obeyed, and what else terminals obey is shown (^[ for escapes); a pipe or a file gets every byte.
With --deleted the cluster is asked: nodes keep logs of deleted pods for a day and up to 128 megabytes (--history-log-age and
--history-log-size of `keelson server` and `keelson agent`). Who may read the logs of pods (pods/log) may read these.";

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let now = Timestamp::now();
    let since = options.since.as_deref().map(|text| moment(text, now)).transpose()?;
    block_on(async {
        if !options.deleted {
            return here(options, since).await;
        }
        print(Asked {
            pod: options.wanted.pod()?,
            container: options.wanted.container(),
            uid: options.uid.as_deref(),
            previous: options.previous,
            tail: options.tail,
            since,
            timestamps: options.timestamps,
            target: &options.target,
        })
        .await
    })
}

fn moment(text: &str, now: Timestamp) -> anyhow::Result<Timestamp> {
    match At::parse(text, now) {
        Ok(At::Time(time)) => Ok(time),
        Ok(At::Revision(_)) | Err(_) => {
            bail!("--since {text}: it can be an age (10m, 1h30m, 2d) or a date (2026-03-01T12:00:00Z)")
        }
    }
}

async fn here(options: Options, since: Option<Timestamp>) -> anyhow::Result<ExitCode> {
    ensure!(
        options.target.kubeconfig.is_none() && options.target.context.is_none(),
        "--kubeconfig and --context say which cluster is asked, which only --deleted does; `kubectl logs` asks it for pods that are there"
    );
    let cri = options.reach.connect().await?;
    let node = Node::read(&cri).await?;
    let meant = options.wanted.meant(options.target.namespace.as_deref())?;
    let instance = match options.previous {
        true => Instance::BeforeLast,
        false => Instance::Last,
    };
    let container = select::one(&node, &meant, instance)?;
    let detail = Detail::read(&cri, &container.id).await;
    let path = PathBuf::from(detail.with_context(|| format!("{container} has just gone"))?.log);
    ensure!(!path.as_os_str().is_empty(), "the runtime writes no log of {container}");
    let shown = Shown {
        follow: options.follow,
        timestamps: options.timestamps,
        since,
        tail: options.tail.map(|lines| lines as usize),
        ..Shown::default()
    };
    let mut life = Live::new(&cri, &container.id, options.follow);
    let (sender, mut receiver) = mpsc::channel(QUEUE);
    let reading = tokio::spawn(async move {
        let read = follow::read(&path, shown, &mut life, &sender).await;
        read.map_err(|error| match error.kind() {
            ErrorKind::PermissionDenied => anyhow!("{}: permission denied: logs are root's to read", path.display()),
            _ => anyhow::Error::from(error).context(format!("the log {}", path.display())),
        })
    });
    let mut plain = Plain::on(&std::io::stdout());
    while let Some(piece) = receiver.recv().await {
        if !plain::show(&plain.piece(&piece))? {
            return Ok(ExitCode::from(UNREAD));
        }
    }
    let read = reading.await?;
    plain::show(&plain.end())?;
    read?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_when_is_an_age_or_a_date() {
        let now: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        let at = |text: &str| moment(text, now).map(|time| time.to_string()).ok();
        assert_eq!(at("1h30m").as_deref(), Some("2026-03-01T10:30:00Z"));
        assert_eq!(at("2026-02-01T00:00:00Z").as_deref(), Some("2026-02-01T00:00:00Z"));
        assert_eq!([at("812"), at("soon")], [None, None], "no revision of the store");
    }
}
