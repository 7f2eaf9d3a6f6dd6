//! Our controllers, over our API server and in virtual time, leave what upstream's left.

use keelson_differential::controllers::drive::Stage;
use keelson_differential::controllers::recorded;
use keelson_differential::controllers::run::{Found, known};
use keelson_differential::controllers::scenario;
use keelson_testkit::Cluster;

/// Those that upstream doesn't start by itself.
const OWN: [&str; 5] = [
    "*",
    "-service-lb",
    "-volumesnapshot",
    "-kubelet-serving-approver",
    "-cluster-network-policy",
];

#[tokio::test(start_paused = true)]
async fn ours_leave_what_the_peers_left() -> anyhow::Result<()> {
    let mut scenarios = scenario::all()?;
    let peer = recorded::read(&scenarios, &include_bytes!("../controllers/recorded.jsonl.gz")[..])?;
    if let Ok(only) = std::env::var("KEELSON_SCENARIO") {
        scenarios.retain(|s| s.name.starts_with(&only));
    }
    // Silence is told after another time there.
    scenarios.retain(|s| peer.contains_key(&s.name) && !s.name.starts_with("node-"));
    let cluster = Cluster::builder().without_scheduler().controllers(&OWN).start().await;
    let mut stage = Stage::set(cluster.kube(), &scenarios).await?;
    let mut found = Found::default();
    stage
        .play(&scenarios, 32, |scenario, outcome| {
            found.add(&scenario.name, &outcome, &peer[&scenario.name]);
            Ok(())
        })
        .await?;
    let known = known()?;
    assert!(found.unknown(&known).next().is_none(), "{}", found.text(&known, false));
    Ok(())
}
