//! Unified diffs as upstream's difflib makes them: by the longest block that both have, then by those before and after.

use std::collections::HashMap;
use std::ops::Range;

/// Lines around a change.
const CONTEXT: usize = 3;
/// In long texts, lines that are more frequent than one in so many don't begin a block.
const POPULAR: usize = 100;
const LONG: usize = 200;
/// So many lines are compared; what is still undecided then is shown as changed altogether.
const MOST_COMPARED: usize = 2_000_000;

/// The changed lines of two texts with their context; empty if nothing differs.
pub fn unified(old: &str, new: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let mut out = String::new();
    for group in groups(&changes(&blocks(&a, &b), a.len(), b.len())) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else {
            continue;
        };
        let before = CONTEXT.min(first.old.start).min(first.new.start);
        let after = CONTEXT.min(a.len() - last.old.end);
        let from = first.old.start - before..last.old.end + after;
        let to = first.new.start - before..last.new.end + after;
        out += &format!("@@ -{} +{} @@\n", shown(&from), shown(&to));
        let mut at = from.start;
        let mut lines = |sign: char, lines: &[&str]| {
            for line in lines {
                out.push(sign);
                out += line;
                out.push('\n');
            }
        };
        for change in group {
            lines(' ', &a[at..change.old.start]);
            lines('-', &a[change.old.clone()]);
            lines('+', &b[change.new.clone()]);
            at = change.old.end;
        }
        lines(' ', &a[at..from.end]);
    }
    out
}

/// The lines of a hunk, counted from 1.
fn shown(range: &Range<usize>) -> String {
    match range.len() {
        1 => format!("{}", range.start + 1),
        0 => format!("{},0", range.start),
        n => format!("{},{n}", range.start + 1),
    }
}

struct Change {
    old: Range<usize>,
    new: Range<usize>,
}

/// A run of lines that both have: where in each, and how many.
type Block = (usize, usize, usize);

/// What lies between the blocks.
fn changes(blocks: &[Block], old: usize, new: usize) -> Vec<Change> {
    let mut out = Vec::new();
    let (mut i, mut j) = (0, 0);
    for (a, b, n) in blocks.iter().copied().chain([(old, new, 0)]) {
        if i < a || j < b {
            out.push(Change { old: i..a, new: j..b });
        }
        (i, j) = (a + n, b + n);
    }
    out
}

/// Changes that stand in one hunk, for the lines between them are few.
fn groups(changes: &[Change]) -> impl Iterator<Item = &[Change]> {
    changes.chunk_by(|a, b| b.old.start - a.old.end <= 2 * CONTEXT)
}

/// All blocks, in order.
fn blocks(a: &[&str], b: &[&str]) -> Vec<Block> {
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (j, line) in b.iter().enumerate() {
        places.entry(line).or_default().push(j);
    }
    if b.len() >= LONG {
        places.retain(|_, at| at.len() <= b.len() / POPULAR + 1);
    }
    let mut out = Vec::new();
    let mut open = vec![(0..a.len(), 0..b.len())];
    let mut left = MOST_COMPARED;
    while let Some((old, new)) = open.pop() {
        let (i, j, n) = longest(a, b, &places, &old, &new, &mut left);
        if n > 0 {
            out.push((i, j, n));
            open.push((old.start..i, new.start..j));
            open.push((i + n..old.end, j + n..new.end));
        }
    }
    out.sort_unstable();
    out
}

/// The longest run that both ranges have, the first of the old ones among equals.
fn longest(
    a: &[&str],
    b: &[&str],
    places: &HashMap<&str, Vec<usize>>,
    old: &Range<usize>,
    new: &Range<usize>,
    left: &mut usize,
) -> Block {
    let (mut i, mut j, mut n) = (old.start, new.start, 0);
    if old.is_empty() || new.is_empty() {
        return (i, j, n);
    }
    // How long the run is that ends before a line of the new text.
    let mut runs: HashMap<usize, usize> = HashMap::new();
    for at in old.clone() {
        let mut next = HashMap::new();
        let there = places.get(a[at]).map(Vec::as_slice).unwrap_or_default();
        let first = there.partition_point(|there| *there < new.start);
        let there = &there[first..there.partition_point(|there| *there < new.end)];
        match left.checked_sub(1 + there.len()) {
            Some(rest) => *left = rest,
            None => break,
        }
        for there in there {
            let run = there.checked_sub(1).and_then(|before| runs.get(&before)).unwrap_or(&0) + 1;
            next.insert(*there, run);
            if run > n {
                (i, j, n) = (at + 1 - run, there + 1 - run, run);
            }
        }
        runs = next;
    }
    while i > old.start && j > new.start && a[i - 1] == b[j - 1] {
        (i, j, n) = (i - 1, j - 1, n + 1);
    }
    while i + n < old.end && j + n < new.end && a[i + n] == b[j + n] {
        n += 1;
    }
    (i, j, n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_changes_share_a_hunk_and_far_ones_do_not() {
        let text = |changed: &[usize]| -> String {
            let line = |i| format!("{i}{}\n", if changed.contains(&i) { "x" } else { "" });
            (0..30).map(line).collect()
        };
        assert_eq!(unified(&text(&[]), &text(&[])), "");
        let near = unified(&text(&[]), &text(&[5, 9]));
        assert!(
            near.starts_with("@@ -3,11 +3,11 @@\n 2\n 3\n 4\n-5\n+5x\n 6\n"),
            "{near}"
        );
        assert_eq!(near.matches("@@ -").count(), 1);
        let far = unified(&text(&[]), &text(&[0, 29]));
        assert_eq!(
            far,
            "@@ -1,4 +1,4 @@\n-0\n+0x\n 1\n 2\n 3\n@@ -27,4 +27,4 @@\n 26\n 27\n 28\n-29\n+29x\n"
        );
    }

    #[test]
    fn lines_come_and_go() {
        assert_eq!(unified("a\nb\n", "a\nc\nb\n"), "@@ -1,2 +1,3 @@\n a\n+c\n b\n");
        assert_eq!(unified("a\n", ""), "@@ -1 +0,0 @@\n-a\n");
    }

    #[test]
    fn long_texts_of_like_lines_are_compared_only_so_far() {
        let text = |step: usize| (0..40_000).map(|i| format!("{}\n", i * step % 401)).collect::<String>();
        let (old, new) = (text(7), text(11));
        let begun = std::time::Instant::now();
        let shown = unified(&old, &new);
        assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
        let lines = |sign| shown.lines().filter(|line| line.starts_with(sign)).count();
        assert_eq!(lines('-'), lines('+'));
    }
}
