//! The flags of upstream's kubelet that say a field of `KubeletConfiguration`, as the table of
//! [`keelson_kubelet::configuration`] has them.

use clap::builder::{Arg, ArgAction, TypedValueParser, ValueParser};
use clap::{ArgMatches, Args, Command, FromArgMatches};
use keelson_kubelet::configuration::{self, Document, Flag};

/// What was said, in the table's order.
#[derive(Clone, Debug, Default)]
pub struct Flags(Vec<(&'static str, String)>);

impl Flags {
    /// Adds them to what files say.
    pub fn add_to(&self, document: &mut Document) -> anyhow::Result<()> {
        for (name, text) in &self.0 {
            document.flag(name, text).map_err(anyhow::Error::msg)?;
        }
        Ok(())
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Flags, clap::Error> {
        let said = configuration::flags().flat_map(|flag| {
            let texts = matches.get_many::<String>(flag.name).into_iter().flatten();
            texts.map(move |text| (flag.name, text.clone())).collect::<Vec<_>>()
        });
        Ok(Flags(said.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.append(&mut Flags::from_arg_matches(matches)?.0);
        Ok(())
    }
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        command.args(configuration::flags().map(arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// One that can only say the default is taken, and not shown.
fn arg(flag: Flag) -> Arg {
    let default = flag.default.map(|d| format!(" [default: {d}]")).unwrap_or_default();
    let arg = Arg::new(flag.name)
        .long(flag.name)
        .help(format!("{} of the KubeletConfiguration{default}", flag.field))
        .action(ArgAction::Append)
        .value_parser(judged(flag.name))
        .hide(!flag.is_free);
    match flag.value {
        "" => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        value => arg.value_name(value).allow_hyphen_values(true),
    }
}

/// What a flag says of itself alone is judged as it is read.
fn judged(name: &'static str) -> ValueParser {
    let parser = clap::builder::StringValueParser::new();
    ValueParser::new(parser.try_map(move |text| configuration::judge(name, &text).map(|()| text)))
}
