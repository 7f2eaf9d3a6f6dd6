//! Tables of a history: two sides beside each other, and verdicts on two programs.

use crate::history::Record;
use crate::measure::{ALONE, BESIDE, Figures};
use crate::statistics::{interval, median, verdict};
use std::fmt::Write;

/// The records of one side, of its last program, by row.
struct Side<'a>(Vec<&'a Record>);

impl<'a> Side<'a> {
    fn of(records: &'a [Record], side: &str) -> Side<'a> {
        let of_side = || records.iter().filter(|r| r.side == side);
        let last = of_side().next_back();
        let same = of_side().filter(|r| last.is_some_and(|last| r.program == last.program && r.share == last.share));
        Side(same.collect())
    }

    fn row(&self, key: &Key) -> Vec<&'a Record> {
        let of_row = self.0.iter().filter(|r| Key::of(r) == *key);
        of_row.copied().collect()
    }
}

#[derive(PartialEq)]
struct Key<'a>(&'a str, usize, bool);

impl<'a> Key<'a> {
    fn of(record: &'a Record) -> Key<'a> {
        Key(&record.row, record.clients, record.http1)
    }
}

fn keys<'a>(records: &'a [Record]) -> Vec<Key<'a>> {
    let mut keys = Vec::new();
    for record in records {
        let key = Key::of(record);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

fn middle(records: &[&Record], figure: fn(&Figures) -> f64) -> Option<f64> {
    median(&records.iter().map(|r| figure(&r.figures)).collect::<Vec<_>>())
}

/// Of rounds that both sides have: the figure of the second by the first's.
fn ratios(first: &[&Record], second: &[&Record], figure: fn(&Figures) -> f64) -> Vec<f64> {
    let pairs = first.iter().filter_map(|a| {
        let b = second.iter().find(|b| b.round == a.round)?;
        Some(figure(&b.figures) / figure(&a.figures).max(1e-9))
    });
    pairs.collect()
}

/// Three digits that count, never fewer than before the point.
fn number(value: f64) -> String {
    let whole = match value {
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v if v >= 0.9995 => format!("{v:.2}"),
        v => return format!("{v:.3}"),
    };
    // Thousands are easier to read apart.
    let digits = whole.len();
    if !whole.contains('.') && digits > 3 {
        let (head, tail) = whole.split_at(digits - 3);
        return format!("{},{tail}", thousands(head));
    }
    whole
}

fn thousands(head: &str) -> String {
    match head.len() {
        ..4 => head.to_owned(),
        n => format!("{},{}", thousands(&head[..n - 3]), &head[n - 3..]),
    }
}

/// A table in Markdown: what each row costs, medians of rounds.
pub fn table(records: &[Record], ours: &str, other: &str) -> String {
    let (a, b) = (Side::of(records, ours), Side::of(records, other));
    let mut text = format!(
        "| request | clients | server CPU, µs: {ours} | {other} | ratio | requests/s: {ours} | {other} | p50; p99, ms: {ours} | {other} |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|\n"
    );
    for key in keys(records) {
        let (ours, others) = (a.row(&key), b.row(&key));
        if ours.is_empty() && others.is_empty() {
            continue;
        }
        let told = |of: &[&Record], figure| middle(of, figure).filter(|f| *f > 0.0).map_or("–".into(), number);
        let times = |of: &[&Record]| {
            let p50 = middle(of, |f| f.p50_us / 1000.0).zip(middle(of, |f| f.p99_us / 1000.0));
            p50.map_or("–".into(), |(p50, p99)| format!("{}; {}", number(p50), number(p99)))
        };
        let ratio = median(&ratios(&ours, &others, |f| f.server_us)).filter(|r| *r > 0.0);
        let name = if key.2 {
            format!("{}, HTTP/1.1", key.0)
        } else {
            key.0.to_owned()
        };
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {} | {} | {} | {} | {} | {} |",
            key.1,
            told(&ours, |f| f.server_us),
            told(&others, |f| f.server_us),
            ratio.map_or("–".into(), |r| format!("{}×", number(r))),
            told(&ours, |f| f.per_second),
            told(&others, |f| f.per_second),
            times(&ours),
            times(&others),
        );
    }
    for (name, side) in [(ours, &a), (other, &b)] {
        text.push_str(&greedy(name, side));
    }
    text
}

/// How much longer a polite client waits beside a greedy one.
fn greedy(name: &str, side: &Side) -> String {
    let [alone, beside] = [ALONE, BESIDE].map(|row| {
        let of_row = side.0.iter().filter(|r| r.row == row);
        of_row.copied().collect::<Vec<_>>()
    });
    let ratio = |figure| median(&ratios(&alone, &beside, figure));
    match ratio(|f| f.p50_us).zip(ratio(|f| f.p99_us)) {
        Some((p50, p99)) => format!(
            "\nBeside a greedy client a polite one of {name} waits {}× as long in the middle, {}× as long at the 99th of a hundred.\n",
            number(p50),
            number(p99)
        ),
        None => String::new(),
    }
}

/// A table of verdicts: what each row costs now by what it cost before, round by round.
pub fn verdicts(records: &[Record], before: &str, after: &str) -> String {
    let (a, b) = (Side::of(records, before), Side::of(records, after));
    let mut text = format!(
        "| request | clients | rounds | server CPU, µs: {before} | {after} | ratio (spread) | verdict | requests/s, ratio (spread) |\n\
         |---|---:|---:|---:|---:|---:|---|---:|\n"
    );
    for key in keys(records) {
        let (before, after) = (a.row(&key), b.row(&key));
        let mut costs = ratios(&before, &after, |f| f.server_us);
        costs.retain(|ratio| *ratio > 0.0);
        let Some(cost) = spread(&costs) else { continue };
        let told = |of: &[&Record]| middle(of, |f| f.server_us).map_or("–".into(), number);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {cost} | {} | {} |",
            key.0,
            key.1,
            costs.len(),
            told(&before),
            told(&after),
            verdict(&costs).text(),
            spread(&ratios(&before, &after, |f| f.per_second)).unwrap_or_default(),
        );
    }
    text
}

fn spread(ratios: &[f64]) -> Option<String> {
    let (middle, (low, high)) = median(ratios).zip(interval(ratios))?;
    Some(format!("{middle:.2} ({low:.2}–{high:.2})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Machine;

    fn record(side: &str, program: &str, round: usize, row: &str, server_us: f64, p99_us: f64) -> Record {
        Record {
            time: "2026-01-01T00:00:00Z".into(),
            machine: Machine::now(),
            side: side.into(),
            revision: "r".into(),
            program: program.into(),
            round,
            row: row.into(),
            clients: 16,
            http1: false,
            share: 1.0,
            figures: Figures {
                requests: 10,
                seconds: 1.0,
                per_second: 1e6 / server_us,
                p50_us: 500.0,
                p99_us,
                server_us,
                client_us: 1.0,
                bytes: 1,
            },
        }
    }

    #[test]
    fn a_row_has_both_sides_medians_and_the_median_of_the_rounds_ratios() {
        let mut records = Vec::new();
        for (round, ours, theirs) in [(1, 100.0, 1000.0), (2, 200.0, 1200.0), (3, 150.0, 1800.0)] {
            records.push(record("ours", "p", round, "get", ours, 1500.0));
            records.push(record("upstream", "q", round, "get", theirs, 2_500_000.0));
        }
        // Of a program that isn't measured any more.
        records.insert(0, record("ours", "old", 1, "get", 1.0, 1.0));
        let found = table(&records, "ours", "upstream");
        let last = found.lines().last().unwrap();
        let wanted = "| get | 16 | 150 | 1,200 | 10.0× | 6,667 | 833 | 0.500; 1.50 | 0.500; 2,500 |";
        assert_eq!(last, wanted);
    }

    #[test]
    fn the_greedy_clients_figure_is_the_ratio_of_both_times() {
        let records = [
            record("a", "p", 1, ALONE, 1.0, 1000.0),
            record("a", "p", 1, BESIDE, 1.0, 1800.0),
        ];
        let found = table(&records, "a", "b");
        assert!(
            found.contains("of a waits 1.00× as long in the middle, 1.80× as long"),
            "{found}"
        );
        assert!(!found.contains("of b"), "{found}");
    }

    #[test]
    fn verdicts_are_on_rounds_that_both_have() {
        let mut records: Vec<Record> = (1..=7).map(|r| record("new", "q", r, "get", 130.0, 1.0)).collect();
        records.extend((1..=6).map(|r| record("old", "p", r, "get", 100.0, 1.0)));
        let found = verdicts(&records, "old", "new");
        let wanted = "| get | 16 | 6 | 100 | 130 | 1.30 (1.30–1.30) | slower | 0.77 (0.77–0.77) |";
        assert_eq!(found.lines().last().unwrap(), wanted);
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        let told = [0.01234, 1.234, 12.34, 123.4, 1234.5, 1_234_567.0].map(number);
        assert_eq!(told, ["0.012", "1.23", "12.3", "123", "1,234", "1,234,567"]);
    }
}
