//! Cases from the schema table and sound objects: every field in every way, every verb with every option.

mod lives;
mod patches;
mod places;
mod reads;
mod values;

use crate::case::{Case, Phase, Request};
use crate::world::Seed;
use places::{Change, Place};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

const OPTIONS: &str = "dryRun=All&fieldManager=differential";
/// Of changed objects, how many more changes are tried together with the first, at random.
const TOGETHER: usize = 2;

/// All cases of a phase, in a fixed order; `more` of those with several changes are drawn by the seed.
pub fn cases(phase: Phase, seeds: &[Seed], seed: u64, more: usize) -> Vec<Case> {
    match phase {
        Phase::Create => {
            let mut out: Vec<Case> = seeds.iter().flat_map(creates).collect();
            out.extend(drawn(seeds, seed, more));
            out
        }
        Phase::Change => {
            let mut out: Vec<Case> = reads::of_all(seeds);
            for seed in seeds.iter().filter(|s| s.kept()) {
                out.extend(reads::of(seed));
                out.extend(updates(seed));
                out.extend(patches::of(seed));
            }
            out
        }
        Phase::Live => seeds.iter().filter(|s| s.kept()).flat_map(lives::of).collect(),
    }
}

fn post(seed: &Seed, body: impl ToString) -> Request {
    let options = if seed.kept() { OPTIONS } else { "" };
    Request::new("POST", format!("{}?{options}", seed.collection())).json(body)
}

fn case(seed: &Seed, what: impl Into<String>, request: Request) -> Case {
    Case {
        kind: seed.kind(),
        what: what.into(),
        steps: vec![request],
    }
}

/// Creates with one thing changed.
fn creates(seed: &Seed) -> Vec<Case> {
    let mut out = vec![case(seed, "create", post(seed, seed.whole()))];
    for mode in ["Strict", "Ignore", "Warn", "Sometimes"] {
        let mut request = post(seed, places::with_unknown_fields(&seed.whole()));
        request.path += &format!("&fieldValidation={mode}");
        out.push(case(seed, format!("create with unknown fields, {mode}"), request));
    }
    for (place, changes) in places::changes(&seed.object, seed) {
        for change in changes {
            let body = change.applied(&seed.object, &place);
            out.push(case(
                seed,
                format!("create {} {}", place.pointer(), change.label),
                post(seed, body),
            ));
        }
    }
    out
}

/// Updates with one thing changed, of the object and of its status.
fn updates(seed: &Seed) -> Vec<Case> {
    let mut out = Vec::new();
    let put = |sub: &str, body: String| Request::new("PUT", format!("{}{sub}?{OPTIONS}", seed.path())).json(body);
    let mut current = seed.object.clone();
    current["metadata"]["resourceVersion"] = Value::from("{rv}");
    out.push(case(seed, "update nothing", put("", current.to_string())));
    for (place, changes) in places::changes(&seed.object, seed) {
        for change in changes {
            let what = format!("update {} {}", place.pointer(), change.label);
            out.push(case(seed, what, put("", change.applied(&current, &place))));
        }
    }
    if seed.has_status() {
        let mut whole = seed.whole();
        whole["metadata"]["resourceVersion"] = Value::from("{rv}");
        out.push(case(seed, "update status", put("/status", whole.to_string())));
        for (place, changes) in places::changes(&whole, seed) {
            if place
                .path
                .first()
                .is_none_or(|k| *k != places::Key::Name("status".into()))
            {
                continue;
            }
            for change in changes {
                let what = format!("update status {} {}", place.pointer(), change.label);
                out.push(case(seed, what, put("/status", change.applied(&whole, &place))));
            }
        }
    }
    out
}

/// Creates with several things changed at once, drawn at random.
fn drawn(seeds: &[Seed], seed: u64, count: usize) -> Vec<Case> {
    let mut rng = StdRng::seed_from_u64(seed);
    let places: Vec<(&Seed, Vec<(Place, Vec<Change>)>)> =
        seeds.iter().map(|s| (s, places::changes(&s.object, s))).collect();
    let total: usize = places.iter().map(|p| p.1.len()).sum();
    let mut out = Vec::new();
    while out.len() < count && total > 0 {
        // A kind is drawn as often as it has places.
        let mut at = rng.random_range(0..total);
        let Some((seed, places)) = places.iter().find(|(_, p)| match at.checked_sub(p.len()) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        }) else {
            continue;
        };
        let mut object = seed.object.clone();
        let mut what = "create".to_string();
        for _ in 0..=rng.random_range(1..=TOGETHER) {
            let (place, changes) = &places[rng.random_range(0..places.len())];
            let change = &changes[rng.random_range(0..changes.len())];
            // An earlier change may have removed what this one is in.
            if let Ok(changed) = serde_json::from_str(&change.applied(&object, place)) {
                object = changed;
                what += &format!(" {} {},", place.pointer(), change.label);
            }
        }
        out.push(case(seed, what, post(seed, &object)));
    }
    out
}
