//! `keelson addons`: what became of files of add-ons, as their objects say it.

use crate::client::{block_on, kubeconfig};
use crate::history::table;
use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use k8s_openapi::api::core::v1::Secret;
use keelson_addons::Addon;
use keelson_addons::addon::{APPLIED, CONFLICT, READY};
use keelson_addons::source::{MARK, NAMESPACE, Source};
use keelson_client::{ApiObject, Objects, Rest, delete_options, is_not_found};
use std::path::PathBuf;
use std::process::ExitCode;

pub const AFTER_HELP: &str = "\
Files of DATA_DIR/addons on servers, and of the directories of --addons, are applied when they change; what they no longer say is deleted.

Exit status of ls and show: 0 all is applied and ready, 1 something isn't, 2 it could not be looked at.";

const NOT_WELL: u8 = 1;
const ERROR: u8 = 2;

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List add-ons: whether they are applied and ready, and what is in the way
    Ls {
        #[command(flatten)]
        target: Target,
    },
    /// Show an add-on: servers' files, conditions, objects
    Show {
        /// The add-on's name: of the file web/app.yaml it is web.app
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Take back what a server that is gone said: what no other server's file says is deleted
    Forget {
        /// The server's name
        server: String,
        /// Kubeconfig of the cluster [default: $KUBECONFIG, or /var/lib/keelson/admin.kubeconfig]
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
    },
}

#[derive(Args)]
struct Target {
    /// The form of the answer
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Kubeconfig of the cluster [default: $KUBECONFIG, or /var/lib/keelson/admin.kubeconfig]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Output {
    Text,
    Json,
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let done = match options.action {
        Action::Ls { target } => block_on(ls(target)),
        Action::Show { name, target } => block_on(show(name, target)),
        Action::Forget { server, kubeconfig } => return block_on(forget(server, kubeconfig)),
    };
    Ok(match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(NOT_WELL),
        Err(error) => {
            eprintln!("keelson: {error:#}");
            ExitCode::from(ERROR)
        }
    })
}

async fn rest(given: Option<PathBuf>) -> anyhow::Result<Rest> {
    let client = keelson_client::from_kubeconfig(&kubeconfig(given), None).await?;
    Ok(Rest::new(client, "keelson-addons-command"))
}

/// Nobody ever had one where there is no such kind.
async fn all(rest: &Rest) -> anyhow::Result<Vec<Addon>> {
    match Objects::<Addon>::new(rest).list("", "", "").await {
        Err(error) if is_not_found(&error) => Ok(Vec::new()),
        all => all.context("add-ons can't be listed"),
    }
}

async fn ls(target: Target) -> anyhow::Result<bool> {
    let all = all(&rest(target.kubeconfig).await?).await?;
    let well = all.iter().all(is_well);
    if target.output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(well);
    }
    if all.is_empty() {
        println!("There are no add-ons.");
        return Ok(true);
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|addon| {
            let ready = addon.status.as_ref().and_then(|s| s.ready.clone()).unwrap_or_default();
            vec![
                addon.name().into(),
                word(addon, APPLIED),
                word(addon, READY),
                ready,
                addon.spec.path.clone(),
                trouble(addon),
            ]
        })
        .collect();
    table::print(&["NAME", "APPLIED", "READY", "OBJECTS", "FILE", "MESSAGE"], &rows);
    Ok(well)
}

fn is_well(addon: &Addon) -> bool {
    addon.is_ready() && !addon.is_deleting() && !addon.is(CONFLICT)
}

/// A condition in a word: `yes`, or why not.
fn word(addon: &Addon, kind: &str) -> String {
    match addon.condition(kind) {
        None => "-".into(),
        Some(condition) if condition.status == "True" => "yes".into(),
        Some(condition) => condition.reason.clone(),
    }
}

fn trouble(addon: &Addon) -> String {
    let ill = [(APPLIED, "False"), (READY, "False"), (CONFLICT, "True")];
    let conditions = ill
        .iter()
        .filter_map(|(kind, is)| addon.condition(kind).filter(|c| c.status == *is));
    conditions.map(|c| c.message.clone()).next().unwrap_or_default()
}

async fn show(name: String, target: Target) -> anyhow::Result<bool> {
    let all = all(&rest(target.kubeconfig).await?).await?;
    let Some(addon) = all.iter().find(|a| a.name() == name) else {
        let names: Vec<&str> = all.iter().map(|a| a.name()).collect();
        bail!("there is no add-on {name}; there are: {}", names.join(", "));
    };
    if target.output == Output::Json {
        println!("{}", serde_json::to_string_pretty(addon)?);
        return Ok(is_well(addon));
    }
    let status = addon.status.clone().unwrap_or_default();
    println!("{name}: {}", addon.spec.path);
    for source in &status.sources {
        let shown = format!("{}:{}", source.server, source.file);
        let mark = if status.source.as_deref() == Some(shown.as_str()) {
            " (in force)"
        } else {
            ""
        };
        println!("  {shown}{mark}");
    }
    println!();
    let conditions = status.conditions.iter();
    let rows: Vec<Vec<String>> = conditions
        .map(|c| {
            vec![
                c.type_.clone(),
                c.status.clone(),
                c.reason.clone(),
                c.last_transition_time.0.to_string(),
                c.message.clone(),
            ]
        })
        .collect();
    table::print(&["CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"], &rows);
    println!();
    let objects = status.objects.iter();
    let rows: Vec<Vec<String>> = objects
        .map(|o| {
            vec![
                o.kind.clone(),
                o.namespace.clone(),
                o.name.clone(),
                format!("{:?}", o.state),
                o.message.clone(),
            ]
        })
        .collect();
    table::print(&["KIND", "NAMESPACE", "NAME", "STATE", "MESSAGE"], &rows);
    Ok(is_well(addon))
}

async fn forget(server: String, given: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let rest = rest(given).await?;
    let secrets = Objects::<Secret>::new(&rest);
    let told = secrets.list(NAMESPACE, MARK, "").await?;
    let sources: Vec<Source> = told.iter().filter_map(Source::of).collect();
    let own: Vec<&Source> = sources.iter().filter(|s| s.server == server).collect();
    if own.is_empty() {
        let mut servers: Vec<&str> = sources.iter().map(|s| s.server.as_str()).collect();
        servers.sort_unstable();
        servers.dedup();
        ensure!(!servers.is_empty(), "no server has said anything");
        bail!("{server} has said nothing; there are: {}", servers.join(", "));
    }
    for source in own {
        match secrets
            .delete(NAMESPACE, &source.secret_name(), &delete_options(None, None, None))
            .await
        {
            Err(error) if !is_not_found(&error) => return Err(error).context(source.file.clone()),
            _ => println!("{} is forgotten", source.shown()),
        }
    }
    Ok(ExitCode::SUCCESS)
}
