//! The JSON of upstream's components: `ts` in milliseconds, `caller`, `logger`, `msg`, then what belongs to it; `v` where it is no
//! error, `err` for what failed. Of warnings upstream has none: they are lines of `v` 0.

use serde_json::{Value, json};
use std::fmt::{self, Debug};
use std::time::{SystemTime, UNIX_EPOCH};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

pub struct Klog;

impl<S, N> FormatEvent<S, N> for Klog
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let spans: Vec<String> = (context.event_scope().into_iter())
            .flat_map(|scope| scope.from_root())
            .map(|span| {
                let extensions = span.extensions();
                let said = extensions.get::<FormattedFields<N>>().map_or("", |f| f.fields.as_str());
                format!("{}{{{said}}}", span.name())
            })
            .collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        writer.write_str(&line(now.as_nanos(), event.metadata(), fields, &spans))
    }
}

/// What an event says, in its order.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            // Upstream's word for it.
            ("error", value) => self.others.push(("err", value)),
            (name, value) => self.others.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, format!("{value:?}").into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

/// The verbosity by which upstream's components would say it.
fn verbosity(level: Level) -> Option<u8> {
    match level {
        Level::ERROR => None,
        Level::WARN | Level::INFO => Some(0),
        Level::DEBUG => Some(4),
        Level::TRACE => Some(6),
    }
}

fn line(nanos: u128, of: &Metadata<'_>, fields: Fields, spans: &[String]) -> String {
    let mut all: Vec<(&str, Value)> = vec![("ts", json!(nanos as f64 / 1e6))];
    if let (Some(file), Some(number)) = (of.file(), of.line()) {
        // The file and the directory that it is in.
        let from = file.rmatch_indices('/').nth(1).map_or(0, |(at, _)| at + 1);
        all.push(("caller", format!("{}:{number}", &file[from..]).into()));
    }
    all.push(("logger", of.target().into()));
    all.push(("msg", fields.message.into()));
    all.extend(verbosity(*of.level()).map(|v| ("v", v.into())));
    if !spans.is_empty() {
        all.push(("within", json!(spans)));
    }
    let known = all.len();
    for (name, value) in fields.others {
        // What is said twice would be read once: the form's own word goes first.
        if !all[..known].iter().any(|(own, _)| *own == name) {
            all.push((name, value));
        }
    }
    let pairs: Vec<String> = all
        .into_iter()
        .map(|(name, value)| format!("{}:{value}", json!(name)))
        .collect();
    format!("{{{}}}\n", pairs.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::io::Write;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_have_upstreams_keys() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::DEBUG)
            .event_format(Klog)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "a::b", count = 3, name = "x\"y", "it \u{1b}[2J runs");
            tracing::error!(target: "a", error = %std::io::Error::other("no"), "it failed");
            tracing::debug!(target: "a", ok = true, "fine");
        });
        let text = String::from_utf8(lines.0.lock().clone()).unwrap();
        let got: Vec<String> = text
            .lines()
            .map(|l| {
                let value: Value = serde_json::from_str(l).unwrap();
                assert!(value["ts"].as_f64().unwrap() > 1.6e12, "{l}");
                let caller = value["caller"].as_str().unwrap();
                assert!(caller.starts_with("logging/klog.rs:"), "{l}");
                l.split_once(",\"logger\"").unwrap().1.to_owned()
            })
            .collect();
        assert_eq!(
            got,
            [
                ":\"a::b\",\"msg\":\"it \\u001b[2J runs\",\"v\":0,\"count\":3,\"name\":\"x\\\"y\"}",
                ":\"a\",\"msg\":\"it failed\",\"err\":\"no\"}",
                ":\"a\",\"msg\":\"fine\",\"v\":4,\"ok\":true}",
            ]
        );
    }
}
