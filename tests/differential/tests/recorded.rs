//! Ours gives the peer's recorded answers, but for differences that have a reason.

use keelson_differential::recorded;
use keelson_differential::report::Known;
use keelson_differential::side::Side;
use std::collections::BTreeMap;

#[tokio::test(flavor = "multi_thread")]
async fn ours_answers_as_the_peer_did() -> anyhow::Result<()> {
    let ours = Side::ours().await?;
    let groups = recorded::replay(&ours, &include_bytes!("../recorded.jsonl.gz")[..]).await?;
    let known = Known::read()?;
    assert!(groups.compared > 2500, "only {} cases are recorded", groups.compared);
    assert!(
        groups.unknown(&known).is_empty(),
        "{}",
        groups.text(&known, &BTreeMap::new())
    );
    Ok(())
}
