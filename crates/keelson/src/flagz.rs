//! What this process was told: each option of its command by name, with the value that is in force before anything is decided by it:
//! from the command line, the environment, a file of options, or the option's own default. Values that are secret aren't told.

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use keelson_zpages::{Flags, Pages};
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, LazyLock};

/// By upstream's name for a flag whose value is nobody's business.
const SECRET: &str = "CLASSIFIED";

/// The pages of a component of this process that listens on these paths.
pub fn pages<'a>(component: &'static str, paths: impl IntoIterator<Item = &'a str>) -> Pages {
    Pages::new(
        component,
        crate::config::KUBERNETES_VERSION,
        paths,
        Some(of_this_process()),
    )
}

/// Read once: all components of a process were told the same.
pub fn of_this_process() -> Arc<Flags> {
    static TOLD: LazyLock<Arc<Flags>> =
        LazyLock::new(|| Arc::new(of(crate::command(), crate::words_of(std::env::args_os().collect()))));
    TOLD.clone()
}

/// Of the innermost command that the words mean; none where they mean nothing.
fn of(mut command: Command, words: Vec<OsString>) -> Flags {
    command.build();
    let Ok(matches) = command.clone().try_get_matches_from(words) else {
        return Flags::default();
    };
    let (mut command, mut matches) = (&command, &matches);
    while let Some((name, inner)) = matches.subcommand() {
        let Some(found) = command.find_subcommand(name) else {
            break;
        };
        (command, matches) = (found, inner);
    }
    let file = options_file(command, matches);
    let told = |arg: &Arg| Some((arg.get_long()?.to_string(), value(arg, matches, &file)));
    let is_ours = |arg: &&Arg| !matches!(arg.get_id().as_str(), "help" | "version");
    command.get_arguments().filter(is_ours).filter_map(told).collect()
}

/// What the file says that holds options of a command, where it has such a file (a component's `--config` is of another kind).
fn options_file(command: &Command, matches: &ArgMatches) -> Map<String, Value> {
    let has_file = matches!(command.get_name(), "server" | "agent");
    let raw = has_file.then(|| matches.get_raw("config")).flatten();
    let named = raw.and_then(|mut given| given.next());
    // It was read at the start, which fails if it can't be.
    let read = named.and_then(|file| crate::config::read_file(Some(Path::new(file))).ok().flatten());
    read.unwrap_or_default()
}

fn value(arg: &Arg, matches: &ArgMatches, file: &Map<String, Value>) -> String {
    if arg.is_hide_env_values_set() {
        return SECRET.into();
    }
    let many = arg.get_value_delimiter().is_some() || matches!(arg.get_action(), clap::ArgAction::Append);
    let given = matches!(
        matches.value_source(arg.get_id().as_str()),
        Some(ValueSource::CommandLine | ValueSource::EnvVariable)
    );
    let in_file = arg.get_long().and_then(|name| file.get(name)).filter(|_| !given);
    let values: Vec<String> = match in_file {
        Some(Value::Array(all)) => all.iter().map(plain).collect(),
        Some(one) => vec![plain(one)],
        None => matches
            .get_raw(arg.get_id().as_str())
            .into_iter()
            .flatten()
            .map(|value| without_password(&value.to_string_lossy()))
            .collect(),
    };
    match many {
        true => format!("[{}]", values.join(",")),
        false => values.join(","),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => without_password(text),
        other => other.to_string(),
    }
}

/// An address, or several, without what somebody signs in with: all up to the last `@`, for passwords have commas and slashes, too.
fn without_password(text: &str) -> String {
    let mut parts = text.split("://");
    let mut told = parts.next().unwrap_or_default().to_string();
    for part in parts {
        told += "://";
        match part.rfind('@') {
            Some(at) => {
                told += SECRET;
                told += &part[at..];
            }
            None => told += part,
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(line: &str) -> Flags {
        let words = ["keelson"].into_iter().chain(line.split_whitespace());
        of(crate::command(), words.map(OsString::from).collect())
    }

    #[test]
    fn flags_are_told_with_what_holds_and_secrets_arent() {
        let scheduler = flags("scheduler --kubeconfig k --leader-elect=false --secure-port 1");
        for (flag, told) in [
            ("kubeconfig", "k"),
            ("leader-elect", "false"),
            ("secure-port", "1"),
            ("bind-address", "0.0.0.0"),
            ("config", ""),
            ("authorization-always-allow-paths", "[/healthz,/readyz,/livez]"),
        ] {
            assert_eq!(scheduler.get(flag).map(String::as_str), Some(told), "{flag}");
        }
        assert!(!scheduler.contains_key("help") && !scheduler.contains_key("data-dir"));
        let file = std::env::temp_dir().join(format!("keelson-flagz-{}", std::process::id()));
        std::fs::write(
            &file,
            "node-name: of-the-file\napi-port: 7443\ntls-san: [a, b]\ntoken: secret\n",
        )
        .unwrap();
        let server = flags(&format!(
            "server --config {} --api-port 6444 --etcd-servers http://u:pw@10.0.0.1:2379,http://10.0.0.2:2379",
            file.display()
        ));
        std::fs::remove_file(&file).unwrap();
        let told = |flag: &str| server.get(flag).map(String::as_str);
        assert_eq!(told("node-name"), Some("of-the-file"));
        assert_eq!(told("api-port"), Some("6444"), "the command line wins");
        assert_eq!(told("tls-san"), Some("[a,b]"));
        assert_eq!(told("token"), Some("CLASSIFIED"));
        assert_eq!(
            told("etcd-servers"),
            Some("[http://CLASSIFIED@10.0.0.1:2379,http://10.0.0.2:2379]")
        );
        assert!(!format!("{server:?}").contains("secret") && !format!("{server:?}").contains("pw"));
    }

    #[test]
    fn no_address_tells_a_password() {
        for (text, told) in [
            ("http://h:1/a", "http://h:1/a"),
            ("plain@text", "plain@text"),
            ("http://u:p@h/a", "http://CLASSIFIED@h/a"),
            ("http://u:p/w@h", "http://CLASSIFIED@h"),
            ("http://u:p@a,http://v:q,r@b", "http://CLASSIFIED@a,http://CLASSIFIED@b"),
        ] {
            assert_eq!(without_password(text), told, "{text}");
        }
    }
}
