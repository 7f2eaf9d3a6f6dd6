//! `keelson why`: the command around [`keelson_why`]. Linked to as `kubectl-why` it is a plug-in of kubectl.

use crate::client::{block_on, kubeconfig};
use anyhow::Context;
use clap::{Args, ValueEnum};
use k8s_openapi::jiff::Timestamp;
use keelson_client::rest::Rest;
use keelson_why::{Question, Report, fetch};
use std::path::PathBuf;
use std::process::ExitCode;

/// The name under which kubectl finds it.
pub const PLUGIN: &str = "kubectl-why";

pub const AFTER_HELP: &str = "\
Questions:
  pod/web-0                            an object: pods, what makes them, services, ingresses, claims, volumes, nodes, namespaces, …
  denied --as ana delete pods/web-0    why a user may not do something
  unreachable pod/web-0 service/db:5432    whether a pod reaches a pod or a service: services, readiness, network policies

Exit status: 0 nothing is wrong, 1 causes were found, 2 it could not be looked at.";

#[derive(Args)]
pub struct Options {
    /// KIND/NAME; `denied VERB RESOURCE[/NAME]` with --as; `unreachable FROM TO[:PORT]`
    #[arg(required = true, value_name = "QUESTION")]
    words: Vec<String>,
    /// The object's namespace [default: the kubeconfig's]
    #[arg(short, long)]
    namespace: Option<String>,
    /// For `denied`: the user
    #[arg(long = "as", value_name = "USER")]
    user: Option<String>,
    /// For `denied`: the user's groups; may be given several times
    #[arg(long = "as-group", value_name = "GROUP")]
    groups: Vec<String>,
    /// The form of the answer
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Kubeconfig of the cluster [default: $KUBECONFIG, or /var/lib/keelson/admin.kubeconfig]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context [default: its current one]
    #[arg(long)]
    context: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

const FAULTS: u8 = 1;
const ERROR: u8 = 2;

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let output = options.output;
    let report = match block_on(ask(options)) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("keelson: {error:#}");
            return Ok(ExitCode::from(ERROR));
        }
    };
    match output {
        Output::Text => print!("{}", report.text()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(match report.findings.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(FAULTS),
    })
}

async fn ask(options: Options) -> anyhow::Result<Report> {
    let path = kubeconfig(options.kubeconfig.clone());
    let client = keelson_client::from_kubeconfig(&path, options.context.as_deref()).await?;
    let namespace = match &options.namespace {
        Some(namespace) => namespace.clone(),
        None => client.default_namespace().to_string(),
    };
    let question = question(&options, &namespace)?;
    let rest = Rest::new(client, "keelson-why");
    fetch::answer(&rest, &question, Timestamp::now())
        .await
        .with_context(|| format!("{question} can't be looked at"))
}

fn question(options: &Options, namespace: &str) -> anyhow::Result<Question> {
    let words: Vec<&str> = options.words.iter().map(String::as_str).collect();
    Ok(match words[..] {
        ["denied", verb, what] => {
            let user = options.user.as_deref().unwrap_or_default();
            Question::denied(user, &options.groups, verb, what, namespace)?
        }
        ["unreachable", from, to] => Question::unreachable(from, to, namespace)?,
        ["denied", ..] => anyhow::bail!("denied --as USER VERB RESOURCE[/NAME]"),
        ["unreachable", ..] => anyhow::bail!("unreachable pod/NAME service/NAME[:PORT]"),
        _ => Question::object(&options.words, namespace)?,
    })
}
