//! `keelson blame`: who wrote each field.

use super::{Meant, table};
use crate::client::block_on;
use clap::Args;
use keelson_history::blame;
use std::process::ExitCode;

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    meant: Meant,
    /// Only this field, and what is below it: spec.replicas, metadata.labels
    #[arg(value_name = "FIELD")]
    field: Option<String>,
}

pub const AFTER_HELP: &str = "\
MANAGER and SINCE are the object's own (metadata.managedFields): who owns the field, and when he wrote last.
CHANGED, BY and CLIENT are of the last change of the field that history knows; a dash: it is older.";

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    block_on(async {
        let (asking, named) = options.meant.asked("keelson-blame").await?;
        let history = asking.history(&named, None).await?;
        let wanted = options.field.as_deref().map(|field| field.trim_start_matches('.'));
        let is_wanted = |field: &str| match wanted {
            None => true,
            Some(wanted) => field
                .strip_prefix(wanted)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '['])),
        };
        let mut rows = Vec::new();
        for blamed in blame(&history).into_iter().filter(|blamed| is_wanted(&blamed.field)) {
            let dash = || "-".to_string();
            let (managers, since): (Vec<_>, Vec<_>) = blamed.managers.into_iter().unzip();
            let or_dash = |list: Vec<String>| match list.is_empty() {
                true => dash(),
                false => list.join(", "),
            };
            let (changed, by, client) = match blamed.last {
                Some(last) => (format!("{} ({})", last.time, last.revision), last.user, last.client),
                None => (dash(), dash(), dash()),
            };
            rows.push(vec![
                blamed.field,
                or_dash(managers),
                or_dash(since),
                changed,
                by,
                client,
            ]);
        }
        anyhow::ensure!(!rows.is_empty(), "{named} has no such field");
        table::print(&["FIELD", "MANAGER", "SINCE", "CHANGED", "BY", "CLIENT"], &rows);
        Ok(ExitCode::SUCCESS)
    })
}
