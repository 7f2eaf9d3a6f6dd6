//! Our scheduler, over our API server and in virtual time, decides and tells what upstream's did.

use keelson_differential::controllers::recorded;
use keelson_differential::controllers::run::Found;
use keelson_differential::scheduler::drive::Stage;
use keelson_differential::scheduler::run::known;
use keelson_differential::scheduler::scenario::{self, CONFIGURATION};
use keelson_testkit::Cluster;

#[tokio::test(start_paused = true)]
async fn ours_decides_what_the_peer_decided() -> anyhow::Result<()> {
    let mut scenarios = scenario::all()?;
    let peer = recorded::read(&scenarios, &include_bytes!("../scheduler/recorded.jsonl.gz")[..])?;
    let unrecorded = scenarios
        .iter()
        .map(|s| &s.name)
        .filter(|name| !peer.contains_key(*name));
    let unrecorded: Vec<&String> = unrecorded.collect();
    anyhow::ensure!(
        unrecorded.is_empty(),
        "the peer hasn't played these as they are now (tools/differential-scheduler.sh record): {unrecorded:?}"
    );
    if let Ok(only) = std::env::var("KEELSON_SCENARIO") {
        scenarios.retain(|s| s.name.starts_with(&only));
    }
    let mut found = Found::default();
    let cluster = Cluster::builder()
        .controllers(&[])
        .scheduling(CONFIGURATION)
        .start()
        .await;
    let mut stage = Stage::set(cluster.kube()).await?;
    stage
        .play(scenarios.iter(), |scenario, outcome| {
            println!("{} after {:?}", scenario.name, cluster.elapsed());
            found.add(&scenario.name, &outcome, &peer[&scenario.name]);
            Ok(())
        })
        .await?;
    let known = known()?;
    assert!(found.unknown(&known).next().is_none(), "{}", found.text(&known, false));
    Ok(())
}
