//! Writes all objects of a resource anew, so that they are stored in its current version and under its current key.
//!
//! A StorageVersionMigration names the resource. One of a resource runs at a time. It takes the revision of the moment, and sends
//! each object that is no newer an empty patch with the object's revision: whoever wrote it since has done the work.

mod definitions;
mod plan;

use crate::context::{Context, now};
use async_trait::async_trait;
use jiff::SignedDuration;
use k8s_openapi::api::storagemigration::v1::StorageVersionMigration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use keelson_client::discovery::{Discovered, preferred_resources};
use keelson_client::partial::PARTIAL_ACCEPT;
use keelson_client::rest::{Error, Result, with_query};
use keelson_client::{
    ApiObject, Controller, Expectations, Informer, Kind, ObjectKey, Objects, Outcome, PartialObject, Patch, Reconcile,
    ResourceId, Rest, is_conflict, is_not_found,
};
use plan::Progress;
use serde_json::json;
use std::time::Duration;

const NAME: &str = "storage-version-migrator-controller";
/// What of a resource a migration needs.
const VERBS: [&str; 3] = ["update", "patch", "list"];
/// A resource that isn't there yet may come for so long.
const PATIENCE: SignedDuration = SignedDuration::from_secs(60);

pub fn start(context: &Context) {
    let migrations = context.informer::<StorageVersionMigration>();
    let controller = Controller::new("storage-version-migrator")
        .input(&migrations)
        .output(StorageVersionMigration::RESOURCE);
    let queue = controller.queue();
    // How far it is changes with every attempt, and is no reason for another.
    migrations.on_change(move |change| {
        let is_told = change
            .old()
            .is_some_and(|old| plan::stage(old) == plan::stage(change.object()));
        if change.is_deleted() || !is_told {
            queue.add(resource(change.object()));
        }
    });
    let rest = context.rest(NAME);
    let objects = Objects::new(&rest);
    context.run(
        controller,
        Migrator {
            migrations,
            rest,
            objects,
            written: Expectations::default(),
        },
    );
}

/// The work's key: a group, and a resource of it.
fn resource(migration: &StorageVersionMigration) -> ObjectKey {
    let resource = migration
        .spec
        .as_ref()
        .map(|spec| spec.resource.clone())
        .unwrap_or_default();
    ObjectKey::new(resource.group, resource.resource)
}

struct Migrator {
    migrations: Informer<StorageVersionMigration>,
    rest: Rest,
    objects: Objects<StorageVersionMigration>,
    written: Expectations,
}

#[async_trait]
impl Reconcile for Migrator {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        self.written.settle(key, self.migrations.store()).await?;
        let turn = plan::turn(self.migrations.store().filter(|m| resource(m) == *key));
        let definition = format!("{}.{}", key.name, key.namespace);
        for migration in &turn.over {
            let succeeded = plan::is(migration, plan::SUCCEEDED);
            definitions::end(&self.rest, &definition, succeeded).await?;
            self.tell(key, migration, vec![plan::ended()]).await?;
        }
        if let Some(migration) = turn.next {
            definitions::begin(&self.rest, &definition, migration.name()).await?;
            let running = plan::running(Progress::default(), None);
            self.tell(key, &migration, vec![running]).await?;
        }
        for migration in turn.running {
            match self.go_on(key, &migration).await? {
                Outcome::Done => {}
                later => return Ok(later),
            }
        }
        Ok(Outcome::Done)
    }
}

impl Migrator {
    async fn go_on(&self, key: &ObjectKey, migration: &StorageVersionMigration) -> anyhow::Result<Outcome> {
        let begun = migration.status.iter().find_map(|s| s.resource_version.clone());
        let begun = begun.filter(|revision| !revision.is_empty());
        let Some(found) = self.find(key).await? else {
            let created = migration.metadata.creation_timestamp.as_ref().map(|t| t.0);
            if created.is_some_and(|created| now() < created + PATIENCE) {
                return Ok(Outcome::Retry);
            }
            let why = match begun {
                None => "resource does not exist in discovery".into(),
                Some(_) => unhandled("unable to obtain GVR from discovery"),
            };
            return self.tell(key, migration, vec![plan::failed(why)]).await;
        };
        let Some(begun) = begun else {
            return self.begin(key, migration, &found).await;
        };
        match self.migrate(&found.id, &begun).await {
            Ok(progress) => {
                let told = vec![plan::running(progress, None), plan::succeeded()];
                self.tell(key, migration, told).await
            }
            Err(Ended::Later(progress, error)) => {
                let told = plan::running(progress, Some(&message(&error)));
                self.tell(key, migration, vec![told]).await?;
                Ok(after(&error))
            }
            Err(Ended::Failed(progress, why)) => {
                let Progress { left, total } = progress;
                let told = match total {
                    0 => vec![plan::failed(unhandled(&why))],
                    _ => vec![
                        plan::running(progress, None),
                        plan::failed(format!("{left}/{total} not yet migrated. {}", unhandled(&why))),
                    ],
                };
                self.tell(key, migration, told).await
            }
        }
    }

    /// Which revision all objects are to be newer than.
    async fn begin(
        &self,
        key: &ObjectKey,
        migration: &StorageVersionMigration,
        found: &Discovered,
    ) -> anyhow::Result<Outcome> {
        let shown = shown(&found.id);
        if !VERBS.iter().all(|verb| found.can(verb)) {
            let verbs = VERBS.join(" ");
            let why = format!("resource {shown:?} does not support discovery operations: [{verbs}]");
            return self.tell(key, migration, vec![plan::failed(why)]).await;
        }
        let uri = with_query(&found.id.path(""), &[("limit", "1")]);
        let list: PartialObject = serde_json::from_slice(&self.rest.get(&uri, PARTIAL_ACCEPT).await?)?;
        let revision = list.metadata.resource_version.unwrap_or_default();
        if let Err(error) = revision.parse::<u64>() {
            let why = format!("latest resourceVersion for {shown} is not valid: {error}");
            return self.tell(key, migration, vec![plan::failed(why)]).await;
        }
        let mut changed = migration.clone();
        changed.status.get_or_insert_default().resource_version = Some(revision);
        self.write(key, &changed).await
    }

    async fn find(&self, key: &ObjectKey) -> anyhow::Result<Option<Discovered>> {
        let resources = preferred_resources(&self.rest).await?;
        let is_it = |id: &ResourceId| id.group == key.namespace && id.plural == key.name;
        let found = resources.found.into_iter().find(|d| is_it(&d.id));
        let group = |version: &str| version.rsplit_once('/').map_or("", |(group, _)| group) == key.namespace;
        if let (None, Some((version, why))) = (&found, resources.failed.iter().find(|(version, _)| group(version))) {
            anyhow::bail!("{version} can't be discovered: {why}");
        }
        Ok(found)
    }

    async fn migrate(&self, id: &ResourceId, begun: &str) -> std::result::Result<Progress, Ended> {
        let mut progress = Progress::default();
        let revision = |text: &str| {
            text.parse::<u64>()
                .map_err(|e| format!("resource version {text:?}: {e}"))
        };
        let begun = revision(begun).map_err(|why| Ended::Failed(progress, why))?;
        let (mut old, mut total, mut bad) = (Vec::new(), 0, None);
        let mut each = |item: &[u8]| -> Result<()> {
            let metadata = PartialObject::decode(item).map_err(Error::SerdeError)?.metadata;
            total += 1;
            let text = metadata.resource_version.unwrap_or_default();
            match revision(&text) {
                Ok(written) if written > begun => {}
                Ok(_) => old.push((
                    metadata.namespace.unwrap_or_default(),
                    metadata.name.unwrap_or_default(),
                    text,
                )),
                Err(why) => bad = Some(why),
            }
            Ok(())
        };
        let listed = self.rest.list_raw(id, "", "", "", PARTIAL_ACCEPT, &mut each).await;
        listed.map_err(|error| Ended::of(progress, error))?;
        if let Some(why) = bad {
            return Err(Ended::Failed(progress, why));
        }
        progress = Progress { left: old.len(), total };
        for (namespace, name, revision) in old {
            let body = json!({
                "apiVersion": id.api_version(),
                "kind": id.kind,
                "metadata": {"resourceVersion": revision},
            });
            match self
                .rest
                .patch_raw(id, &namespace, &name, "", &Patch::Merge(&body))
                .await
            {
                // Somebody else has written it, or it has gone: either way there is nothing old any more.
                Err(error) if !is_conflict(&error) && !is_not_found(&error) => return Err(Ended::of(progress, error)),
                _ => progress.left -= 1,
            }
        }
        Ok(progress)
    }

    async fn tell(
        &self,
        key: &ObjectKey,
        migration: &StorageVersionMigration,
        told: Vec<Condition>,
    ) -> anyhow::Result<Outcome> {
        let mut changed = migration.clone();
        let mut is_other = false;
        for condition in told {
            is_other |= plan::tell(&mut changed, condition, now());
        }
        match is_other {
            true => self.write(key, &changed).await,
            false => Ok(Outcome::Done),
        }
    }

    async fn write(&self, key: &ObjectKey, changed: &StorageVersionMigration) -> anyhow::Result<Outcome> {
        match self.objects.update_status(changed).await {
            Ok(written) => self.written.wrote(key, written.meta()),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Outcome::Done)
    }
}

/// Why a migration isn't done.
enum Ended {
    /// What may be otherwise in a moment.
    Later(Progress, Error),
    Failed(Progress, String),
}

impl Ended {
    fn of(progress: Progress, error: Error) -> Ended {
        let is_passing = match &error {
            Error::Api(status) => {
                [
                    "ServerTimeout",
                    "TooManyRequests",
                    "ServiceUnavailable",
                    "InternalError",
                    "Timeout",
                ]
                .contains(&status.reason.as_str())
                    || status.code == 429
            }
            // No answer.
            Error::Service(_) | Error::HyperError(_) => true,
            _ => false,
        };
        match is_passing {
            true => Ended::Later(progress, error),
            false => Ended::Failed(progress, message(&error)),
        }
    }
}

/// As long as the server asks for.
fn after(error: &Error) -> Outcome {
    let seconds = match error {
        Error::Api(status) => status.details.as_ref().map_or(0, |d| d.retry_after_seconds),
        _ => 0,
    };
    match seconds {
        0 => Outcome::Retry,
        seconds => Outcome::After(Duration::from_secs(seconds.into())),
    }
}

fn message(error: &Error) -> String {
    match error {
        Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

fn unhandled(why: &str) -> String {
    format!("migration encountered unhandled error: {why}")
}

fn shown(id: &ResourceId) -> String {
    format!("{}/{}, Resource={}", id.group, id.version, id.plural)
}
