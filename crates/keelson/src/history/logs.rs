//! `keelson logs --deleted`: what a pod wrote that is gone.

use super::Target;
use crate::client::{block_on, kubeconfig};
use anyhow::{Context, ensure};
use clap::Args;
use http_body_util::BodyExt;
use keelson_apiserver::request::PAST;
use keelson_client::rest::{Rest, with_query};
use std::io::Write;
use std::process::ExitCode;

#[derive(Args)]
pub struct Options {
    /// The pod's name
    pod: String,
    /// Of a pod that is deleted; kubectl shows those that are there
    #[arg(long, required = true)]
    deleted: bool,
    /// Which container [default: its only one]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Of the container's instance before the last one
    #[arg(short, long)]
    previous: bool,
    /// The last so many lines
    #[arg(long, value_name = "N")]
    tail: Option<u32>,
    /// Each line with its time
    #[arg(long)]
    timestamps: bool,
    /// Which one, of several of that name [default: the last one]
    #[arg(long, value_name = "UID")]
    uid: Option<String>,
    #[command(flatten)]
    target: Target,
}

pub const AFTER_HELP: &str = "\
Nodes keep logs of deleted pods for a day and up to 128 megabytes (--history-log-age and --history-log-size of `keelson server` and
`keelson agent`). Who may read the logs of pods (pods/log) may read these.";

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    block_on(async {
        ensure!(!options.pod.contains('/'), "{}: a pod's name", options.pod);
        let path = kubeconfig(options.target.kubeconfig.clone());
        let client = keelson_client::from_kubeconfig(&path, options.target.context.as_deref()).await?;
        let namespace = options.target.namespace.clone();
        let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_string());
        let tail = options.tail.map(|lines| lines.to_string()).unwrap_or_default();
        let flag = |is: bool| if is { "true" } else { "" };
        let path = format!("{PAST}/api/v1/namespaces/{namespace}/pods/{}/log", options.pod);
        let uri = with_query(
            &path,
            &[
                ("container", options.container.as_deref().unwrap_or_default()),
                ("uid", options.uid.as_deref().unwrap_or_default()),
                ("previous", flag(options.previous)),
                ("timestamps", flag(options.timestamps)),
                ("tailLines", &tail),
            ],
        );
        let rest = Rest::new(client, "keelson-logs");
        let stream = rest.stream(&uri, "*/*").await;
        let mut body = stream.with_context(|| format!("the log of pod {} in {namespace}", options.pod))?;
        let mut out = std::io::stdout().lock();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.context("the log broke off")?.into_data() {
                out.write_all(&data)?;
            }
        }
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    })
}
