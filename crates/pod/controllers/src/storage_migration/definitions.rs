//! A custom resource's definition says that its objects are being migrated, and, when they are, in which versions they are stored.

use crate::context::now;
use jiff::Timestamp;
use keelson_client::objects::found;
use keelson_client::rest::{JSON, Result};
use keelson_client::{Patch, ResourceId, Rest, is_conflict};
use serde::Deserialize;
use serde_json::{Value, json};

const MANAGER: &str = "migration-runner-controller";
/// So often a write is tried that others were faster with.
const ATTEMPTS: usize = 5;

#[derive(Deserialize)]
struct Definition {
    metadata: Metadata,
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
    #[serde(default)]
    generation: i64,
}

#[derive(Deserialize)]
struct Spec {
    versions: Vec<Version>,
}

#[derive(Deserialize)]
struct Version {
    name: String,
    storage: bool,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Vec<Told>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default)]
    observed_generation: i64,
}

pub async fn begin(rest: &Rest, name: &str, migration: &str) -> Result<()> {
    change(rest, name, |definition| {
        let message = format!("Migration {migration} is running");
        Some(json!({"conditions": [condition(definition, "True", "MigrationRunning", &message)]}))
    })
    .await
}

pub async fn end(rest: &Rest, name: &str, succeeded: bool) -> Result<()> {
    change(rest, name, |definition| ended(definition, succeeded)).await
}

/// Only what the definition was when the migration began is known to be what all objects are stored in now, and only if it
/// came to its end: upstream forgets the other versions after a failure too, and when the end is told a second time.
fn ended(definition: &Definition, succeeded: bool) -> Option<Value> {
    let mut told = definition.status.conditions.iter();
    let told = told.find(|c| c.kind == "StorageMigrating" && c.status == "True")?;
    let is_same = told.observed_generation == definition.metadata.generation;
    let (reason, message) = match (succeeded, is_same) {
        (false, _) => ("MigrationFailed", "The migration has failed"),
        (true, true) => (
            "MigrationSucceeded",
            "The migration has succeeded and the stored versions have been updated",
        ),
        (true, false) => (
            "MigrationSucceeded",
            "The migration has succeeded but the stored versions have not been updated due to a generation mismatch",
        ),
    };
    let mut status = json!({"conditions": [condition(definition, "False", reason, message)]});
    if succeeded
        && is_same
        && let Some(stored) = definition.spec.versions.iter().find(|v| v.storage)
    {
        status["storedVersions"] = json!([stored.name]);
    }
    Some(status)
}

fn condition(definition: &Definition, status: &str, reason: &str, message: &str) -> Value {
    // Dates in objects are whole seconds.
    let date = Timestamp::from_second(now().as_second()).unwrap_or_else(|_| now());
    json!({
        "type": "StorageMigrating",
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": date.to_string(),
        "observedGeneration": definition.metadata.generation,
    })
}

/// A definition that isn't there has nothing to be told: then the resource is built in, or its server's own. Neither has one of
/// which that has been said already.
async fn change(rest: &Rest, name: &str, status: impl Fn(&Definition) -> Option<Value>) -> Result<()> {
    for attempt in 1.. {
        let Some(body) = found(rest.get_raw(&ResourceId::DEFINITIONS, "", name, "", JSON).await)? else {
            return Ok(());
        };
        let definition: Definition = serde_json::from_slice(&body).map_err(keelson_client::rest::Error::SerdeError)?;
        let Some(status) = status(&definition) else {
            return Ok(());
        };
        let body = json!({
            "apiVersion": ResourceId::DEFINITIONS.api_version(),
            "kind": ResourceId::DEFINITIONS.kind,
            // What is said of a definition holds for the one that was looked at.
            "metadata": {"name": name, "resourceVersion": definition.metadata.resource_version},
            "status": status,
        });
        let patch = Patch::Apply {
            body: &body,
            manager: MANAGER,
            force: true,
        };
        match rest
            .patch_raw(&ResourceId::DEFINITIONS, "", name, "status", &patch)
            .await
        {
            Err(error) if is_conflict(&error) && attempt < ATTEMPTS => {}
            other => return found(other).map(drop),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_versions_change_only_with_the_definition_that_was_migrated() {
        let definition = |status: &str, observed: i64| -> Definition {
            let told = json!([{"type": "StorageMigrating", "status": status, "observedGeneration": observed}]);
            serde_json::from_value(json!({
                "metadata": {"resourceVersion": "7", "generation": 3},
                "spec": {"versions": [{"name": "v1", "storage": false}, {"name": "v2", "storage": true}]},
                "status": {"conditions": told},
            }))
            .unwrap()
        };
        let told = |status, observed, succeeded| ended(&definition(status, observed), succeeded);
        let done = told("True", 3, true).unwrap();
        assert_eq!(done["storedVersions"], json!(["v2"]));
        assert_eq!(done["conditions"][0]["observedGeneration"], 3);
        assert!(told("True", 2, true).unwrap().get("storedVersions").is_none());
        assert!(told("True", 3, false).unwrap().get("storedVersions").is_none());
        // As it stands after it was told of another generation, when the migration's own status couldn't be written then.
        assert!(told("False", 3, true).is_none());
    }
}
