//! What was said for the server or the agent, read as these read it themselves. What an option's help hides is a secret: it goes
//! apart from the rest.

use crate::{agent, config};
use anyhow::{anyhow, bail};
use clap::parser::ValueSource;
use clap::{ArgAction, Command, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::any::TypeId;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A cluster, or one more server of one
    Server,
    /// A node of a cluster whose servers are elsewhere
    Agent,
}

impl Role {
    pub fn command(self) -> &'static str {
        match self {
            Role::Server => "server",
            Role::Agent => "agent",
        }
    }
    pub fn phrase(self) -> &'static str {
        match self {
            Role::Server => "a server",
            Role::Agent => "an agent",
        }
    }
    /// The name of the service.
    pub fn service(self) -> &'static str {
        match self {
            Role::Server => "keelson",
            Role::Agent => "keelson-agent",
        }
    }

    fn options(self) -> Command {
        use clap::Args;
        match self {
            Role::Server => config::Options::augment_args(Command::new("keelson server").no_binary_name(true)),
            Role::Agent => agent::Options::augment_args(Command::new("keelson agent").no_binary_name(true)),
        }
    }

    /// Whether these can stand in the configuration file; what can't is named.
    pub fn reads(self, settings: &Map<String, Value>) -> serde_json::Result<()> {
        match self {
            Role::Server => config::Options::of(settings.clone()).map(drop),
            Role::Agent => agent::Options::of(settings.clone()).map(drop),
        }
    }
}

#[derive(Debug, Default)]
pub struct Given {
    /// The configuration file, if it isn't the usual one.
    pub config: Option<PathBuf>,
    /// Names as in that file.
    pub settings: Map<String, Value>,
    /// By the variables in which the program looks for them.
    pub secrets: BTreeMap<String, String>,
}

impl Given {
    /// From the words behind the dashes and from the environment, as the program does it.
    pub fn parse(role: Role, words: &[String]) -> anyhow::Result<Given> {
        let mut command = role.options();
        let matches = command
            .try_get_matches_from_mut(words)
            .map_err(|e| anyhow!("{}", e.to_string().trim_start_matches("error: ").trim_end()))?;
        let mut given = Given::default();
        for arg in command.get_arguments() {
            let (id, Some(name)) = (arg.get_id().as_str(), arg.get_long()) else {
                continue;
            };
            let said = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
                && matches!(
                    matches.value_source(id),
                    Some(ValueSource::CommandLine | ValueSource::EnvVariable)
                );
            let Some(raw) = matches.get_raw(id).filter(|_| said) else {
                continue;
            };
            // The service runs elsewhere than this command.
            let path = arg.get_value_parser().type_id() == TypeId::of::<PathBuf>();
            let mut texts = Vec::new();
            for text in raw {
                let text = text.to_str().ok_or_else(|| anyhow!("--{name}: it is no UTF-8"))?;
                if text.chars().any(char::is_control) {
                    bail!("--{name}: it has line breaks or other control characters, which no option needs");
                }
                texts.push(match path && text != "none" {
                    true => config::absolute(text.into())?.to_string_lossy().into_owned(),
                    false => text.to_owned(),
                });
            }
            let list = matches!(arg.get_action(), ArgAction::Append);
            match (name, arg.get_env().filter(|_| arg.is_hide_env_values_set())) {
                ("config", _) => given.config = texts.pop().map(PathBuf::from),
                (_, Some(variable)) => {
                    let text = texts.pop().unwrap_or_default();
                    given.secrets.insert(variable.to_string_lossy().into_owned(), text);
                }
                _ => {
                    let value = written(role, name, texts, list)?;
                    given.settings.insert(name.to_owned(), value);
                }
            }
        }
        Ok(given)
    }
}

/// In the form in which the file's reader takes it: a text, unless it wants something else.
fn written(role: Role, name: &str, texts: Vec<String>, list: bool) -> anyhow::Result<Value> {
    let forms = if list {
        vec![Value::from(texts)]
    } else {
        let text = texts.into_iter().next_back().unwrap_or_default();
        let other = serde_json::from_str::<Value>(&text)
            .ok()
            .filter(|v| v.is_number() || v.is_boolean());
        [Some(Value::from(text)), other].into_iter().flatten().collect()
    };
    let takes = |form: &Value| role.reads(&Map::from_iter([(name.to_owned(), form.clone())]));
    let mut why = None;
    for form in forms {
        match takes(&form) {
            Ok(()) => return Ok(form),
            Err(error) => why = Some(error),
        }
    }
    bail!(
        "--{name} can't stand in a configuration file{}",
        why.map(|e| format!(": {e}")).unwrap_or_default()
    )
}

/// The same file without some of its variables.
pub fn without(before: &str, which: impl Fn(&str) -> bool) -> String {
    let kept = before
        .lines()
        .filter(|line| !line.split_once('=').is_some_and(|(name, _)| which(name)));
    kept.map(|line| format!("{line}\n")).collect()
}

/// The file of secrets with these in place of older ones: a form that systemd and shells read alike.
pub fn secrets_file(before: &str, secrets: &BTreeMap<String, String>) -> String {
    let mut text = without(before, |name| secrets.contains_key(name));
    for (name, secret) in secrets {
        let mut quoted = String::new();
        for c in secret.chars() {
            if matches!(c, '"' | '\\' | '$' | '`') {
                quoted.push('\\');
            }
            quoted.push(c);
        }
        text.push_str(&format!("{name}=\"{quoted}\"\n"));
    }
    text
}
