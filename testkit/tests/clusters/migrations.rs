//! Objects that are stored in a former version are written anew when a migration asks for it.

use k8s_openapi::api::storagemigration::v1::StorageVersionMigration;
use keelson_client::{PartialObject, ResourceId};
use keelson_testkit::objects::ApiObject;
use keelson_testkit::{Cluster, secs};
use serde_json::{Value, json};

const TABS: ResourceId = ResourceId::fixed("example.com", "v1", "Tab", "tabs", true);

fn definition(stored: &str) -> String {
    let version = |name: &str| {
        json!({
            "name": name, "served": true, "storage": name == stored,
            "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
        })
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "tabs.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "tabs", "singular": "tab", "kind": "Tab", "listKind": "TabList"},
            "versions": [version("v1"), version("v2")],
        },
    })
    .to_string()
}

fn migration(name: &str, group: &str, resource: &str) -> String {
    json!({
        "apiVersion": "storagemigration.k8s.io/v1", "kind": "StorageVersionMigration", "metadata": {"name": name},
        "spec": {"resource": {"group": group, "resource": resource}},
    })
    .to_string()
}

fn told(migration: &StorageVersionMigration, kind: &str) -> Option<(String, String)> {
    let conditions = migration.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let found = conditions.into_iter().find(|c| c.type_ == kind);
    found.map(|c| (c.status.clone(), c.message.clone()))
}

async fn definition_now(cluster: &Cluster) -> Value {
    let rest = cluster.objects::<StorageVersionMigration>().rest().clone();
    let body = rest
        .get_raw(&ResourceId::DEFINITIONS, "", "tabs.example.com", "", "application/json")
        .await;
    serde_json::from_slice(&body.expect("the definition")).expect("JSON")
}

async fn revisions(cluster: &Cluster) -> Vec<String> {
    let mut found = Vec::new();
    let mut each = |item: &[u8]| {
        let metadata = PartialObject::decode(item).expect("an object").metadata;
        found.push(metadata.resource_version.unwrap_or_default());
        Ok(())
    };
    let rest = cluster.objects::<StorageVersionMigration>().rest().clone();
    let listed = rest.list_raw(&TABS, "", "", "", "application/json", &mut each).await;
    listed.expect("a list");
    found
}

#[tokio::test(start_paused = true)]
async fn a_definitions_former_version_can_go_when_its_objects_have_been_written_anew() {
    let cluster = Cluster::builder()
        .nodes(0)
        .controllers(&["storage-version-migrator"])
        .without_scheduler()
        .start()
        .await;
    cluster.apply(&definition("v1")).await;
    let rest = cluster.objects::<StorageVersionMigration>().rest().clone();
    for n in 0..3 {
        let tab = json!({"apiVersion": "example.com/v1", "kind": "Tab", "metadata": {"name": format!("t{n}")}});
        cluster
            .eventually("tabs are served", secs(30), async || {
                let created = rest.create_raw(&TABS, "default", tab.to_string().into_bytes()).await;
                created.map(drop).map_err(|e| e.to_string())
            })
            .await;
    }
    cluster.apply(&definition("v2")).await;
    cluster
        .eventually("both versions are stored", secs(30), async || {
            let stored = definition_now(&cluster).await["status"]["storedVersions"].clone();
            if stored == json!(["v1", "v2"]) {
                Ok(())
            } else {
                Err(stored.to_string())
            }
        })
        .await;
    let before = revisions(&cluster).await;

    cluster.apply(&migration("first", "example.com", "tabs")).await;
    cluster.apply(&migration("second", "example.com", "tabs")).await;
    for (name, message) in [("first", "Migration completed"), ("second", "Migration completed")] {
        let done: StorageVersionMigration = cluster
            .until("", name, secs(60), "is over", |m| {
                told(m, "Running").is_some_and(|(status, _)| status == "False")
            })
            .await;
        assert_eq!(
            told(&done, "Succeeded"),
            Some(("True".into(), message.into())),
            "{name}"
        );
    }
    let after = revisions(&cluster).await;
    assert_eq!(after.len(), 3);
    assert!(
        before.iter().all(|revision| !after.contains(revision)),
        "{before:?} {after:?}"
    );
    let now = definition_now(&cluster).await;
    assert_eq!(now["status"]["storedVersions"], json!(["v2"]));
    let conditions = now["status"]["conditions"].as_array().expect("conditions");
    let migrating = conditions
        .iter()
        .find(|c| c["type"] == "StorageMigrating")
        .expect("what is told of it");
    assert_eq!(
        (&migrating["status"], &migrating["reason"]),
        (&json!("False"), &json!("MigrationSucceeded"))
    );
    // Nothing was left to be written for the second.
    assert_eq!(revisions(&cluster).await, after);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_migrated_is_said() {
    let cluster = Cluster::builder()
        .nodes(0)
        .controllers(&["storage-version-migrator"])
        .without_scheduler()
        .start()
        .await;
    for (group, resource, message) in [
        ("example.com", "absents", "resource does not exist in discovery"),
        (
            "authorization.k8s.io",
            "subjectaccessreviews",
            "resource \"authorization.k8s.io/v1, Resource=subjectaccessreviews\" does not support discovery operations: [update patch list]",
        ),
    ] {
        cluster.apply(&migration(resource, group, resource)).await;
        let done: StorageVersionMigration = cluster
            .until("", resource, secs(400), "has failed", |m| told(m, "Failed").is_some())
            .await;
        assert_eq!(told(&done, "Failed"), Some(("True".into(), message.into())));
    }
}
