//! Sets of completion indexes as a job's status writes them: `1,3-5,7`.

use std::collections::BTreeSet;
use std::fmt;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes(BTreeSet<i32>);

impl Indexes {
    /// Reads the text form; indexes of `completions` and above don't count, nor do parts that can't be read.
    pub fn parse(text: &str, completions: i32) -> Self {
        let mut set = BTreeSet::new();
        for part in text.split(',').filter(|p| !p.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
                set.extend(first.max(0)..=last.min(completions - 1));
            }
        }
        Indexes(set)
    }

    pub fn insert(&mut self, index: i32) {
        self.0.insert(index);
    }
    pub fn has(&self, index: i32) -> bool {
        self.0.contains(&index)
    }
    pub fn len(&self) -> i32 {
        self.0.len() as i32
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub fn common(&self, other: &Indexes) -> i32 {
        self.0.intersection(&other.0).count() as i32
    }
}

impl FromIterator<i32> for Indexes {
    fn from_iter<I: IntoIterator<Item = i32>>(items: I) -> Self {
        Indexes(items.into_iter().collect())
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut runs: Vec<(i32, i32)> = Vec::new();
        for &index in &self.0 {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == index => *last = index,
                _ => runs.push((index, index)),
            }
        }
        let parts: Vec<String> = runs
            .into_iter()
            .map(|(first, last)| match last - first {
                0 => first.to_string(),
                1 => format!("{first},{last}"),
                _ => format!("{first}-{last}"),
            })
            .collect();
        f.write_str(&parts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form() {
        for text in ["", "0", "0,1", "0-2", "1,3-5,7,8"] {
            assert_eq!(Indexes::parse(text, 100).to_string(), text);
        }
        assert_eq!(Indexes::parse("0-9,x,12", 5).to_string(), "0-4");
        assert_eq!(Indexes::parse("0-4", 10).common(&Indexes::parse("3-8", 10)), 2);
    }
}
