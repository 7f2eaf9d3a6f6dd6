//! Sets of CPUs, and of nodes of memory, in the kernel's notation: `0-3,8`.

use std::collections::BTreeSet;
use std::fmt;

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Set(BTreeSet<u32>);

/// No machine has more.
const MOST: u32 = 1 << 16;

impl Set {
    pub fn new() -> Set {
        Set::default()
    }

    /// Reads a list; `None`: it is none. The empty text is the empty set.
    pub fn parse(text: &str) -> Option<Set> {
        let mut all = BTreeSet::new();
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            if last < first || last > MOST {
                return None;
            }
            all.extend(first..=last);
        }
        Some(Set(all))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, id: u32) -> bool {
        self.0.contains(&id)
    }

    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    pub fn insert(&mut self, id: u32) {
        self.0.insert(id);
    }

    pub fn union(&self, other: &Set) -> Set {
        self.0.union(&other.0).copied().collect()
    }

    pub fn minus(&self, other: &Set) -> Set {
        self.0.difference(&other.0).copied().collect()
    }

    pub fn both(&self, other: &Set) -> Set {
        self.0.intersection(&other.0).copied().collect()
    }

    pub fn is_within(&self, other: &Set) -> bool {
        self.0.is_subset(&other.0)
    }
}

impl FromIterator<u32> for Set {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Set {
        Set(ids.into_iter().collect())
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ids = self.0.iter().copied().peekable();
        let mut between = "";
        while let Some(first) = ids.next() {
            let mut last = first;
            while let Some(next) = ids.next_if_eq(&(last + 1)) {
                last = next;
            }
            match first == last {
                true => write!(f, "{between}{first}")?,
                false => write!(f, "{between}{first}-{last}")?,
            }
            between = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Set;

    #[test]
    fn lists_are_read_and_written() {
        for (text, shown) in [
            ("", ""),
            ("3", "3"),
            ("0-2,4", "0-2,4"),
            ("4,1,0,2", "0-2,4"),
            ("0-1", "0-1"),
            (" 5 , 7-8", "5,7-8"),
        ] {
            assert_eq!(Set::parse(text).unwrap().to_string(), shown, "{text}");
        }
        for text in ["a", "3-1", "1,", "-", "0-99999999", "1--2"] {
            assert_eq!(Set::parse(text), None, "{text}");
        }
    }
}
