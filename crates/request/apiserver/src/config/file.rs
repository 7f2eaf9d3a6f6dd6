//! Files that configure the server and may change while it runs: read whole, checked as a whole, and followed.
//!
//! A file that can't be read, or says what can't be, leaves in force what is; that is logged and counted, once for each
//! content where the content is to blame, and as often as it is tried where it isn't.

use async_trait::async_trait;
use keelson_api::Cause;
use keelson_follow::Contents;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What is larger is no configuration.
const MAX_BYTES: u64 = 4 << 20;
/// Upstream's interval.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// Reads a file of configuration.
pub fn read(path: &Path) -> anyhow::Result<String> {
    text(path, keelson_follow::read(path, MAX_BYTES)?)
}

fn text(path: &Path, content: Vec<u8>) -> anyhow::Result<String> {
    String::from_utf8(content).map_err(|e| anyhow::anyhow!("{} is no text: {e}", path.display()))
}

/// What is wrong with a configuration, in one line as upstream writes it.
pub fn aggregate(causes: &[Cause]) -> String {
    let each = causes.iter().map(|c| format!("{}: {}", c.field, c.message));
    together(each.collect())
}

/// Several failures in one line; what is said twice is said once.
pub fn together(mut said: Vec<String>) -> String {
    let mut seen = std::collections::BTreeSet::new();
    said.retain(|one| seen.insert(one.clone()));
    match said.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

/// What a file is read into.
#[async_trait]
pub trait Into: Send + Sync {
    /// Puts a new content in force.
    async fn take(&self, text: &str) -> Result<(), Refused>;
}

/// Why a changed file wasn't taken.
pub enum Refused {
    /// It says what can't be, and always will.
    Content(String),
    /// It may be taken when it is tried again.
    NotNow(String),
}

/// What became of a file's changes, under upstream's names.
#[derive(Debug)]
pub struct Reloads {
    subsystem: &'static str,
    server: String,
    state: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// How often, and when last, in seconds of the calendar.
    success: (u64, i64),
    failure: (u64, i64),
    /// Of the content in force.
    hash: String,
}

pub fn hash(text: impl AsRef<[u8]>) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(text)))
}

impl Reloads {
    /// Of the file in force, whose text is given.
    pub fn new(subsystem: &'static str, server: &str, text: &str) -> Arc<Reloads> {
        let counts = Counts {
            hash: hash(text),
            ..Counts::default()
        };
        Arc::new(Reloads {
            subsystem,
            server: hash(server),
            state: Mutex::new(counts),
        })
    }
    fn taken(&self, text: &str) {
        let mut state = self.state.lock();
        state.success = (state.success.0 + 1, keelson_clock::now().as_second());
        state.hash = hash(text);
    }
    fn refused(&self) {
        let mut state = self.state.lock();
        state.failure = (state.failure.0 + 1, keelson_clock::now().as_second());
    }

    /// Adds the lines of the metrics' page.
    pub fn write(&self, page: &mut String) {
        let state = self.state.lock();
        let (prefix, id) = (format!("apiserver_{}", self.subsystem), &self.server);
        let _ = writeln!(page, "# TYPE {prefix}_automatic_reloads_total counter");
        for (status, (count, _)) in [("success", state.success), ("failure", state.failure)] {
            let _ = writeln!(
                page,
                "{prefix}_automatic_reloads_total{{apiserver_id_hash=\"{id}\",status=\"{status}\"}} {count}"
            );
        }
        let _ = writeln!(page, "# TYPE {prefix}_automatic_reload_last_timestamp_seconds gauge");
        for (status, (count, at)) in [("success", state.success), ("failure", state.failure)] {
            if count > 0 {
                let _ = writeln!(
                    page,
                    "{prefix}_automatic_reload_last_timestamp_seconds{{apiserver_id_hash=\"{id}\",status=\"{status}\"}} {at}"
                );
            }
        }
        let _ = writeln!(page, "# TYPE {prefix}_last_config_info gauge");
        let _ = writeln!(
            page,
            "{prefix}_last_config_info{{apiserver_id_hash=\"{id}\",hash=\"{}\"}} 1",
            state.hash
        );
    }
}

/// Hands on each new content of a file, until `stop`. `in_force` is the content that is in force already.
pub async fn follow(path: PathBuf, in_force: String, reloads: Arc<Reloads>, stop: CancellationToken, into: impl Into) {
    let mut contents = Contents::of([path.clone()], MAX_BYTES).known(vec![in_force.into_bytes()]);
    loop {
        let found = tokio::select! {
            () = stop.cancelled() => return,
            found = contents.changed() => found.map(|found| found.concat()),
        };
        let taken = match found.map_err(anyhow::Error::from).and_then(|found| text(&path, found)) {
            Ok(text) => into.take(&text).await.map(|()| text),
            Err(error) => Err(Refused::Content(format!("{error:#}"))),
        };
        match taken {
            Ok(text) => {
                tracing::info!(file = %path.display(), "the changed configuration is in force");
                reloads.taken(&text);
            }
            Err(refused) => {
                reloads.refused();
                let (Refused::Content(why) | Refused::NotNow(why)) = &refused;
                tracing::error!(file = %path.display(), "the changed configuration isn't taken, what was in force stays: {why}");
                if matches!(refused, Refused::NotNow(_)) {
                    contents.again(TRY_AGAIN);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    struct Told(mpsc::UnboundedSender<String>);

    #[async_trait]
    impl Into for Told {
        async fn take(&self, text: &str) -> Result<(), Refused> {
            self.0.send(text.to_string()).unwrap();
            match text {
                "bad" => Err(Refused::Content("it is bad".into())),
                _ => Ok(()),
            }
        }
    }

    #[tokio::test]
    async fn what_is_written_or_put_in_place_is_taken_and_what_is_wrong_is_not() {
        let dir = std::env::temp_dir().join(format!("keelson-followed-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("config");
        std::fs::write(&file, "one").unwrap();
        let reloads = Reloads::new("test", "id", "one");
        let stop = CancellationToken::new();
        let (sender, mut told) = mpsc::unbounded_channel();
        let following = tokio::spawn(follow(
            file.clone(),
            "one".into(),
            reloads.clone(),
            stop.clone(),
            Told(sender),
        ));
        for (i, content) in ["two", "bad", "three"].iter().enumerate() {
            let next = dir.join("next");
            std::fs::write(&next, content).unwrap();
            // Both ways in which editors write.
            match i {
                0 => std::fs::write(&file, content).unwrap(),
                _ => std::fs::rename(&next, &file).unwrap(),
            }
            loop {
                let seen = tokio::time::timeout(Duration::from_secs(10), told.recv()).await;
                let seen = seen.unwrap().unwrap();
                // A file may be seen half written.
                if seen == *content {
                    break;
                }
            }
        }
        stop.cancel();
        following.await.unwrap();
        let mut page = String::new();
        reloads.write(&mut page);
        assert!(page.contains(&hash("three")), "{page}");
        assert!(page.contains("automatic_reloads_total{apiserver_id_hash="), "{page}");
        assert!(page.contains("status=\"failure\"} 1\n"), "{page}");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn failures_are_told_together_and_once() {
        assert_eq!(together(vec!["a".into()]), "a");
        assert_eq!(together(vec!["a".into(), "b".into(), "a".into()]), "[a, b]");
    }
}
