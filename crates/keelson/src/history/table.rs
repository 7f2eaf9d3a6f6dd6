//! Columns, as wide as what stands in them.

use super::plain;

pub fn print(head: &[&str], rows: &[Vec<String>]) {
    lines(head, rows).iter().for_each(|line| println!("{line}"));
}

/// The head first.
pub fn lines(head: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let plain = |row: &Vec<String>| -> Vec<String> { row.iter().map(|cell| plain::line(cell)).collect() };
    let rows: Vec<Vec<String>> = rows.iter().map(plain).collect();
    let mut widths: Vec<usize> = head.iter().map(|title| title.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("   ").trim_end().to_string()
    };
    let rows = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    std::iter::once(line(head.to_vec())).chain(rows).collect()
}
