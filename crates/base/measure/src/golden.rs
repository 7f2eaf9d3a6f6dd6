//! Pages of metrics compared with lists of what upstream has, for tests.
//!
//! A list has a line a family: `name | kind | labels | bounds`, labels sorted, bounds of buckets in order without the last.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
struct Family {
    kind: String,
    labels: BTreeSet<String>,
    bounds: Vec<f64>,
    samples: usize,
}

/// Families and series that a page tells more than once.
pub fn repeated(page: &str) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let of = |line: &str| match line.strip_prefix("# ") {
        Some(head) => head.split(' ').take(2).collect::<Vec<_>>().join(" "),
        None => series(line).0.to_owned(),
    };
    page.lines().map(of).filter(|told| !seen.insert(told.clone())).collect()
}

/// What is wrong with a page: what is told twice, what upstream's list has otherwise, what it hasn't at all, and what of it
/// isn't there. Names that begin as one of `own` are nobody else's business.
pub fn differences(page: &str, list: &str, own: &[&str]) -> Vec<String> {
    let mut wrong: Vec<String> = repeated(page).iter().map(|t| format!("{t} is told twice")).collect();
    let mut told = families(page);
    told.retain(|name, _| !own.iter().any(|prefix| name.starts_with(prefix)));
    for line in list.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let mut columns = line.split('|').map(str::trim);
        let mut next = || columns.next().unwrap_or_default();
        let (name, kind, labels, bounds) = (next(), next(), next(), next());
        let Some(family) = told.remove(name) else {
            wrong.push(format!("{name} isn't there"));
            continue;
        };
        if family.samples == 0 {
            wrong.push(format!("{name} has no sample"));
            continue;
        }
        let bounds: Vec<f64> = bounds.split(' ').filter_map(|b| b.parse().ok()).collect();
        let has: Vec<&str> = family.labels.iter().map(String::as_str).collect();
        for (what, ours, upstreams) in [
            ("kind", family.kind.clone(), kind.to_owned()),
            ("labels", has.join(" "), labels.to_owned()),
            ("bounds", format!("{:?}", family.bounds), format!("{bounds:?}")),
        ] {
            if ours != upstreams {
                wrong.push(format!("{name} has the {what} {ours}, upstream {upstreams}"));
            }
        }
    }
    wrong.extend(told.keys().map(|name| format!("upstream has no {name}")));
    wrong
}

fn families(page: &str) -> BTreeMap<String, Family> {
    let mut all: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in page.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
            current = name.to_owned();
            all.entry(current.clone()).or_default().kind = kind.to_owned();
            continue;
        }
        let Some(family) = all.get_mut(&current).filter(|_| !line.starts_with('#')) else {
            continue;
        };
        family.samples += 1;
        for (name, value) in series(line).1 {
            match (name, value.parse::<f64>()) {
                ("le", Ok(bound)) if family.kind == "histogram" => {
                    // One series' are all series'.
                    if bound.is_finite() && family.bounds.last().is_none_or(|last| *last < bound) {
                        family.bounds.push(bound);
                    }
                }
                _ => drop(family.labels.insert(name.to_owned())),
            }
        }
    }
    all
}

/// A sample's name with its labels, and these. Values in tests have no quotation marks in them.
fn series(line: &str) -> (&str, Vec<(&str, &str)>) {
    let Some((name, rest)) = line.split_once('{') else {
        return (line.split(' ').next().unwrap_or_default(), Vec::new());
    };
    let Some((labels, _)) = rest.rsplit_once('}') else {
        return (line, Vec::new());
    };
    let pairs = labels.split("\",").filter_map(|pair| {
        let (name, value) = pair.split_once("=\"")?;
        Some((name, value.trim_end_matches('"')))
    });
    (&line[..name.len() + labels.len() + 2], pairs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Measures;

    #[test]
    fn what_differs_is_named() {
        let m = Measures::default();
        let took = m.histograms("took_seconds", "Time.", &[0.5, 1.0], &["verb"]);
        took.with_label_values(&["GET"]).observe(0.7);
        m.counter("own_total", "Ours.").inc();
        let page = m.page();
        assert!(differences(&page, "took_seconds | histogram | verb | 0.5 1", &["own"]).is_empty());
        let wrong = differences(&page, "took_seconds | counter | host verb | 0.5\nmore | gauge", &[]);
        assert_eq!(
            wrong,
            [
                "took_seconds has the kind histogram, upstream counter",
                "took_seconds has the labels verb, upstream host verb",
                "took_seconds has the bounds [0.5, 1.0], upstream [0.5]",
                "more isn't there",
                "upstream has no own_total"
            ]
        );
        assert_eq!(
            repeated("# TYPE a gauge\na{x=\"1\"} 1\na{x=\"1\"} 2\n# TYPE a gauge\n"),
            ["a{x=\"1\"}", "TYPE a"]
        );
    }
}
