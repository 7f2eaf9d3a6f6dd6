//! The text format, as upstream's library writes it.

use std::fmt::Write;

/// OpenMetrics names the family of a counter without `_total`, and the Prometheus text format with it.
pub fn as_prometheus(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut help: Option<(&str, &str)> = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, text)) = help.take() {
                let _ = writeln!(out, "# HELP {name}{suffix} {text}");
            }
            let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
        } else if line != "# EOF" {
            bounded(line, &mut out);
            out.push('\n');
        }
    }
    out
}

/// A sample, its bucket's bound written as Go writes numbers: `1` and `1e+06` in place of `1.0` and `1000000.0`. Rules select
/// buckets by this text.
fn bounded(line: &str, out: &mut String) {
    let parts = line.split_once("le=\"").and_then(|(before, rest)| {
        let (bound, after) = rest.split_once('"')?;
        Some((before, bound.parse::<f64>().ok()?, after))
    });
    match parts {
        Some((before, bound, after)) if bound.is_finite() => {
            let _ = write!(out, "{before}le=\"{}\"{after}", number(bound));
        }
        _ => out.push_str(line),
    }
}

/// The shortest form that reads back the same; from 10⁶ on, and below 10⁻⁴, with an exponent of two digits at least.
fn number(n: f64) -> String {
    if n != 0.0 && (n.abs() >= 1e6 || n.abs() < 1e-4) {
        let text = format!("{n:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent: i32 = exponent.parse().unwrap_or_default();
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    format!("{n}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_written_as_go_writes_them() {
        for (n, text) in [
            (0.005, "0.005"),
            (1.0, "1"),
            (1.25, "1.25"),
            (60.0, "60"),
            (100000.0, "100000"),
            (1e6, "1e+06"),
            (1.05e6, "1.05e+06"),
            (1e-5, "1e-05"),
        ] {
            assert_eq!(number(n), text);
        }
        let page = as_prometheus(
            "# HELP a b.\n# TYPE a histogram\na_bucket{x=\"y\",le=\"1.0\"} 3\na_bucket{x=\"y\",le=\"+Inf\"} 3\n# EOF\n",
        );
        assert_eq!(
            page,
            "# HELP a b.\n# TYPE a histogram\na_bucket{x=\"y\",le=\"1\"} 3\na_bucket{x=\"y\",le=\"+Inf\"} 3\n"
        );
    }
}
