//! Flags of upstream's programs that aren't options here. A table each says what such a flag may say nevertheless, because it says
//! what is so, or what nobody can tell from outside; all else is refused by the flag's name, with the reason.
//!
//! A table (`upstream/*.txt`) has every flag of 1.37.2, as the program's `--help` lists them: those that are options here by name alone,
//! the others as `name | taken | why`, `name?` for those that need no value, `*` for any value. `docs/flags.md` is written from it.

use clap::builder::{Arg, ArgAction, StringValueParser, TypedValueParser, ValueParser};
use clap::{ArgMatches, Args, Command, FromArgMatches};
use std::fmt::Debug;
use std::marker::PhantomData;

/// One of upstream's programs.
pub trait Program: Clone + Debug + Send + Sync + 'static {
    const FLAGS: &'static str;
}

macro_rules! programs {
    ($($name:ident: $file:literal;)*) => {$(
        #[derive(Clone, Debug)]
        pub struct $name;
        impl Program for $name {
            const FLAGS: &'static str = include_str!(concat!("upstream/", $file, ".txt"));
        }
    )*};
}

programs! {
    Apiserver: "kube-apiserver";
    ControllerManager: "kube-controller-manager";
    Scheduler: "kube-scheduler";
    Proxy: "kube-proxy";
}

/// What a program's table says of flags that aren't options here; nothing follows from what they say.
#[derive(Clone, Debug)]
pub struct Others<P>(PhantomData<P>);

/// A line of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flag {
    name: &'static str,
    needs_no_value: bool,
    /// `None`: it is an option here.
    said: Option<Said>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    /// Separated by commas, an empty one first where that may be said; empty: nothing.
    taken: &'static str,
    why: &'static str,
}

fn flags(table: &'static str) -> impl Iterator<Item = Flag> {
    let lines = table.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let mut parts = line.splitn(3, '|').map(str::trim);
            let name = parts.next().unwrap_or_default();
            Flag {
                name: name.trim_end_matches('?'),
                needs_no_value: name.ends_with('?'),
                said: parts.next().zip(parts.next()).map(|(taken, why)| Said { taken, why }),
            }
        })
}

impl Said {
    fn judge(self, value: String) -> Result<String, String> {
        let named = !self.taken.is_empty() && self.taken.split(',').any(|taken| taken == value);
        let is_taken = self.taken == "*" || named;
        is_taken.then_some(value).ok_or_else(|| self.why.to_string())
    }
}

fn arg(flag: Flag, said: Said) -> Arg {
    let judged = StringValueParser::new().try_map(move |value| said.judge(value));
    let arg = Arg::new(flag.name)
        .long(flag.name)
        .hide(true)
        .action(ArgAction::Append)
        .value_parser(ValueParser::new(judged));
    match flag.needs_no_value {
        true => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        false => arg.allow_hyphen_values(true),
    }
}

impl<P: Program> Args for Others<P> {
    fn augment_args(command: Command) -> Command {
        command.args(flags(P::FLAGS).filter_map(|flag| Some(arg(flag, flag.said?))))
    }
    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<P: Program> FromArgMatches for Others<P> {
    fn from_arg_matches(_: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Others(PhantomData))
    }
    fn update_from_arg_matches(&mut self, _: &ArgMatches) -> Result<(), clap::Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    /// Each program, its command here, and its table. The kubelet's other flags are fields of its configuration.
    const PROGRAMS: [(&str, &str, &str); 4] = [
        ("kube-apiserver", "apiserver", Apiserver::FLAGS),
        (
            "kube-controller-manager",
            "controller-manager",
            ControllerManager::FLAGS,
        ),
        ("kube-scheduler", "scheduler", Scheduler::FLAGS),
        ("kube-proxy", "proxy", Proxy::FLAGS),
    ];

    fn command(name: &str) -> Command {
        let mut all = crate::command();
        all.build();
        all.find_subcommand(name).unwrap().clone()
    }

    fn option<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
        command.get_arguments().find(|arg| {
            let other = arg.get_all_aliases().unwrap_or_default();
            arg.get_long() == Some(name) || other.contains(&name)
        })
    }

    #[test]
    fn each_flag_of_upstreams_is_an_option_or_has_a_line_that_says_why_not() {
        for (program, name, table) in PROGRAMS {
            let command = command(name);
            let mut names: Vec<&str> = Vec::new();
            for flag in flags(table) {
                let option = option(&command, flag.name);
                let option = option.unwrap_or_else(|| panic!("{program}: --{} is no option", flag.name));
                if let Some(said) = flag.said {
                    assert!(
                        option.is_hide_set() && !said.why.is_empty(),
                        "{program}: --{}",
                        flag.name
                    );
                    let taken = Some(said.taken).filter(|taken| !taken.is_empty());
                    for taken in taken.into_iter().flat_map(|taken| taken.split(',')) {
                        assert!(said.judge(taken.into()).is_ok(), "{program}: --{}", flag.name);
                    }
                }
                names.push(flag.name);
            }
            let (count, mut sorted) = (names.len(), names.clone());
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(
                (sorted.len(), &sorted),
                (count, &names),
                "{program}: once each, in order"
            );
        }
    }

    #[test]
    fn what_is_so_can_be_said_and_all_else_is_refused_with_the_reason() {
        let said = Said {
            taken: "false,0",
            why: "there is none",
        };
        assert_eq!(said.judge("false".into()), Ok("false".into()));
        assert_eq!(said.judge("true".into()), Err("there is none".into()));
        assert_eq!(
            Said { taken: "", ..said }.judge(String::new()),
            Err("there is none".into())
        );
        assert_eq!(Said { taken: "*", ..said }.judge("9".into()), Ok("9".into()));
        let empty = Said {
            taken: ",external",
            ..said
        };
        assert_eq!(empty.judge(String::new()), Ok(String::new()));
        assert!(said.judge(String::new()).is_err());
        let command = Others::<Apiserver>::augment_args(Command::new("x"));
        let parse = |line: &str| {
            let words = std::iter::once("x").chain(line.split_whitespace());
            command.clone().try_get_matches_from(words).map_err(|e| e.to_string())
        };
        for line in [
            "--profiling=false --enable-garbage-collector",
            "--storage-backend etcd3",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err());
        }
        for (line, named) in [
            ("--profiling", "--profiling"),
            ("--storage-backend=etcd2", "--storage-backend"),
            ("--egress-selector-config-file f", "reached directly"),
        ] {
            let refused = parse(line).unwrap_err();
            assert!(refused.contains(named), "{line}: {refused}");
        }
    }

    /// The page's tables. `KEELSON_WRITE=1 cargo test` puts them there.
    #[test]
    fn the_page_says_of_each_flag_what_it_is_here() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/flags.md");
        let page = std::fs::read_to_string(file).unwrap();
        let (head, _) = page.split_once("\n## ").unwrap();
        let mut wanted = head.to_string();
        for (program, name, table) in PROGRAMS {
            let command = command(name);
            write!(wanted, "\n## {program}\n\n| flag | here | |\n|---|---|---|\n").unwrap();
            for flag in flags(table) {
                let (here, note) = match flag.said {
                    None => {
                        let help = option(&command, flag.name).and_then(Arg::get_help);
                        let help = help.map(ToString::to_string).unwrap_or_default();
                        (
                            "an option".to_string(),
                            help.split_whitespace().collect::<Vec<_>>().join(" "),
                        )
                    }
                    Some(Said { taken: "", why }) => ("refused".into(), why.into()),
                    Some(Said { taken: "*", why }) => ("taken, nothing follows".into(), why.into()),
                    Some(Said { taken, why }) => {
                        let values: Vec<String> = taken.split(',').map(|value| format!("`{value}`")).collect();
                        (format!("only {}", values.join(", ")), why.into())
                    }
                };
                writeln!(wanted, "| `--{}` | {here} | {} |", flag.name, note.replace('|', "\\|")).unwrap();
            }
        }
        if std::env::var_os("KEELSON_WRITE").is_some() {
            std::fs::write(file, &wanted).unwrap();
        }
        assert!(
            page == wanted,
            "docs/flags.md isn't what the tables say: KEELSON_WRITE=1 writes it"
        );
    }
}
