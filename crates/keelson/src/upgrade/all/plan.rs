//! Who is asked next, from what all machines say: servers before agents, one after the other, and nobody after one that isn't well.
//! Nothing here asks anybody.
//!
//! How far an upgrade is isn't kept anywhere: it is what the machines run. So whoever goes on with one that was cut short begins with
//! what is so, and with those who are still at it ([`carried`]).

use super::order::{Answer, Ask, Order, State, Verb};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;

/// Beside the time that a machine has for going forth, and the same for going back: to fetch the program, and to judge.
const BESIDE: SignedDuration = SignedDuration::from_secs(120);
/// What is too old by a machine's own clock it passes over.
const LATE: &str = "it didn't begin in time: it is away, or its clock and this machine's differ by minutes";

/// How a machine stands to the order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Waits,
    /// Nothing was heard of it yet.
    Asked,
    UnderWay,
    Done,
    Ill(String),
}

impl Standing {
    pub fn is_under_way(&self) -> bool {
        matches!(self, Standing::Asked | Standing::UnderWay)
    }
}

/// What is known of one machine.
pub struct Facts<'a> {
    pub target: &'a str,
    /// The sum of what it runs.
    pub runs: &'a str,
    pub ask: Option<&'a Ask>,
    pub answer: Option<&'a Answer>,
    pub timeout: SignedDuration,
    pub now: Timestamp,
}

pub fn standing(facts: &Facts<'_>) -> Standing {
    let Some(ask) = facts.ask else {
        return match facts.runs == facts.target {
            true => Standing::Done,
            false => Standing::Waits,
        };
    };
    let Some(answer) = facts.answer.filter(|answer| answer.id == ask.id) else {
        return match facts.now > ask.until {
            true => Standing::Ill(LATE.into()),
            false => Standing::Asked,
        };
    };
    let late = facts.now > ask.until + facts.timeout * 2 + BESIDE;
    match (answer.state, ask.verb) {
        (State::Ill, _) => Standing::Ill(answer.why.clone()),
        (State::Well, Verb::Take) if facts.runs != facts.target && late => {
            Standing::Ill("it says that all is well, and runs another program".into())
        }
        // It tells what it runs a moment later.
        (State::Well, Verb::Take) if facts.runs != facts.target => Standing::UnderWay,
        (State::Well, _) => Standing::Done,
        (State::UnderWay | State::Unknown, _) if late => Standing::Ill("it doesn't say how it went".into()),
        (State::UnderWay | State::Unknown, _) => Standing::UnderWay,
    }
}

#[derive(Clone, Debug)]
pub struct Seen {
    pub name: String,
    pub server: bool,
    /// Whether its node is Ready.
    pub ready: bool,
    pub standing: Standing,
}

/// How many at a time.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// And servers one by one; otherwise it doesn't matter who is what.
    pub servers_first: bool,
    pub at_once: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    Ask(Vec<String>),
    Wait,
    /// These had their turn and aren't Ready any more: nobody is asked before they are.
    Settle(Vec<String>),
    /// These aren't well, for the reasons that follow their names.
    Stop(Vec<String>),
    Done,
}

pub fn next(all: &[Seen], pace: Pace) -> Next {
    let under_way = all.iter().filter(|m| m.standing.is_under_way()).count();
    let ill = all.iter().filter_map(|m| match &m.standing {
        Standing::Ill(why) => Some(format!("{}: {why}", m.name)),
        _ => None,
    });
    let ill: Vec<String> = ill.collect();
    if !ill.is_empty() {
        return if under_way > 0 { Next::Wait } else { Next::Stop(ill) };
    }
    let servers = pace.servers_first && all.iter().any(|m| m.server && m.standing != Standing::Done);
    let at_once = if servers { 1 } else { pace.at_once.max(1) };
    let turn = |m: &&Seen| m.standing == Standing::Waits && (m.server || !servers);
    let room = at_once.saturating_sub(under_way);
    let asked: Vec<String> = all.iter().filter(turn).take(room).map(|m| m.name.clone()).collect();
    if asked.is_empty() {
        return if under_way > 0 { Next::Wait } else { Next::Done };
    }
    let unsettled = all.iter().filter(|m| m.standing == Standing::Done && !m.ready);
    let unsettled: Vec<String> = unsettled.map(|m| m.name.clone()).collect();
    match unsettled.is_empty() {
        true => Next::Ask(asked),
        false => Next::Settle(unsettled),
    }
}

/// What of an order of before still goes on: machines that are at it, or may begin yet. An error if they are at something else.
/// `standings`: of the machines, by that order.
pub fn carried(
    before: Option<&Order>,
    target: &str,
    standings: &BTreeMap<String, Standing>,
) -> anyhow::Result<BTreeMap<String, Ask>> {
    let Some(before) = before else {
        return Ok(BTreeMap::new());
    };
    let goes_on = |(name, ask): &(&String, &Ask)| {
        ask.verb != Verb::Judge && standings.get(*name).is_some_and(Standing::is_under_way)
    };
    let kept: BTreeMap<String, Ask> = before
        .asks
        .iter()
        .filter(goes_on)
        .map(|(name, ask)| (name.clone(), ask.clone()))
        .collect();
    if let Some((name, _)) = kept.first_key_value()
        && before.sha256 != target
    {
        anyhow::bail!("{name} is being upgraded to another program: wait until that has ended");
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "new";

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn ask(verb: Verb) -> Ask {
        Ask {
            id: "x".into(),
            verb,
            until: at(60),
        }
    }

    #[test]
    fn a_machine_stands_where_it_says_and_silence_ends() {
        let stands = |verb: Option<Verb>, state: Option<(&str, State)>, runs: &str, now: i64| {
            let ask = verb.map(ask);
            let answer = state.map(|(id, state)| Answer {
                id: id.into(),
                state,
                why: "why".into(),
            });
            standing(&Facts {
                target: TARGET,
                runs,
                ask: ask.as_ref(),
                answer: answer.as_ref(),
                timeout: SignedDuration::from_secs(300),
                now: at(now),
            })
        };
        let ill = |why: &str| Standing::Ill(why.into());
        let take = Some(Verb::Take);
        assert_eq!(stands(None, None, "old", 0), Standing::Waits);
        assert_eq!(
            stands(None, Some(("y", State::Ill)), TARGET, 0),
            Standing::Done,
            "what others asked is over"
        );
        assert_eq!(stands(take, None, "old", 60), Standing::Asked);
        assert_eq!(stands(take, Some(("y", State::Well)), "old", 60), Standing::Asked);
        assert_eq!(stands(take, None, "old", 61), ill(LATE));
        assert_eq!(
            stands(take, Some(("x", State::UnderWay)), "old", 700),
            Standing::UnderWay
        );
        assert_eq!(
            stands(take, Some(("x", State::Unknown)), "old", 700),
            Standing::UnderWay
        );
        assert_eq!(
            stands(take, Some(("x", State::UnderWay)), "old", 800),
            ill("it doesn't say how it went")
        );
        assert_eq!(stands(take, Some(("x", State::Well)), "old", 70), Standing::UnderWay);
        assert_eq!(stands(take, Some(("x", State::Well)), TARGET, 70), Standing::Done);
        assert!(matches!(
            stands(take, Some(("x", State::Well)), "old", 800),
            Standing::Ill(_)
        ));
        assert_eq!(stands(take, Some(("x", State::Ill)), "old", 70), ill("why"));
        assert_eq!(
            stands(Some(Verb::Judge), Some(("x", State::Well)), "old", 70),
            Standing::Done
        );
    }

    /// Machines, and what one run of the command has asked of them.
    struct World {
        machines: Vec<(Seen, &'static str)>,
        order: Option<Order>,
        /// How often each was exchanged.
        taken: BTreeMap<String, u32>,
        drawn: u64,
    }

    impl World {
        fn new(servers: usize, agents: usize) -> World {
            let machine = |n: usize, server: bool| {
                let name = format!("{}{n}", if server { "s" } else { "a" });
                let standing = Standing::Waits;
                let seen = Seen {
                    name,
                    server,
                    ready: true,
                    standing,
                };
                (seen, "old")
            };
            let servers = (0..servers).map(|n| machine(n, true));
            World {
                // Agents come first by name.
                machines: (0..agents).map(|n| machine(n, false)).chain(servers).collect(),
                order: None,
                taken: BTreeMap::new(),
                drawn: 7,
            }
        }
        fn draw(&mut self, bound: usize) -> usize {
            self.drawn = self
                .drawn
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.drawn >> 33) as usize % bound
        }
        fn seen(&self) -> Vec<Seen> {
            self.machines.iter().map(|(seen, _)| seen.clone()).collect()
        }
        fn asks(&mut self) -> &mut BTreeMap<String, Ask> {
            &mut self.order.as_mut().expect("an order").asks
        }
        /// A command begins: what went on before goes on, the rest stands by what runs.
        fn begin(&mut self) {
            let standings: BTreeMap<_, _> = self.seen().into_iter().map(|m| (m.name, m.standing)).collect();
            let asks = carried(self.order.as_ref(), TARGET, &standings).unwrap();
            for (seen, runs) in &mut self.machines {
                if !asks.contains_key(&seen.name) {
                    seen.standing = if *runs == TARGET {
                        Standing::Done
                    } else {
                        Standing::Waits
                    };
                }
            }
            self.order = Some(Order {
                sha256: TARGET.into(),
                size: 1,
                timeout_seconds: 300,
                asks,
            });
        }
        /// Some machine that was asked comes one step further.
        fn go(&mut self, ill: Option<&str>) {
            let busy: Vec<usize> = (0..self.machines.len())
                .filter(|n| self.machines[*n].0.standing.is_under_way())
                .collect();
            if busy.is_empty() {
                return;
            }
            let n = busy[self.draw(busy.len())];
            let (seen, runs) = &mut self.machines[n];
            seen.standing = match seen.standing {
                Standing::Asked => Standing::UnderWay,
                _ if ill == Some(&seen.name) => Standing::Ill("returned".into()),
                _ => {
                    *runs = TARGET;
                    *self.taken.entry(seen.name.clone()).or_default() += 1;
                    Standing::Done
                }
            };
            self.holds();
        }
        fn holds(&self) {
            let busy: Vec<&Seen> = self
                .machines
                .iter()
                .map(|(m, _)| m)
                .filter(|m| m.standing.is_under_way())
                .collect();
            let servers = busy.iter().filter(|m| m.server).count();
            assert!(servers <= 1 && (servers == 0 || busy.len() == 1), "{busy:?}");
            assert!(busy.len() <= 2, "{busy:?}");
            let old = self.machines.iter().any(|(m, runs)| m.server && *runs == "old");
            assert!(!old || busy.iter().all(|m| m.server), "an agent before all servers");
        }
        /// One command, which is killed after so many steps.
        fn run(&mut self, steps: usize, ill: Option<&str>) -> Next {
            self.begin();
            let pace = Pace {
                servers_first: true,
                at_once: 2,
            };
            for _ in 0..steps {
                match next(&self.seen(), pace) {
                    Next::Ask(names) => {
                        for name in names {
                            self.asks().insert(name.clone(), ask(Verb::Take));
                            let found = self.machines.iter_mut().find(|(m, _)| m.name == name).unwrap();
                            assert_eq!(found.0.standing, Standing::Waits);
                            found.0.standing = Standing::Asked;
                        }
                        self.holds();
                    }
                    Next::Wait => self.go(ill),
                    other => return other,
                }
            }
            Next::Wait
        }
    }

    #[test]
    fn the_command_may_end_at_any_moment_and_is_gone_on_with() {
        for cut in 0..40 {
            let mut world = World::new(3, 5);
            world.drawn += cut as u64;
            assert!(matches!(world.run(cut, None), Next::Wait | Next::Done));
            // Machines go on without it.
            (0..cut % 4).for_each(|_| world.go(None));
            assert!(matches!(world.run(cut / 2, None), Next::Wait | Next::Done));
            assert_eq!(world.run(1000, None), Next::Done, "cut after {cut} steps");
            assert!(world.machines.iter().all(|(_, runs)| *runs == TARGET));
            assert!(
                world.taken.len() == 8 && world.taken.values().all(|times| *times == 1),
                "{:?}",
                world.taken
            );
        }
    }

    #[test]
    fn it_stops_at_the_first_that_is_not_well_and_is_asked_again() {
        for (ill, done) in [("s1", 1), ("a0", 4)] {
            let mut world = World::new(3, 5);
            let Next::Stop(lines) = world.run(1000, Some(ill)) else {
                panic!("it doesn't stop")
            };
            assert_eq!(lines, [format!("{ill}: returned")]);
            // Who was under way beside it came to an end.
            assert!((done..=done + 1).contains(&world.taken.len()), "{:?}", world.taken);
            assert!(world.machines.iter().all(|(m, _)| !m.standing.is_under_way()));
            assert_eq!(world.run(1000, None), Next::Done);
            assert!(
                world.taken.len() == 8 && world.taken.values().all(|times| *times == 1),
                "{:?}",
                world.taken
            );
        }
    }

    #[test]
    fn nobody_is_asked_while_one_that_was_is_not_ready() {
        let mut world = World::new(1, 2);
        let pace = Pace {
            servers_first: true,
            at_once: 1,
        };
        world.machines[2].0.standing = Standing::Done;
        world.machines[2].0.ready = false;
        assert_eq!(next(&world.seen(), pace), Next::Settle(vec!["s0".into()]));
        world.machines[2].0.ready = true;
        assert_eq!(next(&world.seen(), pace), Next::Ask(vec!["a0".into()]));
        let all = Pace {
            servers_first: false,
            at_once: 10,
        };
        world.machines[2].0.standing = Standing::Waits;
        let Next::Ask(names) = next(&world.seen(), all) else {
            panic!("all are judged at once")
        };
        assert_eq!(names.len(), 3);
    }

    #[test]
    fn another_program_waits_until_machines_have_ended_with_theirs() {
        let order = |verb| Order {
            sha256: "other".into(),
            size: 1,
            timeout_seconds: 300,
            asks: BTreeMap::from([("n".to_owned(), ask(verb))]),
        };
        let standings = |standing| BTreeMap::from([("n".to_owned(), standing)]);
        let under_way = standings(Standing::UnderWay);
        assert!(carried(Some(&order(Verb::Take)), TARGET, &under_way).is_err());
        assert!(
            carried(Some(&order(Verb::Judge)), TARGET, &under_way)
                .unwrap()
                .is_empty()
        );
        assert!(
            carried(Some(&order(Verb::Take)), TARGET, &standings(Standing::Waits))
                .unwrap()
                .is_empty()
        );
        assert_eq!(carried(Some(&order(Verb::Take)), "other", &under_way).unwrap().len(), 1);
    }
}
