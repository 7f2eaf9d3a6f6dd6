//! One writer a repository. Who writes notes it, then looks who else has: of two that come at once both may give way, and never do both go on.
//! A note is renewed while somebody is at it; one that wasn't for long is of a program that died. Who was taken for dead and isn't, for the
//! machine slept or its clock is another, finds that out before anything counts ([`Lock::held`]).

use super::{Damage, Repository, Result};
use crate::place::Place;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::AbortHandle;

const LOCKS: &str = "locks/";
const MOST: u64 = 4096;
const RENEWED: Duration = Duration::from_secs(300);
const DEAD: SignedDuration = SignedDuration::from_mins(30);

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    who: String,
    at: Timestamp,
}

impl Note {
    /// Whether somebody may be at it still. A clock that is ahead is no reason to wait for ever.
    fn counts(&self, now: Timestamp) -> bool {
        now.duration_since(self.at).abs() < DEAD
    }
}

pub struct Lock {
    place: Arc<dyn Place>,
    name: String,
    renewing: AbortHandle,
}

impl Repository {
    /// `who`: as others are told.
    pub async fn lock(&self, who: &str) -> Result<Lock> {
        Lock::take(self.place.clone(), who).await
    }
}

impl Lock {
    pub(super) async fn take(place: Arc<dyn Place>, who: &str) -> Result<Lock> {
        let name = format!("{LOCKS}{}", uuid::Uuid::new_v4());
        note(place.as_ref(), &name, who).await?;
        let others = others(place.as_ref(), &name, Timestamp::now()).await;
        if let Ok(None) = others {
            let (kept, at, us) = (place.clone(), name.clone(), who.to_string());
            let renewing = tokio::spawn(async move {
                loop {
                    tokio::time::sleep(RENEWED).await;
                    match renew(kept.as_ref(), &at, &us).await {
                        Ok(true) => {}
                        Ok(false) => return,
                        Err(error) => {
                            tracing::warn!(%error, "the note of who writes to the repository isn't renewed");
                        }
                    }
                }
            });
            let renewing = renewing.abort_handle();
            return Ok(Lock { place, name, renewing });
        }
        place.remove(&name).await?;
        match others? {
            Some(other) => Err(Damage::Refused(format!(
                "{} writes to {} since {}",
                other.who,
                place.told(),
                other.at
            ))),
            None => Err(Damage::Refused("somebody else writes to the repository".into())),
        }
    }

    /// # Errors
    ///
    /// If somebody took us for dead: what we found in the repository may be gone by now.
    pub async fn held(&self) -> Result<()> {
        match is_noted(self.place.as_ref(), &self.name).await? {
            true => Ok(()),
            false => Err(Damage::Refused(format!(
                "another program took our note in {} away and may have removed pieces: this machine slept, or its clock is another than theirs",
                self.place.told()
            ))),
        }
    }

    pub async fn release(self) -> Result<()> {
        self.renewing.abort();
        Ok(self.place.remove(&self.name).await?)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

async fn note(place: &dyn Place, name: &str, who: &str) -> Result<()> {
    let (who, at) = (who.to_string(), Timestamp::now());
    let json = serde_json::to_vec(&Note { who, at }).map_err(|e| Damage::Refused(e.to_string()))?;
    Ok(place.put(name, json.into()).await?)
}

async fn is_noted(place: &dyn Place, name: &str) -> Result<bool> {
    Ok(place.get(name, MOST).await?.is_some())
}

/// False: it is gone, and isn't made again.
async fn renew(place: &dyn Place, name: &str, who: &str) -> Result<bool> {
    let is_ours = is_noted(place, name).await?;
    if is_ours {
        note(place, name, who).await?;
    }
    Ok(is_ours)
}

/// Whether notes are named so. Nothing else is read or removed: who can write to the place may have led its directory elsewhere.
fn is_note(name: &str) -> bool {
    let number = name.strip_prefix(LOCKS);
    number.is_some_and(|number| uuid::Uuid::try_parse(number).is_ok())
}

/// Another one that counts. Those that don't are removed.
async fn others(place: &dyn Place, ours: &str, now: Timestamp) -> Result<Option<Note>> {
    let listed = place.list(LOCKS).await?;
    for object in listed.iter().filter(|o| o.name != ours && is_note(&o.name)) {
        let Some(json) = place.get(&object.name, MOST).await? else {
            continue;
        };
        match serde_json::from_slice::<Note>(&json) {
            Ok(note) if note.counts(now) => return Ok(Some(note)),
            _ => place.remove(&object.name).await?,
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_of_the_dead_dont_count() {
        let at = "2026-03-01T12:00:00Z".parse::<Timestamp>().unwrap();
        let note = Note { who: "a".into(), at };
        for (minutes, counts) in [(0, true), (29, true), (31, false), (-5, true), (-60, false)] {
            assert_eq!(
                note.counts(at + SignedDuration::from_mins(minutes)),
                counts,
                "{minutes}"
            );
        }
    }
}
