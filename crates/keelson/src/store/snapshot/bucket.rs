//! Snapshots in a bucket as well: each is taken on this machine's disk, and what the bucket hasn't yet is sent. What can't be sent stays
//! here, by the same count, and goes with the next one.

use super::{ENDING, Found, Why, parse};
use anyhow::Context;
use jiff::Timestamp;
use keelson_backup::place::{self, Object, Place, s3};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file that was brought from a bucket, with the process's number behind.
const BROUGHT: &str = "brought-";

#[derive(Clone, Debug)]
pub struct Bucket {
    text: String,
    settings: s3::Settings,
}

impl Bucket {
    /// `None`: that is a directory. What is no good is refused now, not when the first one is sent.
    pub fn of(text: &Path, settings: s3::Settings) -> anyhow::Result<Option<Bucket>> {
        let Some(text) = text.to_str().filter(|text| place::is_bucket(text)) else {
            return Ok(None);
        };
        let bucket = Bucket {
            text: text.trim_end_matches('/').into(),
            settings,
        };
        bucket.open()?;
        Ok(Some(bucket))
    }

    pub fn told(&self) -> &str {
        &self.text
    }

    /// Each time anew: credentials in files are exchanged.
    fn open(&self) -> anyhow::Result<Arc<dyn Place>> {
        Ok(place::open(&self.text, &self.settings)?)
    }

    /// What is there, the oldest first.
    pub async fn list(&self) -> anyhow::Result<Vec<Found>> {
        let objects = self.open()?.list("").await?;
        let mut found: Vec<_> = objects.iter().filter_map(|object| self.found(object)).collect();
        found.sort_by(|a, b| (a.at, &a.path).cmp(&(b.at, &b.path)));
        Ok(found)
    }

    fn found(&self, object: &Object) -> Option<Found> {
        let (why, at) = parse(Path::new(&object.name)).filter(|_| !object.name.contains('/'))?;
        Some(Found {
            path: PathBuf::from(format!("{}/{}", self.text, object.name)),
            why,
            at,
            bytes: object.bytes,
        })
    }

    /// Sends those of `here` that aren't there whole, and gives up the schedule's oldest.
    pub async fn follow(&self, here: &[Found], kept: usize, now: Timestamp) -> anyhow::Result<()> {
        let place = self.open()?;
        let there = self.list().await?;
        for found in lacking(here, &there, now) {
            let name = file_name(found).context("a snapshot without a name")?;
            place.put_file(name, &found.path).await?;
            tracing::info!(snapshot = name, place = self.text, "sent a snapshot of the store");
        }
        for old in super::superfluous(self.list().await?, kept, now) {
            place.remove(file_name(&old).unwrap_or_default()).await?;
            tracing::info!(snapshot = %old.path.display(), "removed an old snapshot of the store");
        }
        Ok(())
    }
}

fn file_name(found: &Found) -> Option<&str> {
    found.path.file_name()?.to_str()
}

/// Of the schedule's only those that are newer than what the bucket has: older ones were there, and have been given up. What a clock that was
/// ahead has dated says nothing of that.
fn lacking<'a>(here: &'a [Found], there: &[Found], now: Timestamp) -> Vec<&'a Found> {
    let same = |a: &Found, b: &Found| file_name(a) == file_name(b) && a.bytes == b.bytes;
    let past = there.iter().filter(|f| f.why == Why::Scheduled && f.at <= now);
    let newest = past.map(|f| f.at).max();
    let news = |found: &Found| found.why == Why::Asked || newest.is_none_or(|newest| found.at > newest);
    let is_there = |found: &Found| there.iter().any(|other| same(found, other));
    here.iter().filter(|found| !is_there(found) && news(found)).collect()
}

/// A file in a bucket, brought beside the data directory's store; a path of this machine stays what it is.
pub async fn bring(file: &Path, settings: s3::Settings, data_dir: &Path) -> anyhow::Result<Option<PathBuf>> {
    let Some((text, name)) = file
        .to_str()
        .filter(|text| place::is_bucket(text))
        .and_then(|text| text.rsplit_once('/'))
    else {
        return Ok(None);
    };
    std::fs::create_dir_all(data_dir)?;
    clear(data_dir).with_context(|| format!("what was brought to {} before", data_dir.display()))?;
    let to = data_dir.join(format!("{BROUGHT}{}{ENDING}", std::process::id()));
    // Whatever a bucket sends, a server that is at work here has room; and a store has to be made of it.
    let most = crate::upgrade::free(data_dir)? / 2;
    let found = place::open(text, &settings)?.get_file(name, &to, most).await?;
    anyhow::ensure!(found, "{}: there is no such snapshot", file.display());
    Ok(Some(to))
}

/// Removes what processes brought that were killed, and one that had our number: it is as secret as the cluster.
fn clear(data_dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(data_dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let process = name
            .to_str()
            .and_then(|name| name.strip_prefix(BROUGHT)?.strip_suffix(ENDING));
        let Some(process) = process.and_then(|number| number.parse::<u32>().ok()) else {
            continue;
        };
        if process == std::process::id() || !Path::new("/proc").join(process.to_string()).exists() {
            match std::fs::remove_file(entry.path()) {
                // It ended just now, and has removed it.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_bucket_lacks_is_sent_and_nothing_that_it_gave_up() {
        let found = |why: Why, hour: i8, bytes| {
            let at = jiff::civil::date(2026, 3, 1)
                .at(hour, 0, 0, 0)
                .to_zoned(jiff::tz::TimeZone::UTC)
                .unwrap();
            let path = super::super::name(Path::new("/nowhere"), why, at.timestamp());
            let at = at.timestamp();
            Found { path, why, at, bytes }
        };
        let (s, a) = (Why::Scheduled, Why::Asked);
        let here = [found(s, 1, 5), found(a, 2, 5), found(s, 3, 5), found(s, 4, 5)];
        let hours = |there: &[Found]| {
            let now = "2026-03-01T05:00:00Z".parse::<Timestamp>().unwrap();
            let lacking = lacking(&here, there, now);
            lacking
                .iter()
                .map(|f| f.at.to_zoned(jiff::tz::TimeZone::UTC).hour())
                .collect::<Vec<_>>()
        };
        assert_eq!(hours(&[]), [1, 2, 3, 4]);
        assert_eq!(hours(&here), [0i8; 0]);
        assert_eq!(hours(&[found(s, 3, 5)]), [2, 4], "that of one o'clock was given up");
        assert_eq!(hours(&[found(a, 2, 4), found(s, 4, 5)]), [2], "half of one is none");
        assert_eq!(
            hours(&[found(s, 3, 5), found(s, 23, 5)]),
            [2, 4],
            "a clock that was ahead"
        );
    }

    #[test]
    fn what_a_killed_process_brought_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let dead = format!("{BROUGHT}{}{ENDING}", u32::MAX);
        let ours = format!("{BROUGHT}{}{ENDING}", std::process::id());
        let (first, other) = (format!("{BROUGHT}1{ENDING}"), format!("{BROUGHT}home{ENDING}"));
        for name in [&dead, &ours, &first, &other] {
            std::fs::write(dir.path().join(name), "secret").unwrap();
        }
        clear(dir.path()).unwrap();
        let is_there = |name: &String| dir.path().join(name).exists();
        assert!(!is_there(&dead) && !is_there(&ours));
        assert!(is_there(&first) && is_there(&other), "who lives is at it");
    }

    #[test]
    fn a_directory_is_no_bucket_and_a_wrong_bucket_is_refused() {
        let of = |text: &str| Bucket::of(Path::new(text), s3::Settings::default());
        assert!(of("/var/backups").unwrap().is_none());
        assert!(of("s3://B").unwrap_err().to_string().contains("s3://BUCKET/PREFIX"));
    }
}
