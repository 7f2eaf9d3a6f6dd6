//! Twelve years, a month at a time: nobody does anything, and nothing ends.

use super::world::{Calendar, Machine, World, all_good, eventually};
use jiff::SignedDuration;
use keelson_pki::succession::Stage;
use std::collections::BTreeMap;

const MONTH: SignedDuration = SignedDuration::from_hours(30 * 24);

#[tokio::test]
async fn authorities_follow_one_another_and_nobody_notices() {
    let mut calendar = Calendar::at("2027-01-01T00:00:00Z");
    let world = World::start("years").await;
    let machine = Machine::join(&world).await;
    let first = world.authorities.standing().unwrap();
    let mut stages: BTreeMap<String, Vec<(Stage, u32)>> = BTreeMap::new();
    for month in 1..=12 * 12 + 2 {
        calendar.pass(MONTH);
        world.look().await;
        let standing = world.authorities.standing().unwrap();
        for (name, standing) in &standing {
            let seen = stages.entry(name.clone()).or_default();
            if seen.last().is_none_or(|(stage, _)| *stage != standing.stage) {
                seen.push((standing.stage, month));
            }
        }
        let bundle = world.authorities.current().get().ca.bundle_pem();
        eventually("pods are told whom to trust", async || {
            match world.published().await == bundle {
                true => Ok(()),
                false => Err(format!("month {month}: not yet")),
            }
        })
        .await;
        machine.knows(&bundle).await;
        machine.renew().await;
        machine.beat().await;
        let (admin, kubelet) = (world.admin(), super::world::LOG);
        assert_eq!(world.code(&admin, "/api/v1/nodes").await, Ok(200), "month {month}");
        eventually("the kubelet lets the server in", async || {
            match world.code(&admin, kubelet).await {
                Ok(200) => Ok(()),
                other => Err(format!("month {month}: {other:?}")),
            }
        })
        .await;
        all_good(&world.dir);
    }
    let last = world.authorities.standing().unwrap();
    for (name, seen) in stages {
        // Two years before the end of ten, for a day, and for four hundred days.
        let (stage, month) = seen[1];
        assert_eq!(
            (stage, (97..=98).contains(&month)),
            (Stage::Announced, true),
            "{name}: {seen:?}"
        );
        let (stage, month) = seen[2];
        assert_eq!(
            (stage, (98..=99).contains(&month)),
            (Stage::Replaced, true),
            "{name}: {seen:?}"
        );
        let (stage, month) = seen[3];
        assert_eq!(
            (stage, (111..=113).contains(&month)),
            (Stage::AtRest, true),
            "{name}: {seen:?}"
        );
        assert_ne!(first[&name].signs, last[&name].signs);
        assert_eq!(last[&name].number, 3);
    }
}
