//! Many writers to one object: whoever wins, nobody's write is lost.

use keelson_client::{Objects, Patch, is_conflict};
use keelson_testkit::objects::{ApiObject, ConfigMap};
use keelson_testkit::{Cluster, secs};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use std::time::Duration;

const WRITERS: u64 = 16;
const WRITES: u64 = 12;
const MAP: &str = "{apiVersion: v1, kind: ConfigMap, metadata: {name: counter}, data: {n: '0'}}";

fn count(map: &ConfigMap, key: &str) -> u64 {
    let data = map.data.iter().flatten();
    let found = data.into_iter().find(|(k, _)| *k == key);
    found.and_then(|(_, v)| v.parse().ok()).unwrap_or_default()
}

/// Adds one, so many times; tells how often another was faster.
async fn add(maps: Objects<ConfigMap>, mut rng: StdRng) -> u64 {
    let mut beaten = 0;
    for _ in 0..WRITES {
        loop {
            let mut map = maps.get("default", "counter").await.expect("the map");
            tokio::time::sleep(Duration::from_micros(rng.random_range(0..3000))).await;
            let next = count(&map, "n") + 1;
            map.data.get_or_insert_default().insert("n".into(), next.to_string());
            match maps.update(&map).await {
                Ok(_) => break,
                Err(error) if is_conflict(&error) => beaten += 1,
                Err(error) => panic!("{error}"),
            }
        }
    }
    beaten
}

#[tokio::test(start_paused = true)]
async fn no_update_is_lost_and_each_is_seen_once() {
    let cluster = Cluster::builder().controllers(&[]).without_scheduler().start().await;
    cluster.apply(MAP).await;
    let history = cluster.history::<ConfigMap>("default").await;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let rng = StdRng::seed_from_u64(cluster.seed() ^ writer);
        tasks.spawn(add(cluster.objects(), rng));
    }
    let beaten: u64 = tasks.join_all().await.into_iter().sum();
    assert!(beaten > WRITES, "they did get in each other's way: {beaten}");
    let all = WRITERS * WRITES;
    let counted = |m: &ConfigMap| count(m, "n") == all;
    let map = cluster
        .until("default", "counter", secs(1), "has every write", counted)
        .await;
    let mut record = history.record().await;
    let seen: Vec<u64> = record.moments.iter().map(|m| count(m.change.object(), "n")).collect();
    assert_eq!(seen, (0..=all).collect::<Vec<_>>(), "watchers see each write, in order");
    let version = |m: &ConfigMap| m.meta().resource_version.clone();
    let last = record.moments.pop().expect("a change").change;
    assert_eq!(version(last.object()), version(&map));
}

/// Patches name no revision: the server itself tries again.
#[tokio::test(start_paused = true)]
async fn no_patch_is_lost() {
    let cluster = Cluster::builder().controllers(&[]).without_scheduler().start().await;
    cluster.apply(MAP).await;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let maps: Objects<ConfigMap> = cluster.objects();
        let mut rng = StdRng::seed_from_u64(cluster.seed() ^ writer);
        tasks.spawn(async move {
            for n in 1..=WRITES {
                let body = json!({"data": {format!("w{writer}"): n.to_string()}});
                let patch = if rng.random() {
                    Patch::Merge(&body)
                } else {
                    Patch::Strategic(&body)
                };
                let patched = maps.patch("default", "counter", patch).await.expect("a patch");
                assert_eq!(count(&patched, &format!("w{writer}")), n);
                tokio::time::sleep(Duration::from_micros(rng.random_range(0..100))).await;
            }
        });
    }
    tasks.join_all().await;
    let map: ConfigMap = cluster.get("default", "counter").await;
    for writer in 0..WRITERS {
        assert_eq!(count(&map, &format!("w{writer}")), WRITES, "writer {writer}");
    }
}
