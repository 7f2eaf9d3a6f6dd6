//! What stands in files, whenever it is something else.

use crate::{Watch, read};
use std::convert::Infallible;
use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

/// How often files are looked at of which nobody tells: upstream's period.
const LOOK: Duration = Duration::from_secs(60);
/// How long writers are left to write all of them.
const QUIET: Duration = Duration::from_millis(100);
const AT_LAST: Duration = Duration::from_secs(2);

/// Files that belong together. They are read on threads that may wait for disks.
pub struct Contents {
    files: Vec<PathBuf>,
    most: u64,
    watch: Option<Watch>,
    known: Option<Vec<Vec<u8>>>,
    /// When they are looked at though nobody tells.
    due: Instant,
    is_told: bool,
}

impl Contents {
    /// Of files that have `most` bytes each. Must be called within a tokio runtime.
    pub fn of(files: impl IntoIterator<Item = PathBuf>, most: u64) -> Contents {
        let mut contents = Contents {
            files: files.into_iter().collect(),
            most,
            watch: None,
            known: None,
            due: Instant::now(),
            is_told: false,
        };
        contents.watch();
        contents
    }

    /// What was read before, and counts.
    pub fn known(mut self, contents: Vec<Vec<u8>>) -> Contents {
        self.known = Some(contents);
        self
    }

    /// What stands in the files, as soon as that isn't what it was; the first time at once. A file that is touched, or written as it was, isn't
    /// told. An error is that they can't all be read, as often as that is tried. May be given up and asked again.
    pub async fn changed(&mut self) -> io::Result<&[Vec<u8>]> {
        loop {
            self.wait().await;
            // Whoever gives up now finds them due.
            self.due = Instant::now();
            let (files, most) = (self.files.clone(), self.most);
            let reading = tokio::task::spawn_blocking(move || files.iter().map(|f| read(f, most)).collect());
            let found: io::Result<Vec<Vec<u8>>> = reading.await.map_err(io::Error::other)?;
            self.due = Instant::now() + LOOK;
            let found = found?;
            if self.known.as_ref() != Some(&found) {
                return Ok(self.known.insert(found));
            }
        }
    }

    /// Has each content taken, for ever. One that can't be read, or that `take` refuses, is told: what was there before goes on.
    pub async fn each<E>(mut self, take: impl Fn(&[Vec<u8>]) -> Result<(), E>) -> Infallible
    where
        E: Display + From<io::Error>,
    {
        let mut is_first = self.known.is_none();
        loop {
            match self.changed().await.map_err(E::from).and_then(&take) {
                Ok(()) if is_first => {}
                Ok(()) => tracing::info!(files = ?self.files, "what these files say now is in force"),
                Err(e) => tracing::warn!(files = ?self.files, "what these files said before stays in force: {e:#}"),
            }
            is_first = false;
        }
    }

    /// What was told isn't taken yet: it is told once more after a while, or when it changes.
    pub fn again(&mut self, after: Duration) {
        self.known = None;
        self.due = Instant::now() + after;
    }

    async fn wait(&mut self) {
        if self.watch.is_none() {
            self.watch();
        }
        let Some(watch) = &mut self.watch else {
            return tokio::time::sleep_until(self.due).await;
        };
        match tokio::time::timeout_at(self.due, watch.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.unwatched(&error);
                tokio::time::sleep_until(self.due).await;
            }
            Err(_) => watch.go_again(),
        }
    }

    fn watch(&mut self) {
        match Watch::files(self.files.iter().cloned()) {
            Ok(watch) => (self.watch, self.is_told) = (Some(watch.settled(QUIET, AT_LAST)), false),
            Err(error) => self.unwatched(&error),
        }
    }

    fn unwatched(&mut self, error: &io::Error) {
        self.watch = None;
        if !std::mem::replace(&mut self.is_told, true) {
            tracing::warn!(files = ?self.files, "changes are found within a minute only: {error}");
        }
    }
}
