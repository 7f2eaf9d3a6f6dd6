//! An upgrade as steps, and what a start makes of one that was cut short between any two of them. Nothing here touches the machine.
//!
//! The program that is to come lies beside the one that runs (`next`), and the one that was stays there (`previous`): it is the way
//! back, and it is who judges at each start, since nobody knows yet what the new one can. Each step is one rename, or one note in the
//! journal that is on disk before the next step.

use serde::{Deserialize, Serialize};

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Nothing that runs has changed.
    Begun,
    /// The new program is in its place, or about to be; nobody has said yet that it is well.
    Trial,
    Confirmed,
    /// The old program is coming back.
    Returning,
    Returned,
    /// It ended before the new program had its place.
    Abandoned,
    /// Of a later version: no business of this one.
    #[serde(other)]
    Unknown,
}

/// What is done, in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Note(Phase),
    /// `previous` is the program that runs.
    KeepOld,
    /// `next` takes its place.
    PutNew,
    /// `previous` takes its place again, and stays.
    PutOld,
    /// The store as it was before.
    RestoreStore,
    /// `next` goes.
    ClearNew,
    /// `previous` goes.
    ClearOld,
}

use Step::{ClearNew, ClearOld, KeepOld, Note, PutNew, PutOld, RestoreStore};

pub const FORTH: [Step; 4] = [Note(Phase::Begun), KeepOld, Note(Phase::Trial), PutNew];

/// `store`: the new program keeps the store in a form that the old one doesn't read.
pub fn back(store: bool) -> Vec<Step> {
    let restore = store.then_some(RestoreStore);
    [Note(Phase::Returning), PutOld]
        .into_iter()
        .chain(restore)
        .chain([Note(Phase::Returned), ClearNew, ClearOld])
        .collect()
}

const ABANDON: [Step; 3] = [Note(Phase::Abandoned), ClearNew, ClearOld];

/// What has the program's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    Old,
    New,
    /// Somebody put it there by hand.
    Other,
    Nothing,
}

/// What is to be done before the service starts. `attended`: whoever upgrades still looks after it.
pub fn at_start(phase: Phase, placed: Placed, way_back: bool, store: bool, attended: bool) -> Vec<Step> {
    if attended {
        return Vec::new();
    }
    match (phase, placed) {
        (Phase::Confirmed | Phase::Returned | Phase::Abandoned | Phase::Unknown, _) => Vec::new(),
        (Phase::Begun | Phase::Trial, Placed::Old | Placed::Other) => ABANDON.to_vec(),
        // What was done by hand is left alone; the store isn't theirs to lose.
        (Phase::Returning, Placed::Other) => ABANDON.to_vec(),
        _ if way_back => back(store),
        // Nobody is left but the new one.
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine as far as upgrades concern it.
    #[derive(Clone, Debug, PartialEq)]
    struct World {
        phase: Option<Phase>,
        place: &'static str,
        next: bool,
        previous: Option<&'static str>,
        /// Which program's form the store has.
        store: &'static str,
    }

    impl World {
        fn new() -> World {
            World {
                phase: None,
                place: "old",
                next: true,
                previous: None,
                store: "old",
            }
        }
        fn apply(&mut self, step: Step) {
            match step {
                Note(phase) => self.phase = Some(phase),
                KeepOld => self.previous = Some(self.place),
                PutNew => {
                    assert!(self.next, "there is nothing to put");
                    (self.place, self.next) = ("new", false);
                }
                PutOld => self.place = self.previous.expect("the way back is there"),
                RestoreStore => self.store = "old",
                ClearNew => self.next = false,
                ClearOld => self.previous = None,
            }
        }
        fn at_start(&self, store: bool) -> Vec<Step> {
            let placed = match self.place {
                "old" => Placed::Old,
                _ => Placed::New,
            };
            let way_back = self.previous == Some("old");
            self.phase
                .map_or_else(Vec::new, |phase| at_start(phase, placed, way_back, store, false))
        }
        /// The program starts, and brings its store into its form, if it has another one.
        fn start(&mut self, store: bool) {
            assert!(
                self.place == "new" || self.store == "old",
                "the old program meets a store it can't read"
            );
            if store {
                self.store = self.place;
            }
        }
    }

    /// Cuts the power after each step of what a start does, starting anew each time, and at last lets it end.
    fn settles(world: &World, store: bool) -> World {
        let steps = world.at_start(store);
        for cut in 1..steps.len() {
            let mut cut_short = world.clone();
            steps[..cut].iter().for_each(|step| cut_short.apply(*step));
            settles_plainly(cut_short, store);
        }
        settles_plainly(world.clone(), store)
    }

    fn settles_plainly(mut world: World, store: bool) -> World {
        for step in world.at_start(store) {
            world.apply(step);
        }
        assert_eq!(world.at_start(store), [], "it comes to rest: {world:?}");
        world.start(store);
        world
    }

    #[test]
    fn power_may_go_at_any_moment_of_an_upgrade() {
        for store in [false, true] {
            for cut in 0..=FORTH.len() {
                let mut world = World::new();
                FORTH[..cut].iter().for_each(|step| world.apply(*step));
                let after = settles(&world, store);
                assert_eq!((after.place, after.store), ("old", "old"), "cut after {cut} steps");
                let phase = match cut {
                    0 => None,
                    4 => Some(Phase::Returned),
                    _ => Some(Phase::Abandoned),
                };
                assert_eq!(after.phase, phase, "cut after {cut} steps");
                // It ran for a while, and nobody confirmed it.
                if cut == FORTH.len() && store {
                    world.start(store);
                    assert_eq!(settles(&world, store).store, "old");
                }
            }
        }
    }

    #[test]
    fn power_may_go_at_any_moment_of_a_return() {
        for store in [false, true] {
            for cut in 0..=back(store).len() {
                let mut world = World::new();
                FORTH.iter().for_each(|step| world.apply(*step));
                world.apply(Note(Phase::Confirmed));
                world.start(store);
                back(store)[..cut].iter().for_each(|step| world.apply(*step));
                let after = settles(&world, store);
                match cut {
                    0 => assert_eq!((after.place, after.phase), ("new", Some(Phase::Confirmed))),
                    _ if store => assert_eq!((after.place, after.store), ("old", "old"), "cut after {cut} steps"),
                    _ => assert_eq!(after.place, "old", "cut after {cut} steps"),
                }
            }
        }
    }

    #[test]
    fn a_start_leaves_alone_what_is_attended_settled_unknown_or_done_by_hand() {
        let placed = [Placed::Old, Placed::New, Placed::Other, Placed::Nothing];
        let phases = [Phase::Begun, Phase::Trial, Phase::Returning];
        for placed in placed {
            for phase in phases {
                assert_eq!(at_start(phase, placed, true, true, true), []);
            }
            for phase in [Phase::Confirmed, Phase::Returned, Phase::Abandoned, Phase::Unknown] {
                assert_eq!(at_start(phase, placed, true, true, false), []);
            }
        }
        for phase in phases {
            assert_eq!(at_start(phase, Placed::Other, true, true, false), ABANDON);
            // Whoever took the program away: the old one is there.
            assert_eq!(at_start(phase, Placed::Nothing, true, false, false), back(false));
            assert_eq!(at_start(phase, Placed::New, false, false, false), []);
        }
    }

    #[test]
    fn a_phase_of_a_later_version_is_read() {
        assert_eq!(serde_json::from_str::<Phase>("\"paused\"").unwrap(), Phase::Unknown);
        assert_eq!(serde_json::to_string(&Phase::Trial).unwrap(), "\"trial\"");
    }
}
