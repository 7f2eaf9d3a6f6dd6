//! `keelson get --at`: what was.

use super::ask::Asking;
use super::{Target, table};
use crate::client::block_on;
use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use keelson_client::kind::ResourceId;
use keelson_client::rest::JSON;
use keelson_history::yaml;
use serde_json::{Value, json};
use std::process::ExitCode;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

#[derive(Args)]
pub struct Options {
    /// KIND, or KIND/NAME
    #[arg(value_name = "KIND[/NAME]")]
    what: String,
    /// When
    #[arg(long, value_name = "MOMENT")]
    at: String,
    #[command(flatten)]
    target: Target,
    /// In all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// The form of the answer
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Output {
    Table,
    Wide,
    Yaml,
    Json,
    Name,
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    block_on(async {
        let asking = Asking::of(&options.target, "keelson-get").await?;
        match options.what.contains('/') {
            true => one(&asking, &options).await?,
            false => list(&asking, &options).await?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn one(asking: &Asking, options: &Options) -> anyhow::Result<()> {
    ensure!(!options.all_namespaces, "-A: an object is in one namespace");
    let named = asking.named(&options.what)?;
    // One answer, also for a table: a second one would be of another moment.
    let object = asking.object(&named, Some(&options.at), accept(options.output)).await?;
    let object = object.with_context(|| format!("{named} wasn't there"))?;
    match options.output {
        Output::Yaml => print!("{}", yaml(&object)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&object)?),
        Output::Name => println!("{}", name(&named.id, &object)),
        Output::Table | Output::Wide => tables(&[object], options.output == Output::Wide, false),
    }
    Ok(())
}

async fn list(asking: &Asking, options: &Options) -> anyhow::Result<()> {
    let id = asking.kind(&options.what)?;
    let namespace = match id.namespaced && !options.all_namespaces {
        true => asking.namespace.as_str(),
        false => "",
    };
    let mut at = options.at.clone();
    let pages = asking.pages(&id, namespace, &mut at, accept(options.output)).await?;
    let items = || {
        pages
            .iter()
            .flat_map(|page| page["items"].as_array().into_iter().flatten())
    };
    match options.output {
        Output::Table | Output::Wide => tables(
            &pages,
            options.output == Output::Wide,
            id.namespaced && options.all_namespaces,
        ),
        Output::Name => items().for_each(|item| println!("{}", name(&id, item))),
        Output::Yaml | Output::Json => {
            let items: Vec<Value> = items().map(|item| of_kind(&id, item)).collect();
            let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items});
            match options.output {
                Output::Yaml => print!("{}", yaml(&list)),
                _ => println!("{}", serde_json::to_string_pretty(&list)?),
            }
        }
    }
    Ok(())
}

fn accept(output: Output) -> &'static str {
    match output {
        Output::Table | Output::Wide => TABLE,
        Output::Yaml | Output::Json | Output::Name => JSON,
    }
}

fn of_kind(id: &ResourceId, item: &Value) -> Value {
    let mut item = item.clone();
    item["apiVersion"] = id.api_version().into();
    item["kind"] = id.kind.as_ref().into();
    item
}

/// As kubectl names it.
fn name(id: &ResourceId, object: &Value) -> String {
    let kind = id.kind.to_lowercase();
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    match id.group.is_empty() {
        true => format!("{kind}/{name}"),
        false => format!("{kind}.{}/{name}", id.group),
    }
}

fn tables(pages: &[Value], wide: bool, namespaces: bool) {
    let columns = pages.iter().find_map(|page| page["columnDefinitions"].as_array());
    let columns = columns.map(Vec::as_slice).unwrap_or_default();
    let shown: Vec<usize> = (0..columns.len())
        .filter(|at| wide || columns[*at]["priority"].as_i64().unwrap_or(0) == 0)
        .collect();
    let titles = shown
        .iter()
        .map(|at| columns[*at]["name"].as_str().unwrap_or_default().to_uppercase());
    let head: Vec<String> = namespaces
        .then(|| "NAMESPACE".to_string())
        .into_iter()
        .chain(titles)
        .collect();
    let rows = pages
        .iter()
        .flat_map(|page| page["rows"].as_array().into_iter().flatten());
    let rows: Vec<Vec<String>> = rows
        .map(|row| {
            let namespace = row["object"]["metadata"]["namespace"].as_str().unwrap_or_default();
            let cells = shown.iter().map(|at| cell(&row["cells"][*at]));
            namespaces
                .then(|| namespace.to_string())
                .into_iter()
                .chain(cells)
                .collect()
        })
        .collect();
    if rows.is_empty() {
        eprintln!("there were none");
        return;
    }
    table::print(&head.iter().map(String::as_str).collect::<Vec<_>>(), &rows);
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "<none>".into(),
        other => other.to_string(),
    }
}
