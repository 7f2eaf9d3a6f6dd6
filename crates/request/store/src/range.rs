//! A range of keys, in byte order.

use bytes::Bytes;

/// From `start` on, up to but without `end`. An empty `end`: to the last key there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    pub start: Bytes,
    pub end: Bytes,
}

impl KeyRange {
    pub fn new(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        KeyRange {
            start: start.into(),
            end: end.into(),
        }
    }
    pub fn all() -> Self {
        KeyRange {
            start: Bytes::new(),
            end: Bytes::new(),
        }
    }
    /// This one key.
    pub fn key(key: impl Into<Bytes>) -> Self {
        let start = key.into();
        let mut end = Vec::with_capacity(start.len() + 1);
        end.extend_from_slice(&start);
        end.push(0);
        KeyRange { start, end: end.into() }
    }
    /// All keys that begin so.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = prefix_end(&start);
        KeyRange { start, end }
    }
    /// The same range, but only what comes after `key`: a list's next page.
    pub fn after(&self, key: &[u8]) -> Self {
        let mut start = Vec::with_capacity(key.len() + 1);
        start.extend_from_slice(key);
        start.push(0);
        KeyRange {
            start: start.into(),
            end: self.end.clone(),
        }
    }
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && (self.end.is_empty() || key < &self.end[..])
    }
    /// No key can be in it.
    pub fn is_empty(&self) -> bool {
        !self.end.is_empty() && self.start >= self.end
    }
}

/// The first key that is not under `prefix` any more; empty if there is none.
fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|&b| b != 0xff) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end.into()
        }
        None => Bytes::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_before_the_next_one() {
        assert_eq!(KeyRange::prefix("/a/").end, "/a0");
        assert_eq!(KeyRange::prefix(&b"a\xff\xff"[..]).end, "b");
        assert!(KeyRange::prefix(&b"\xff"[..]).end.is_empty());
        assert!(KeyRange::prefix("").contains(b"anything"));
        assert!(KeyRange::prefix("/a/").contains(b"/a/\xff\xff"));
        assert!(!KeyRange::prefix("/a/").contains(b"/a0"));
    }

    #[test]
    fn one_key_is_only_that_key() {
        let one = KeyRange::key("/a");
        assert!(one.contains(b"/a") && !one.contains(b"/a/") && !one.contains(b"/"));
        assert!(one.after(b"/a").is_empty());
    }
}
