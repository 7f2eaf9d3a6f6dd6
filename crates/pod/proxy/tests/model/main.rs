//! Random services, endpoints and packets: what the rules do with a packet, read by a small interpreter of them, is what a
//! reference evaluator says from the API objects. `SEED` repeats a run.

#![allow(clippy::unwrap_used)]

mod interpret;
mod random;
mod reference;

use keelson_client::ObjectKey;
use keelson_proxy::model::{self, Here};
use keelson_proxy::plan::Planner;
use keelson_sys::nft::Family;
use random::Random;
use std::collections::BTreeSet;

const WORLDS: usize = 300;
const PACKETS: usize = 40;
/// Every endpoint of up to five is drawn by some of them.
const DRAWS: u64 = 60;

#[test]
fn rules_send_packets_where_the_reference_does() {
    let given = std::env::var("SEED").ok().and_then(|s| s.parse().ok());
    let seed = given.unwrap_or_else(|| u64::from(std::process::id()));
    println!("SEED={seed}");
    let mut random = Random(seed.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(3_037_000_493));
    let here = |family| Here {
        node: reference::HERE.into(),
        family,
        zone: reference::ZONE.into(),
        internal: vec![interpret::told(interpret::NODE[0], family)],
        external: Vec::new(),
    };
    let mut seen: BTreeSet<&'static str> = BTreeSet::new();
    for n in 0..WORLDS {
        let family = if n % 2 == 0 { Family::Ip } else { Family::Ip6 };
        let here = here(family);
        let range = |text: &str| interpret::told_range(text.parse().unwrap(), family);
        let world = random::world(&mut random);
        let mut planner = Planner::new(range("10.244.0.0/16"));
        planner.set_ranges([range("10.96.0.0/16")].into());
        for service in &world.services {
            let facts = model::read(&service.object(family), &[service.slice(family)], &here);
            planner.set(&ObjectKey::new("shop", service.name.clone()), facts);
        }
        let rules = interpret::table(&planner.take_whole());
        for _ in 0..PACKETS {
            let packet = random::packet(&mut random, &world);
            let draws = (0..DRAWS).map(|n| interpret::run(family, &rules, &packet, n * 1_000_000 / DRAWS));
            let got: BTreeSet<_> = draws.collect();
            let wanted = reference::outcomes(&world, &packet);
            let objects = || {
                let all = world.services.iter();
                let all: Vec<_> = all
                    .map(|s| serde_json::json!([s.object(family), s.slice(family).endpoints]))
                    .collect();
                serde_json::to_string_pretty(&all).unwrap()
            };
            assert_eq!(got, wanted, "SEED={seed}\n{packet:?}\n{}", objects());
            seen.extend(wanted.iter().map(|outcome| match outcome {
                interpret::Outcome::Pass => "pass",
                interpret::Outcome::To(_, _, true) => "masqueraded",
                interpret::Outcome::To(_, _, false) => "kept",
                interpret::Outcome::Drop => "dropped",
                interpret::Outcome::Reject => "refused",
            }));
        }
    }
    assert_eq!(seen.len(), 5, "every kind of outcome was tried: {seen:?}");
}
