//! `keelson undelete`: an object, or a namespace with what was in it, back through the API as whoever asks.

use super::Meant;
use super::ask::{Asking, NO_HISTORY, Named};
use super::volumes::Retained;
use crate::backup::back::Back;
use crate::backup::selection::{Selection, name_of, object_of};
use crate::client::block_on;
use anyhow::{Context, bail, ensure};
use clap::Args;
use keelson_backup::objects::{Existing, Object, plan};
use keelson_client::rest::{Error, JSON};
use serde_json::Value;
use std::process::ExitCode;

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    meant: Meant,
    /// As it was then [default: as it was last, before its deletion began]
    #[arg(long, value_name = "MOMENT")]
    at: Option<String>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub const AFTER_HELP: &str = concat!(
    moments!(),
    "
namespace/NAME brings back all that was deleted with it.
What comes back is new: uid, addresses, status are given anew. What others make again (pods of a controller, endpoints, …) is left to them; what is
there stays. A claim is bound to its volume again if that was retained."
);

/// What nobody keeps a history of.
const UNKNOWN: [&str; 3] = ["events", "events.events.k8s.io", "leases.coordination.k8s.io"];

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    block_on(async {
        let (asking, named) = options.meant.asked("keelson-undelete").await?;
        let (was, missed) = match named.is_namespace() {
            true => namespace(&asking, &named, options.at.as_deref()).await?,
            false => (vec![one(&asking, &named, options.at.as_deref()).await?], 0),
        };
        let selection = match named.is_namespace() {
            true => Selection {
                namespace: Some(named.name.clone()),
                object: None,
            },
            false => Selection {
                namespace: Some(named.namespace.clone()),
                object: Some(format!("{}/{}", name_of(&named.id), named.name)),
            },
        };
        let is = asking.kinds.read(&asking.rest, &selection).await?;
        let planned = plan(was, &is, Existing::Kept);
        let back = Back {
            to: &asking.rest,
            kinds: &asking.kinds,
            dry_run: options.dry_run,
            claims: Retained,
        };
        let failed = back.run(&planned).await;
        Ok(match failed + missed {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        })
    })
}

fn is_being_deleted(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some()
}

/// As it was before its deletion began, or at a moment; and until which revision it was so.
async fn last(asking: &Asking, named: &Named, at: Option<&str>) -> anyhow::Result<(Value, Option<String>)> {
    if let Some(at) = at {
        let was = asking.object(named, Some(at), JSON).await?;
        let was = was.with_context(|| format!("{named} wasn't there then: `keelson history` tells when it was"))?;
        ensure!(
            !is_being_deleted(&was),
            "{named} was being deleted then: `keelson history` tells since when"
        );
        return Ok((was, Some(at.to_string())));
    }
    let history = asking.history(named, None).await?;
    if let Some(now) = history.now() {
        ensure!(
            !is_being_deleted(now),
            "{named} is being deleted still: wait until it is gone"
        );
        bail!(
            "{named} is there; `keelson diff` tells how it differs from what it was, and --at brings back what is missing of a namespace"
        );
    }
    let last = history.last_whole();
    let (end, was) = last.with_context(|| format!("it isn't known what {named} was before its deletion began"))?;
    Ok((was.clone(), end.map(|end| end.to_string())))
}

async fn is_gone_or_stays(asking: &Asking, named: &Named) -> anyhow::Result<()> {
    let is = asking.object(named, None, JSON).await?;
    ensure!(
        !is.is_some_and(|is| is_being_deleted(&is)),
        "{named} is being deleted still: wait until it is gone"
    );
    Ok(())
}

fn read(named: &Named, was: &Value) -> anyhow::Result<Object> {
    Ok(object_of(&named.id, &serde_json::to_vec(was)?)?)
}

async fn one(asking: &Asking, named: &Named, at: Option<&str>) -> anyhow::Result<Object> {
    is_gone_or_stays(asking, named).await?;
    let (was, _) = last(asking, named, at).await?;
    read(named, &was)
}

/// With the namespace itself first. And how many objects, and kinds, could not be looked at.
async fn namespace(asking: &Asking, named: &Named, at: Option<&str>) -> anyhow::Result<(Vec<Object>, usize)> {
    is_gone_or_stays(asking, named).await?;
    let (itself, mut at) = match at {
        Some(at) => (None, at.to_string()),
        None => {
            let (was, end) = last(asking, named, None).await?;
            (Some(was), end.context("the namespace is there")?)
        }
    };
    let (mut found, mut missed, mut unseen) = (Vec::new(), 0, Vec::new());
    let kinds = asking
        .kinds
        .all()
        .filter(|id| id.namespaced && !UNKNOWN.contains(&name_of(id).as_str()));
    for id in kinds {
        match asking.objects(id, &named.name, &mut at).await {
            Ok((objects, unread)) => {
                found.extend(objects);
                missed += unread;
            }
            // An extension server's: nobody here keeps its past.
            Err(Error::Api(status)) if status.code == 404 && status.message == NO_HISTORY => {}
            Err(Error::Api(status)) if status.code == 403 => unseen.push(name_of(id)),
            Err(error) => return Err(error).with_context(|| format!("what {} there were", name_of(id))),
        }
    }
    // Of the moment that the lists were of.
    let itself = match itself {
        Some(itself) => itself,
        None => last(asking, named, Some(&at)).await?.0,
    };
    found.insert(0, read(named, &itself)?);
    for kind in &unseen {
        println!("not seen  {kind}: you may not list them");
    }
    Ok((found, missed + unseen.len()))
}
