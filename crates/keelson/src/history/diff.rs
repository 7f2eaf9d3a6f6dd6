//! `keelson diff`: how an object differs between two moments.

use super::Meant;
use crate::client::block_on;
use anyhow::ensure;
use clap::Args;
use keelson_client::rest::JSON;
use keelson_history::unified;
use std::process::ExitCode;

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    meant: Meant,
    /// From when
    #[arg(long, value_name = "MOMENT")]
    at: String,
    /// To when [default: now]
    #[arg(long, value_name = "MOMENT")]
    to: Option<String>,
}

pub const AFTER_HELP: &str = concat!(
    moments!(),
    "
What differs of a secret's data is named, and not shown.

Exit status: 0 it is the same, 1 it differs, 2 it could not be looked at."
);

const DIFFERS: u8 = 1;
const ERROR: u8 = 2;

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    Ok(match block_on(differences(&options)) {
        Ok(differ) if differ.is_empty() => ExitCode::SUCCESS,
        Ok(differ) => {
            print!("{differ}");
            ExitCode::from(DIFFERS)
        }
        Err(error) => {
            eprintln!("keelson: {error:#}");
            ExitCode::from(ERROR)
        }
    })
}

async fn differences(options: &Options) -> anyhow::Result<String> {
    let (asking, named) = options.meant.asked("keelson-diff").await?;
    let before = asking.object(&named, Some(&options.at), JSON).await?;
    let after = asking.object(&named, options.to.as_deref(), JSON).await?;
    ensure!(
        before.is_some() || after.is_some(),
        "{named} was there at neither moment: `keelson history` tells when it was"
    );
    let title = |at: &str| format!("{}/{} ({at})", named.id.plural, named.name);
    let names = (title(&options.at), title(options.to.as_deref().unwrap_or("now")));
    Ok(unified(
        (&names.0, &names.1),
        before.as_ref(),
        after.as_ref(),
        named.is_secret(),
    ))
}
