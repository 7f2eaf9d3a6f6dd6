//! `keelson logs --deleted`: what a pod wrote that is gone.

use super::Target;
use super::plain::{self, Plain, UNREAD};
use crate::client::kubeconfig;
use anyhow::Context;
use http_body_util::BodyExt;
use jiff::Timestamp;
use keelson_apiserver::request::PAST;
use keelson_client::rest::{Rest, with_query};
use std::process::ExitCode;

/// Which log is meant, and what of it.
pub struct Asked<'a> {
    pub pod: &'a str,
    pub container: Option<&'a str>,
    /// Which pod, of several of that name; the last one otherwise.
    pub uid: Option<&'a str>,
    /// Of the container's instance before the last one.
    pub previous: bool,
    pub tail: Option<u32>,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub target: &'a Target,
}

pub async fn print(asked: Asked<'_>) -> anyhow::Result<ExitCode> {
    let path = kubeconfig(asked.target.kubeconfig.clone());
    let client = keelson_client::from_kubeconfig(&path, asked.target.context.as_deref()).await?;
    let namespace = asked.target.namespace.clone();
    let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_string());
    let tail = asked.tail.map(|lines| lines.to_string()).unwrap_or_default();
    let since = asked.since.map(|since| since.to_string()).unwrap_or_default();
    let flag = |is: bool| if is { "true" } else { "" };
    let path = format!("{PAST}/api/v1/namespaces/{namespace}/pods/{}/log", asked.pod);
    let uri = with_query(
        &path,
        &[
            ("container", asked.container.unwrap_or_default()),
            ("uid", asked.uid.unwrap_or_default()),
            ("previous", flag(asked.previous)),
            ("timestamps", flag(asked.timestamps)),
            ("tailLines", &tail),
            ("sinceTime", &since),
        ],
    );
    let rest = Rest::new(client, "keelson-logs");
    let stream = rest.stream(&uri, "*/*").await;
    let mut body = stream.with_context(|| format!("the log of pod {} in {namespace}", asked.pod))?;
    let mut plain = Plain::on(&std::io::stdout());
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.context("the log broke off")?.into_data()
            && !plain::show(&plain.piece(&data))?
        {
            return Ok(ExitCode::from(UNREAD));
        }
    }
    plain::show(&plain.end())?;
    Ok(ExitCode::SUCCESS)
}
