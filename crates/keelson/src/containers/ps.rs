//! `keelson ps`: the containers of this node, or its pods.

use super::cells::{age, known, short};
use super::node::{Container, Detail, Node, Pod, State};
use super::{Filter, Reach};
use crate::client::block_on;
use crate::history::table;
use anyhow::anyhow;
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;

#[derive(Args)]
pub struct Options {
    /// Also containers that don't run, and pods that aren't ready
    #[arg(short, long)]
    all: bool,
    /// Pods (their sandboxes) in place of containers
    #[arg(long, conflicts_with = "name")]
    pods: bool,
    /// Nothing but IDs
    #[arg(short, long)]
    quiet: bool,
    #[arg(short, long, value_enum, default_value = "table", conflicts_with = "quiet")]
    output: Output,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Wide,
    Json,
    Yaml,
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    block_on(async {
        let cri = options.reach.connect().await?;
        let node = Node::read(&cri).await?;
        let now = Timestamp::now();
        if options.pods {
            pods(&options, &node, now)?;
            return Ok(ExitCode::SUCCESS);
        }
        let chosen: Vec<&Container> = node
            .containers
            .iter()
            .filter(|one| takes(&options, &node, one))
            .collect();
        if options.quiet {
            chosen.iter().for_each(|one| println!("{}", one.id));
            return Ok(ExitCode::SUCCESS);
        }
        let details = match options.output {
            Output::Table => BTreeMap::new(),
            _ => Detail::of_all(&cri, &chosen).await,
        };
        match options.output {
            Output::Table | Output::Wide => {
                let wide = options.output == Output::Wide;
                let rows: Vec<_> = chosen
                    .iter()
                    .map(|one| row(one, details.get(&one.id), wide, now))
                    .collect();
                table::print(&head(wide), &rows);
            }
            Output::Json | Output::Yaml => {
                let items = chosen.iter().map(|one| object(one, details.get(&one.id))).collect();
                print(options.output == Output::Yaml, items)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn takes(options: &Options, node: &Node, one: &Container) -> bool {
    let pod = node.pod(&one.pod_id);
    let labels: Vec<_> = std::iter::once(&one.labels).chain(pod.map(|pod| &pod.labels)).collect();
    (options.all || one.state == State::Running)
        && options.filter.takes(&one.namespace, &one.pod, Some(&one.name), &labels)
}

fn head(wide: bool) -> Vec<&'static str> {
    let head = [
        "ID",
        "NAMESPACE",
        "POD",
        "CONTAINER",
        "ATTEMPT",
        "STATE",
        "AGE",
        "IMAGE",
    ];
    let more = ["PID", "POD ID"].into_iter().filter(|_| wide);
    head.into_iter().chain(more).collect()
}

fn row(one: &Container, detail: Option<&Detail>, wide: bool, now: Timestamp) -> Vec<String> {
    let code = detail.and_then(|detail| detail.exit_code);
    let mut row = vec![
        short(&one.id),
        one.namespace.clone(),
        one.pod.clone(),
        one.name.clone(),
        one.attempt.to_string(),
        code.map_or_else(|| one.state.to_string(), |code| format!("{} ({code})", one.state)),
        age(since(one.created, now)),
        one.image.clone(),
    ];
    if wide {
        row.push(known(detail.and_then(|detail| detail.pid), |pid| pid.to_string()));
        row.push(short(&one.pod_id));
    }
    row
}

/// Seconds since then, which is in nanoseconds.
fn since(then: i64, now: Timestamp) -> i64 {
    now.as_second() - then / 1_000_000_000
}

fn time(nanoseconds: i64) -> Option<String> {
    let time = Timestamp::from_nanosecond(nanoseconds.into()).ok();
    time.filter(|_| nanoseconds != 0).map(|time| time.to_string())
}

fn object(one: &Container, detail: Option<&Detail>) -> Value {
    json!({
        "id": one.id,
        "namespace": one.namespace,
        "pod": one.pod,
        "podID": one.pod_id,
        "container": one.name,
        "attempt": one.attempt,
        "state": one.state.to_string(),
        "created": time(one.created),
        "image": one.image,
        "labels": one.labels,
        "pid": detail.and_then(|detail| detail.pid),
        "exitCode": detail.and_then(|detail| detail.exit_code),
        "reason": detail.map(|detail| &detail.reason).filter(|reason| !reason.is_empty()),
        "log": detail.map(|detail| &detail.log).filter(|log| !log.is_empty()),
    })
}

fn pods(options: &Options, node: &Node, now: Timestamp) -> anyhow::Result<()> {
    let takes = |pod: &&Pod| {
        (options.all || pod.ready) && options.filter.takes(&pod.namespace, &pod.name, None, &[&pod.labels])
    };
    let chosen: Vec<&Pod> = node.pods.iter().filter(takes).collect();
    if options.quiet {
        chosen.iter().for_each(|pod| println!("{}", pod.id));
        return Ok(());
    }
    match options.output {
        Output::Table | Output::Wide => {
            let wide = options.output == Output::Wide;
            let head = ["ID", "NAMESPACE", "POD", "ATTEMPT", "STATE", "AGE", "CONTAINERS"];
            let more = ["UID", "HANDLER"].into_iter().filter(|_| wide);
            let head: Vec<&str> = head.into_iter().chain(more).collect();
            let rows: Vec<_> = chosen.iter().map(|pod| pod_row(pod, node, wide, now)).collect();
            table::print(&head, &rows);
            Ok(())
        }
        Output::Json | Output::Yaml => {
            let items = chosen.iter().map(|pod| pod_object(pod)).collect();
            print(options.output == Output::Yaml, items)
        }
    }
}

fn pod_state(pod: &Pod) -> &'static str {
    match pod.ready {
        true => "Ready",
        false => "NotReady",
    }
}

fn pod_row(pod: &Pod, node: &Node, wide: bool, now: Timestamp) -> Vec<String> {
    let all = || node.containers.iter().filter(|one| one.pod_id == pod.id);
    let running = all().filter(|one| one.state == State::Running).count();
    let mut row = vec![
        short(&pod.id),
        pod.namespace.clone(),
        pod.name.clone(),
        pod.attempt.to_string(),
        pod_state(pod).to_string(),
        age(since(pod.created, now)),
        format!("{running} of {} run", all().count()),
    ];
    if wide {
        row.push(pod.uid.clone());
        row.push(known(
            Some(pod.handler.clone()).filter(|handler| !handler.is_empty()),
            |name| name,
        ));
    }
    row
}

fn pod_object(pod: &Pod) -> Value {
    json!({
        "id": pod.id,
        "namespace": pod.namespace,
        "pod": pod.name,
        "uid": pod.uid,
        "attempt": pod.attempt,
        "state": pod_state(pod),
        "created": time(pod.created),
        "runtimeHandler": pod.handler,
        "labels": pod.labels,
    })
}

/// What isn't known is left out.
fn print(yaml: bool, mut items: Vec<Value>) -> anyhow::Result<()> {
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        item.retain(|_, value| !value.is_null());
    }
    let items = Value::from(items);
    match yaml {
        true => print!(
            "{}",
            serde_saphyr::to_string(&items).map_err(|error| anyhow!("{error}"))?
        ),
        false => println!("{}", serde_json::to_string_pretty(&items)?),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::node::tests::node;
    use super::*;

    #[test]
    fn a_row_tells_of_a_container_what_is_known() {
        let node = node(&[("shop", "web-0", "app", 2, State::Exited)]);
        let now = Timestamp::from_second(90).unwrap();
        let one = &node.containers[0];
        let expected = ["id-0", "shop", "web-0", "app", "2", "Exited", "90s", "image:1"];
        assert_eq!(row(one, None, false, now), expected);
        let detail = Detail {
            exit_code: Some(137),
            ..Detail::default()
        };
        let wide = row(one, Some(&detail), true, now);
        assert_eq!((wide[5].as_str(), wide[8].as_str()), ("Exited (137)", "-"));
        assert_eq!(wide.len(), head(true).len());
        assert_eq!(expected.len(), head(false).len());
    }

    #[test]
    fn a_pod_says_how_many_of_its_containers_run() {
        let node = node(&[
            ("shop", "web-0", "app", 0, State::Exited),
            ("shop", "web-0", "app", 1, State::Running),
        ]);
        let row = pod_row(&node.pods[0], &node, true, Timestamp::from_second(3).unwrap());
        assert_eq!(row[1..7], ["shop", "web-0", "0", "Ready", "3s", "1 of 2 run"]);
    }

    #[test]
    fn objects_have_times_that_others_can_read() {
        let node = node(&[
            ("shop", "web-0", "a", 0, State::Running),
            ("shop", "web-0", "b", 0, State::Running),
        ]);
        let object = object(&node.containers[0], None);
        assert_eq!(object["created"], "1970-01-01T00:00:01Z");
        assert_eq!((&object["state"], &object["pid"]), (&json!("Running"), &Value::Null));
    }
}
