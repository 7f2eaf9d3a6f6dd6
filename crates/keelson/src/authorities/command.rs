//! `keelson certificate rotate --authorities` and what `ls` shows of authorities. A server that runs makes the steps; it is asked by the
//! API, each time anew: the kubeconfig by which it is asked is replaced meanwhile.

use super::depends::Told;
use super::journal;
use anyhow::{Context, bail};
use http::Method;
use jiff::Timestamp;
use keelson_apiserver::authorities::PATH;
use keelson_client::rest::Rest;
use keelson_client::{Error, is_conflict};
use keelson_pki::sharing::ETCD_CA;
use keelson_pki::succession::{Stage, Standing, Step};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// How often what a step waits for is asked for.
const ASK_AGAIN: Duration = Duration::from_secs(1);

pub struct Rotation {
    /// Empty: all.
    pub names: Vec<String>,
    /// Only this one.
    pub step: Option<Step>,
    /// All that are left, each for so long at most.
    pub wait: Option<Duration>,
    pub force: bool,
}

/// What to do with an authority now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Make(Step),
    /// All that was asked for is done.
    Done,
    /// It is on its way already, and nothing was said of a step.
    Underway,
}

impl Rotation {
    /// `made`: what this command has made of it.
    fn next(&self, standing: &Standing, made: &[Step]) -> Next {
        match (self.step, self.wait) {
            (Some(_), _) if !made.is_empty() => Next::Done,
            (Some(step), _) => Next::Make(step),
            (None, Some(_)) if made.contains(&Step::Withdraw) => Next::Done,
            (None, Some(_)) => Next::Make(standing.next()),
            (None, None) if !made.is_empty() => Next::Done,
            (None, None) if standing.stage == Stage::AtRest => Next::Make(Step::Announce),
            (None, None) => Next::Underway,
        }
    }
}

async fn call(kubeconfig: &Path, method: Method, path: &str) -> anyhow::Result<bytes::Bytes> {
    let client = keelson_client::from_kubeconfig(kubeconfig, None).await?;
    let rest = Rest::new(client, "keelson-certificate");
    Ok(rest.call(method, path, "application/json", Vec::new()).await?)
}

pub async fn told(kubeconfig: &Path) -> anyhow::Result<BTreeMap<String, Told>> {
    let answer = call(kubeconfig, Method::GET, PATH).await;
    let answer = answer.context("asking the server for its authorities")?;
    serde_json::from_slice(&answer).context("the server's answer")
}

pub async fn rotate(kubeconfig: &Path, rotation: &Rotation) -> anyhow::Result<()> {
    let all = told(kubeconfig).await?;
    if let Some(unknown) = rotation.names.iter().find(|name| !all.contains_key(*name)) {
        let known: Vec<&str> = all.keys().map(String::as_str).collect();
        bail!(
            "{unknown:?} is no authority that is followed by another: {}",
            known.join(", ")
        );
    }
    for (name, first) in &all {
        if !rotation.names.is_empty() && !rotation.names.contains(name) {
            continue;
        }
        let mut standing = first.standing.clone();
        let mut made = Vec::new();
        loop {
            let step = match rotation.next(&standing, &made) {
                Next::Make(step) => step,
                Next::Done => break,
                Next::Underway => bail!(
                    "{name} is on its way: {}. --wait goes on with it now, --step makes one step",
                    outlook(&standing)
                ),
            };
            standing = make(kubeconfig, name, step, rotation).await?;
            made.push(step);
            println!("{name}: {}", outlook(&standing));
        }
    }
    Ok(())
}

async fn make(kubeconfig: &Path, name: &str, step: Step, rotation: &Rotation) -> anyhow::Result<Standing> {
    let text = match step {
        Step::Announce => "announce",
        Step::Sign => "sign",
        Step::Withdraw => "withdraw",
    };
    let path = format!("{PATH}/{name}/{text}?force={}", rotation.force);
    let until = Instant::now() + rotation.wait.unwrap_or_default();
    let mut said = String::new();
    loop {
        let error = match call(kubeconfig, Method::POST, &path).await {
            Ok(answer) => return serde_json::from_slice(&answer).context("the server's answer"),
            Err(error) => error,
        };
        let why = match error.downcast_ref::<Error>() {
            Some(refused @ Error::Api(status)) if is_conflict(refused) => status.message.clone(),
            _ => return Err(error).with_context(|| format!("{name}: {text}")),
        };
        if Instant::now() >= until {
            let hint = match name == ETCD_CA.name {
                true => {
                    "etcd would be no more: --force doesn't make it. --wait waits; keelson etcd remove NAME gives a member up"
                }
                false => "--force makes it all the same",
            };
            bail!("{name}: {text} is not made:\n{why}\n{hint}");
        }
        if why != said {
            println!("{name}: {text} waits:\n{why}");
            said = why;
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

fn date(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |at| format!("{at:.0}"))
}

/// Where an authority stands and what comes, in a sentence.
fn outlook(standing: &Standing) -> String {
    let (now, due) = (short(&standing.signs.hash), standing.due_at().map(date));
    let due = due.unwrap_or_else(|| "never".into());
    let beside = standing
        .beside
        .as_ref()
        .map(|other| short(&other.hash))
        .unwrap_or_default();
    match standing.stage {
        Stage::AtRest if standing.foreign => {
            format!("{now} signs; somebody else vouches for it, who has to make what follows it")
        }
        Stage::AtRest => format!(
            "{now} signs, until {}; another follows it from {due} on",
            date(standing.signs.ends)
        ),
        Stage::Announced => format!("{beside} is known beside {now}, and signs from {due} on"),
        Stage::Replaced => format!("{now} signs, and {beside} of before is trusted until {due}"),
    }
}

fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// Authorities of a server's directory; none on other machines.
pub fn list(pki: &Path) -> anyhow::Result<()> {
    let all = match pki.join("ca.key").exists() {
        true => journal::standing(pki)?,
        false => BTreeMap::new(),
    };
    if !all.is_empty() {
        println!("\n{:<16} {:<10} STANDING", "AUTHORITY", "STAGE");
    }
    for (name, standing) in all {
        println!("{name:<16} {:<10} {}", stage(standing.stage), outlook(&standing));
    }
    Ok(())
}

fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::AtRest => "at rest",
        Stage::Announced => "announced",
        Stage::Replaced => "replaced",
    }
}

/// What depends on an authority of before, as far as a server that runs knows.
pub async fn list_depending(kubeconfig: &Path) -> anyhow::Result<()> {
    for (name, told) in told(kubeconfig).await? {
        for line in told.depending {
            println!("{name}: {line}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_pki::succession::Which;

    fn standing(stage: Stage) -> Standing {
        let which = |hash: &str| Which {
            hash: hash.repeat(32),
            ends: 4_000_000_000,
        };
        Standing {
            stage,
            number: 1,
            since: 0,
            signs: which("ab"),
            beside: (stage != Stage::AtRest).then(|| which("cd")),
            foreign: false,
        }
    }

    #[test]
    fn a_command_makes_what_was_asked_and_no_more() {
        let rotation = |step, wait| Rotation {
            names: Vec::new(),
            step,
            wait,
            force: false,
        };
        let (rest, announced) = (standing(Stage::AtRest), standing(Stage::Announced));
        let plain = rotation(None, None);
        assert_eq!(plain.next(&rest, &[]), Next::Make(Step::Announce));
        assert_eq!(plain.next(&announced, &[Step::Announce]), Next::Done);
        assert_eq!(
            plain.next(&announced, &[]),
            Next::Underway,
            "nobody goes faster unasked"
        );
        let one = rotation(Some(Step::Sign), None);
        assert_eq!(one.next(&announced, &[]), Next::Make(Step::Sign));
        assert_eq!(one.next(&standing(Stage::Replaced), &[Step::Sign]), Next::Done);
        let all = rotation(None, Some(Duration::ZERO));
        for (stage, next) in [
            (Stage::AtRest, Step::Announce),
            (Stage::Announced, Step::Sign),
            (Stage::Replaced, Step::Withdraw),
        ] {
            assert_eq!(all.next(&standing(stage), &[]), Next::Make(next));
        }
        assert_eq!(all.next(&rest, &[Step::Sign, Step::Withdraw]), Next::Done);
    }

    #[test]
    fn where_it_stands_is_said_with_what_comes() {
        let replaced = outlook(&standing(Stage::Replaced));
        assert_eq!(
            replaced,
            "abababababab signs, and cdcdcdcdcdcd of before is trusted until 1971-02-05T00:00:00Z"
        );
        assert!(outlook(&standing(Stage::Announced)).contains("signs from 1970-01-02T00:00:00Z on"));
        let foreign = Standing {
            foreign: true,
            ..standing(Stage::AtRest)
        };
        assert!(outlook(&foreign).contains("somebody else vouches"));
    }
}
