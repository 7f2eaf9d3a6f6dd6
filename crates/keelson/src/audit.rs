//! `keelson audit who`: the audit log as an answer to who did something to an object.

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say who did something to an object: created, changed, deleted, evicted, entered, read, or an API verb
    Who(Who),
}

#[derive(Args)]
struct Who {
    /// created, changed, deleted, evicted, entered, read, touched (anything), or a verb of the API such as patch
    did: String,
    /// KIND/NAME as the API names resources: pods/web-0, deployments/web; without a name: any of them
    #[arg(value_name = "RESOURCE[/NAME]")]
    what: String,
    /// Only objects of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Attempts that were refused, too
    #[arg(long)]
    refused: bool,
    /// The audit log; older ones beside it are read too
    #[arg(long, value_name = "FILE", default_value = "/var/lib/keelson/audit/audit.log")]
    log: PathBuf,
}

/// What a question is about.
struct Asked<'a> {
    did: &'a str,
    resource: String,
    name: &'a str,
    namespace: Option<&'a str>,
    refused: bool,
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let Command::Who(who) = options.command;
    let (kind, name) = who.what.split_once('/').unwrap_or((&who.what, ""));
    let asked = Asked {
        did: &who.did,
        resource: keelson_why::kind(kind).map_or_else(|| kind.to_lowercase(), |k| k.id.plural.to_string()),
        name,
        namespace: who.namespace.as_deref(),
        refused: who.refused,
    };
    let mut found = 0;
    for file in files(&who.log)? {
        let reader = BufReader::new(File::open(&file).with_context(|| format!("reading {}", file.display()))?);
        for line in reader.split(b'\n') {
            // The last line may be half written, and a crash may have cut another, within a character too.
            let Ok(event) = serde_json::from_slice::<Value>(&line?) else {
                continue;
            };
            if is_it(&event, &asked) {
                println!("{}", sentence(&event));
                found += 1;
            }
        }
    }
    if found == 0 {
        eprintln!("nobody, as far as the audit log goes back and its policy logs");
    }
    Ok(if found == 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The log and those put aside, the oldest first.
fn files(log: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !log.exists() {
        bail!(
            "there is no audit log {}: name it with --log (the server's --audit-log-path)",
            log.display()
        );
    }
    let stem = log.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_string();
    let dir = log
        .parent()
        .filter(|d| !d.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut aside = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if path != log && name.starts_with(&format!("{stem}-")) && path.extension() == log.extension() {
            aside.push(path);
        }
    }
    // Their names are dates.
    aside.sort();
    aside.push(log.to_path_buf());
    Ok(aside)
}

fn text<'a>(event: &'a Value, path: &str) -> &'a str {
    event.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn code(event: &Value) -> i64 {
    event
        .pointer("/responseStatus/code")
        .and_then(Value::as_i64)
        .unwrap_or(0)
}

fn is_it(event: &Value, asked: &Asked) -> bool {
    let (verb, below) = (text(event, "/verb"), text(event, "/objectRef/subresource"));
    let name = text(event, "/objectRef/name");
    // By applying, or putting, what wasn't there.
    let made = matches!(verb, "patch" | "update") && code(event) == 201;
    let did = match asked.did {
        "touched" => true,
        "created" => (verb == "create" || made) && below.is_empty(),
        "changed" => matches!(verb, "update" | "patch") && below != "status" && !made,
        "deleted" => matches!(verb, "delete" | "deletecollection") && below.is_empty(),
        "evicted" => verb == "create" && below == "eviction",
        "entered" => matches!(below, "exec" | "attach" | "portforward" | "ephemeralcontainers"),
        "read" => matches!(verb, "get" | "list" | "watch") && !matches!(below, "exec" | "attach" | "portforward"),
        other => verb == other,
    };
    // Whole collections have no name: they may have had this one in them.
    let named = asked.name.is_empty() || name == asked.name || (name.is_empty() && verb == "deletecollection");
    let is_done = matches!(
        text(event, "/stage"),
        "ResponseComplete" | "ResponseStarted" | "Panic" | ""
    );
    did && named
        && is_done
        && text(event, "/objectRef/resource") == asked.resource
        && asked.namespace.is_none_or(|n| text(event, "/objectRef/namespace") == n)
        && (asked.refused || code(event) < 400)
}

/// `2026-03-01T12:00:00Z  ana (as system:admin) from 192.0.2.7 by kubectl/v1.37.2: delete pods/web-0 in shop: 200`
fn sentence(event: &Value) -> String {
    let at = text(event, "/requestReceivedTimestamp");
    let mut who = text(event, "/user/username").to_string();
    let acting = text(event, "/impersonatedUser/username");
    if !acting.is_empty() {
        who += &format!(" (as {acting})");
    }
    let from = text(event, "/sourceIPs/0");
    if !from.is_empty() {
        who += &format!(" from {from}");
    }
    let agent = text(event, "/userAgent").split(' ').next().unwrap_or_default();
    if !agent.is_empty() {
        who += &format!(" by {agent}");
    }
    let mut what = text(event, "/objectRef/resource").to_string();
    for part in ["/objectRef/name", "/objectRef/subresource"] {
        let part = text(event, part);
        if !part.is_empty() {
            what += &format!("/{part}");
        }
    }
    let namespace = text(event, "/objectRef/namespace");
    if !namespace.is_empty() {
        what += &format!(" in {namespace}");
    }
    let line = format!("{at}  {who}: {} {what}: {}", text(event, "/verb"), code(event));
    // Names and agents are what clients sent: nothing of them commands a terminal.
    line.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(verb: &str, name: &str, below: &str, code: i64) -> Value {
        json!({
            "stage": "ResponseComplete", "verb": verb, "requestReceivedTimestamp": "2026-03-01T12:00:00Z",
            "user": {"username": "ana"}, "sourceIPs": ["192.0.2.7"], "userAgent": "kubectl/v1.37.2 (linux)\u{1b}[2J",
            "objectRef": {"resource": "pods", "namespace": "shop", "name": name, "subresource": below},
            "responseStatus": {"code": code},
        })
    }

    #[test]
    fn questions_find_their_events() {
        let asked = |did, name, refused| Asked {
            did,
            resource: "pods".into(),
            name,
            namespace: Some("shop"),
            refused,
        };
        for (did, verb, name, below, code, refused, is) in [
            ("deleted", "delete", "web", "", 200, false, true),
            ("deleted", "delete", "other", "", 200, false, false),
            ("deleted", "deletecollection", "", "", 200, false, true),
            ("deleted", "delete", "web", "", 403, false, false),
            ("deleted", "delete", "web", "", 403, true, true),
            ("evicted", "create", "web", "eviction", 201, false, true),
            ("created", "create", "web", "eviction", 201, false, false),
            ("changed", "patch", "web", "", 200, false, true),
            ("changed", "patch", "web", "status", 200, false, false),
            ("entered", "get", "web", "exec", 101, false, true),
            ("read", "get", "web", "exec", 101, false, false),
            ("read", "get", "web", "log", 200, false, true),
            ("patch", "patch", "web", "status", 200, false, true),
            ("touched", "watch", "web", "", 200, false, true),
        ] {
            let event = event(verb, name, below, code);
            assert_eq!(is_it(&event, &asked(did, "web", refused)), is, "{did}: {event}");
        }
        let mut elsewhere = event("delete", "web", "", 200);
        elsewhere["objectRef"]["namespace"] = "dev".into();
        assert!(!is_it(&elsewhere, &asked("deleted", "web", false)));
    }

    #[test]
    fn an_answer_is_one_line_and_commands_no_terminal() {
        let mut event = event("delete", "web", "", 200);
        event["impersonatedUser"] = json!({"username": "bo\nb"});
        assert_eq!(
            sentence(&event),
            "2026-03-01T12:00:00Z  ana (as bob) from 192.0.2.7 by kubectl/v1.37.2: delete pods/web in shop: 200"
        );
    }

    #[test]
    fn logs_put_aside_are_read_first() {
        let dir = std::env::temp_dir().join(format!("keelson-audit-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for name in ["audit.log", "audit-2026-02-02.log", "audit-2026-01-01.log", "other.log"] {
            std::fs::write(dir.join(name), "").unwrap();
        }
        let found = files(&dir.join("audit.log")).unwrap();
        let names: Vec<&str> = found.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["audit-2026-01-01.log", "audit-2026-02-02.log", "audit.log"]);
        assert!(files(&dir.join("none.log")).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
