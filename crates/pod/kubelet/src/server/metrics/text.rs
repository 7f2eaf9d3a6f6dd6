//! Prometheus' text format, for what is read when somebody asks.

use std::fmt::Write;

#[derive(Default)]
pub struct Text(String);

pub type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    /// Begins a family; all of its samples follow.
    pub fn family(&mut self, name: &str, help: &str, counter: bool) {
        let kind = if counter { "counter" } else { "gauge" };
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A sample; the time is in milliseconds.
    pub fn sample(&mut self, name: &str, labels: Labels<'_>, value: f64, at: Option<i64>) {
        self.0.push_str(name);
        for (i, (key, value)) in labels.iter().enumerate() {
            self.0.push(if i == 0 { '{' } else { ',' });
            let _ = write!(self.0, "{key}=\"");
            self.escaped(value);
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = write!(self.0, " {value}");
        if let Some(at) = at {
            let _ = write!(self.0, " {at}");
        }
        self.0.push('\n');
    }

    fn escaped(&mut self, value: &str) {
        for c in value.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
    }

    /// A family of one sample.
    pub fn gauge(&mut self, name: &str, help: &str, labels: Labels<'_>, value: f64) {
        self.family(name, help, false);
        self.sample(name, labels, value, None);
    }

    pub fn append(&mut self, other: &str) {
        self.0.push_str(other);
    }

    pub fn into_string(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_written_as_prometheus_reads_them() {
        let mut t = Text::default();
        t.family("a_total", "Help.", true);
        t.sample("a_total", &[("x", "q\"\\\n"), ("y", "")], 1.5, Some(1_700_000_000_123));
        t.gauge("b", "Help.", &[], 3e9);
        assert_eq!(
            t.into_string(),
            "# HELP a_total Help.\n# TYPE a_total counter\na_total{x=\"q\\\"\\\\\\n\",y=\"\"} 1.5 1700000000123\n\
             # HELP b Help.\n# TYPE b gauge\nb 3000000000\n"
        );
    }
}
