//! Ours gives the peer's recorded answers, but for differences that have a reason.

use keelson_differential::recorded;
use keelson_differential::report::Known;
use keelson_differential::run::{Options, run};
use keelson_differential::side::Side;
use regex::Regex;
use std::collections::BTreeMap;
use std::time::Duration;

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

/// What is each server's own is masked: two of ours, started one after the other, answer the same.
#[tokio::test(flavor = "multi_thread")]
async fn two_of_ours_answer_alike() -> anyhow::Result<()> {
    let (one, other) = (Side::ours().await?, Side::ours().await?);
    let work = std::env::temp_dir().join(format!("keelson-alike-{}", std::process::id()));
    let options = Options {
        seed: 2,
        more: 500,
        width: 16,
        // A watch costs a second.
        only: Some(Regex::new(
            ": (create|update|list|get|merge|strategic|JSON|apply|one|delete)",
        )?),
        every: 331,
        work: work.clone(),
        longest: Duration::from_secs(300),
        shrink: false,
    };
    let (text, _) = run(&one, &other, &options).await?;
    std::fs::remove_dir_all(&work)?;
    assert!(text.contains(" 0 differences"), "{text}");
    Ok(())
}
