//! What couldn't be measured: an error of each scrape, and told of once.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;

/// More places than these are not remembered, so that some are told of again.
const MOST: usize = 1024;

/// Places that couldn't be measured when they were last looked at, and why.
#[derive(Default)]
pub struct Unmeasured(Mutex<BTreeMap<String, String>>);

impl Unmeasured {
    /// What was measured of a place: one that has gone meanwhile is left out, and anything else is noted as failed.
    pub fn measured<T>(&self, place: &str, found: io::Result<T>, failed: &mut bool) -> Option<T> {
        match found {
            Ok(found) => {
                self.0.lock().remove(place);
                Some(found)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(nix::libc::ENODEV) => {
                self.0.lock().remove(place);
                None
            }
            Err(e) => {
                let why = e.to_string();
                if self.is_new(place, &why) {
                    tracing::warn!("{place} can't be measured: {why}");
                }
                *failed = true;
                None
            }
        }
    }

    fn is_new(&self, place: &str, why: &str) -> bool {
        let mut known = self.0.lock();
        if known.get(place).is_some_and(|k| k == why) {
            return false;
        }
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(place.to_owned(), why.to_owned());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Host, fake::FakeHost};

    #[tokio::test(start_paused = true)]
    async fn only_what_has_gone_is_no_error() {
        let os = io::Error::from_raw_os_error;
        let places = Unmeasured::default();
        for (e, wanted) in [
            (os(nix::libc::ENOENT), false),
            (os(nix::libc::ENODEV), false),
            (os(nix::libc::EIO), true),
            (io::Error::from(io::ErrorKind::Unsupported), true),
        ] {
            let (text, mut failed) = (e.to_string(), false);
            assert_eq!(places.measured("/a", Err::<(), _>(e), &mut failed), None);
            assert_eq!(failed, wanted, "{text}");
        }
        let host = FakeHost::small("n", jiff::Timestamp::UNIX_EPOCH);
        let mut failed = false;
        host.spoil(std::path::Path::new("/a"), true);
        assert!(places.measured("/b", host.group("/b"), &mut failed).is_some() && !failed);
        assert!(places.measured("/a", host.group("/a"), &mut failed).is_none() && failed);
    }

    #[test]
    fn a_place_is_told_of_once_until_something_changes() {
        let places = Unmeasured::default();
        assert!(places.is_new("/a", "broken"));
        assert!(!places.is_new("/a", "broken"));
        assert!(places.is_new("/b", "broken"));
        assert!(places.is_new("/a", "worse"));
        assert_eq!(places.measured("/a", Ok(1), &mut false), Some(1));
        assert!(places.is_new("/a", "worse"));
        for n in 0..2 * MOST {
            places.is_new(&n.to_string(), "broken");
        }
        assert!(places.0.lock().len() <= MOST);
    }
}
