//! Structured logs on standard error.

mod klog;

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    #[default]
    Text,
    /// Of this program's own keys: level and module are told.
    Json,
    /// Of upstream's: what reads the logs of its components reads these.
    Klog,
}

impl Form {
    pub fn parse(name: &str) -> Option<Form> {
        match name {
            "text" => Some(Form::Text),
            "json" => Some(Form::Json),
            "klog" => Some(Form::Klog),
            _ => None,
        }
    }

    /// As upstream's `--logging-format` calls it.
    pub fn of_upstream(name: &str) -> Option<Form> {
        match name {
            "text" => Some(Form::Text),
            "json" => Some(Form::Klog),
            _ => None,
        }
    }
}

/// Starts logging. `filter` is a level or a list of `module=level`; a bad one is an error, not a silent default.
pub fn start(filter: &str, form: Form) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).map_err(|e| anyhow::anyhow!("--log {filter}: {e}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match form {
        Form::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        Form::Json => builder.json().flatten_event(true).init(),
        // What spans say goes into the line as it is.
        Form::Klog => builder.with_ansi(false).event_format(klog::Klog).init(),
    }
    Ok(())
}
