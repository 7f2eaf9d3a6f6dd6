//! Which migration of a resource is whose turn, and what is said of each.

use jiff::Timestamp;
use k8s_openapi::api::storagemigration::v1::StorageVersionMigration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use keelson_client::ApiObject;
use std::sync::Arc;

pub const RUNNING: &str = "Running";
pub const SUCCEEDED: &str = "Succeeded";
pub const FAILED: &str = "Failed";

pub fn is(migration: &StorageVersionMigration, kind: &str) -> bool {
    let conditions = migration.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == kind && c.status == "True")
}

/// What decides what is to be done for it.
pub fn stage(migration: &StorageVersionMigration) -> (bool, bool, Option<&str>) {
    let begun = migration.status.as_ref().and_then(|s| s.resource_version.as_deref());
    (is(migration, RUNNING), is_over(migration), begun)
}

fn is_over(migration: &StorageVersionMigration) -> bool {
    is(migration, SUCCEEDED) || is(migration, FAILED)
}

/// Of the migrations of one resource.
#[derive(Debug, Default)]
pub struct Turn {
    /// Over, but still told to run.
    pub over: Vec<Arc<StorageVersionMigration>>,
    pub running: Vec<Arc<StorageVersionMigration>>,
    /// The oldest that waits, if none runs.
    pub next: Option<Arc<StorageVersionMigration>>,
}

pub fn turn(all: Vec<Arc<StorageVersionMigration>>) -> Turn {
    let mut turn = Turn::default();
    let mut waiting = Vec::new();
    for migration in all {
        match (is(&migration, RUNNING), is_over(&migration)) {
            (true, true) => turn.over.push(migration),
            (true, false) => turn.running.push(migration),
            (false, true) => {}
            (false, false) => waiting.push(migration),
        }
    }
    if turn.running.is_empty() {
        let age = |m: &Arc<StorageVersionMigration>| (m.meta().creation_timestamp.clone(), m.name().to_owned());
        turn.next = waiting.into_iter().min_by_key(age);
    }
    turn
}

/// How far a migration is: of so many objects so many are still to be written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    pub left: usize,
    pub total: usize,
}

/// What is told of a migration that runs, with what went wrong for the moment.
pub fn running(progress: Progress, error: Option<&str>) -> Condition {
    let mut message = "The migration is running".to_owned();
    match progress {
        Progress { total: 0, .. } => {}
        Progress { left: 0, total } => message += &format!(", {total} objects verified migrated"),
        Progress { left, total } => message += &format!(", {left}/{total} objects not yet migrated"),
    }
    if let Some(error) = error {
        message += &format!("; transient error: {error}");
    }
    condition(RUNNING, "True", "MigrationRunning", message)
}

pub fn ended() -> Condition {
    condition(RUNNING, "False", "MigrationCompleted", "Migration completed".into())
}

pub fn succeeded() -> Condition {
    let message = "Migration completed".into();
    condition(SUCCEEDED, "True", "StorageVersionMigrationSucceeded", message)
}

pub fn failed(message: String) -> Condition {
    condition(FAILED, "True", "StorageVersionMigrationFailed", message)
}

fn condition(kind: &str, status: &str, reason: &str, message: String) -> Condition {
    Condition {
        type_: kind.into(),
        status: status.into(),
        reason: reason.into(),
        message,
        observed_generation: None,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    }
}

/// Puts a condition in the place of the one of its type; its date stays if its status does. Says whether anything changed.
pub fn tell(migration: &mut StorageVersionMigration, mut new: Condition, now: Timestamp) -> bool {
    let conditions = migration
        .status
        .get_or_insert_default()
        .conditions
        .get_or_insert_default();
    let Some(old) = conditions.iter_mut().find(|c| c.type_ == new.type_) else {
        new.last_transition_time = Time(now);
        conditions.push(new);
        return true;
    };
    new.last_transition_time = match old.status == new.status {
        true => old.last_transition_time.clone(),
        false => Time(now),
    };
    let is_other = *old != new;
    *old = new;
    is_other
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migration(name: &str, created: &str, conditions: &[(&str, &str)]) -> Arc<StorageVersionMigration> {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(kind, status)| serde_json::json!({"type": kind, "status": status, "reason": "", "message": "", "lastTransitionTime": created}))
            .collect();
        let value = serde_json::json!({
            "metadata": {"name": name, "creationTimestamp": created},
            "spec": {"resource": {"group": "", "resource": "secrets"}},
            "status": {"conditions": conditions},
        });
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn one_runs_at_a_time_and_the_oldest_is_next() {
        let old = "2026-01-01T00:00:00Z";
        let waiting = [
            migration("c", "2026-01-02T00:00:00Z", &[]),
            migration("b", old, &[]),
            migration("a", old, &[(RUNNING, "False")]),
        ];
        let ended = migration("d", old, &[(RUNNING, "True"), (FAILED, "True")]);
        let done = migration("e", old, &[(RUNNING, "False"), (SUCCEEDED, "True")]);
        let mut all = waiting.to_vec();
        all.extend([ended, done]);
        let found = turn(all.clone());
        assert_eq!(found.next.unwrap().name(), "a");
        assert_eq!(found.over.iter().map(|m| m.name()).collect::<Vec<_>>(), ["d"]);
        all.push(migration("f", old, &[(RUNNING, "True")]));
        let found = turn(all);
        assert!(found.next.is_none());
        assert_eq!(found.running.len(), 1);
    }

    #[test]
    fn how_far_it_is_stands_in_the_message() {
        let message = |left, total, error| running(Progress { left, total }, error).message;
        assert_eq!(message(0, 0, None), "The migration is running");
        assert_eq!(
            message(2, 3, None),
            "The migration is running, 2/3 objects not yet migrated"
        );
        assert_eq!(
            message(0, 3, Some("busy")),
            "The migration is running, 3 objects verified migrated; transient error: busy"
        );
    }

    #[test]
    fn a_date_is_that_of_the_status() {
        let mut migration = (*migration("a", "2026-01-01T00:00:00Z", &[])).clone();
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        assert!(tell(&mut migration, running(Progress::default(), None), at(1)));
        assert!(!tell(&mut migration, running(Progress::default(), None), at(2)));
        assert!(tell(
            &mut migration,
            running(Progress { left: 1, total: 1 }, None),
            at(3)
        ));
        let date = |m: &StorageVersionMigration| m.status.as_ref().unwrap().conditions.as_ref().unwrap()[0].clone();
        assert_eq!(date(&migration).last_transition_time.0, at(1));
        assert!(tell(&mut migration, ended(), at(4)));
        assert_eq!(date(&migration).last_transition_time.0, at(4));
    }
}
