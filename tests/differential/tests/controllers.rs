//! Our controllers, over our API server and in virtual time, leave what upstream's left.

use keelson_differential::controllers::drive::Stage;
use keelson_differential::controllers::recorded;
use keelson_differential::controllers::run::{Found, known};
use keelson_differential::controllers::scenario::{self, Scenario};
use keelson_testkit::Cluster;

/// Those that upstream doesn't start by itself.
const OWN: [&str; 5] = [
    "*",
    "-service-lb",
    "-volumesnapshot",
    "-kubelet-serving-approver",
    "-cluster-network-policy",
];

/// Silence and looks at metrics have other times there, and who asks for a certificate is somebody else.
const ELSEWHERE: [&str; 3] = ["node-", "hpa-", "csr-"];

#[tokio::test(start_paused = true)]
async fn ours_leave_what_the_peers_left() -> anyhow::Result<()> {
    let mut scenarios = scenario::all()?;
    let peer = recorded::read(&scenarios, &include_bytes!("../controllers/recorded.jsonl.gz")[..])?;
    let unrecorded: Vec<&String> = scenarios
        .iter()
        .map(|s| &s.name)
        .filter(|name| !peer.contains_key(*name))
        .collect();
    anyhow::ensure!(
        unrecorded.is_empty(),
        "the peer hasn't played these as they are now (tools/differential-controllers.sh record): {unrecorded:?}"
    );
    if let Ok(only) = std::env::var("KEELSON_SCENARIO") {
        scenarios.retain(|s| s.name.starts_with(&only));
    }
    scenarios.retain(|s| !ELSEWHERE.iter().any(|e| s.name.starts_with(e)));
    let mut found = Found::default();
    // A cluster for each sort: what is drawn and when stays in small bounds.
    let sort = |s: &Scenario| s.name.split('-').next().map(str::to_string);
    for some in scenarios.chunk_by(|a, b| sort(a) == sort(b)) {
        let cluster = Cluster::builder().without_scheduler().controllers(&OWN).start().await;
        let mut stage = Stage::set(cluster.kube(), some).await?;
        stage
            .play(some, 32, |scenario, outcome| {
                println!("{} after {:?}", scenario.name, cluster.elapsed());
                found.add(&scenario.name, &outcome, &peer[&scenario.name]);
                Ok(())
            })
            .await?;
    }
    let known = known()?;
    assert!(found.unknown(&known).next().is_none(), "{}", found.text(&known, false));
    Ok(())
}
