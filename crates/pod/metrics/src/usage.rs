//! Usage is the difference between two looks at counters. Pure, but for the clock of the looks.

use jiff::Timestamp;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// A look that is no older answers.
pub const FRESH: Duration = Duration::from_secs(1);
/// The least time between two looks of which a rate is made: processor time of a shorter one says little.
pub const SHORTEST: Duration = Duration::from_secs(1);
/// The most: a rate over a longer one tells of the past.
pub const LONGEST: Duration = Duration::from_secs(60);
/// From then on the last look is what the next one is compared with,
const APART: Duration = Duration::from_secs(5);
/// as it is when what it was compared with itself is older than this: metrics-server's period.
const PERIOD: Duration = Duration::from_secs(15);

/// What a counter said, and how much memory there was.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counted {
    /// Seconds of processor time, since `start` if that is known.
    pub cpu: f64,
    /// Bytes of the working set.
    pub memory: u64,
    /// Seconds since 1970.
    pub start: Option<f64>,
}

/// A kubelet that didn't answer is left alone for so long: whoever asks waits for the slowest.
pub const AFTER_FAILURE: Duration = Duration::from_secs(30);

/// Namespace, pod and container.
pub type Name = (String, String, String);

/// One node at one moment.
#[derive(Clone, Debug)]
pub struct Look {
    pub taken: Instant,
    pub at: Timestamp,
    pub node: Counted,
    pub containers: HashMap<Name, Counted>,
}

/// The two looks at a node that are kept.
#[derive(Debug, Default)]
pub struct Looks {
    base: Option<Look>,
    last: Option<Look>,
    failed: Option<Instant>,
}

/// What was used on average over `window` until `at`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    pub at: Timestamp,
    pub window: Duration,
    /// Cores.
    pub cpu: f64,
    /// Bytes.
    pub memory: u64,
}

impl Looks {
    pub fn add(&mut self, look: Look) {
        let old = |l: &Look| look.taken.duration_since(l.taken);
        let takes_over = |last: &Look| old(last) >= APART || self.base.as_ref().is_none_or(|b| old(b) > PERIOD);
        if self.last.as_ref().is_some_and(takes_over) {
            self.base = self.last.take();
        }
        self.base = self.base.take().filter(|b| old(b) <= LONGEST);
        self.last = Some(look);
        self.failed = None;
    }

    /// Nothing is known any more.
    pub fn fail(&mut self, now: Instant) {
        *self = Looks {
            failed: Some(now),
            ..Looks::default()
        };
    }

    /// Whether there is an answer that is fresh enough, or none to be had.
    pub fn suffice(&self, now: Instant) -> bool {
        if self.failed.is_some_and(|at| now.duration_since(at) < AFTER_FAILURE) {
            return true;
        }
        self.pair().is_some() && self.last.as_ref().is_some_and(|l| now.duration_since(l.taken) <= FRESH)
    }

    fn pair(&self) -> Option<(&Look, &Look)> {
        let (base, last) = (self.base.as_ref()?, self.last.as_ref()?);
        (last.taken.duration_since(base.taken) >= SHORTEST).then_some((base, last))
    }

    pub fn node(&self) -> Option<Usage> {
        let (base, last) = self.pair()?;
        between(&base.node, &last.node, base, last)
    }

    /// Every container of which something is known, by pod.
    pub fn pods(&self) -> HashMap<(&str, &str), Vec<(&str, Usage)>> {
        let mut pods: HashMap<_, Vec<_>> = HashMap::new();
        let Some((base, last)) = self.pair() else {
            return pods;
        };
        for (name, now) in &last.containers {
            let before = match base.containers.get(name) {
                Some(before) if before.start == now.start => *before,
                // Begun since: it has used nothing before.
                _ => Counted {
                    start: now.start,
                    ..Counted::default()
                },
            };
            let (namespace, pod, container) = name;
            let pod = pods.entry((namespace.as_str(), pod.as_str())).or_default();
            pod.extend(between(&before, now, base, last).map(|u| (container.as_str(), u)));
        }
        for containers in pods.values_mut() {
            containers.sort_by_key(|(name, _)| *name);
        }
        pods.retain(|_, containers| !containers.is_empty());
        pods
    }
}

/// None where a counter went back: it is another one by now, and its beginning is not known.
fn between(before: &Counted, now: &Counted, base: &Look, last: &Look) -> Option<Usage> {
    let mut window = last.taken.duration_since(base.taken);
    if let Some(start) = now.start {
        let lived = last.at.as_millisecond() as f64 / 1000.0 - start;
        window = window.min(Duration::try_from_secs_f64(lived).ok()?);
    }
    let used = now.cpu - before.cpu;
    (used >= 0.0 && window >= SHORTEST).then(|| Usage {
        at: last.at,
        window,
        cpu: used / window.as_secs_f64(),
        memory: now.memory,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(after: u64, cpu: f64, containers: &[(&str, f64, f64)]) -> Look {
        let zero = *ZERO.get_or_init(Instant::now);
        Look {
            taken: zero + Duration::from_secs(after),
            at: Timestamp::from_second(1_000 + after as i64).unwrap(),
            node: Counted {
                cpu,
                memory: 7,
                start: None,
            },
            containers: containers
                .iter()
                .map(|(name, cpu, start)| {
                    let counted = Counted {
                        cpu: *cpu,
                        memory: 3,
                        start: Some(*start),
                    };
                    (("ns".into(), "pod".into(), name.to_string()), counted)
                })
                .collect(),
        }
    }
    static ZERO: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();

    fn looks(all: impl IntoIterator<Item = Look>) -> Looks {
        let mut looks = Looks::default();
        all.into_iter().for_each(|l| looks.add(l));
        looks
    }

    #[test]
    fn a_rate_needs_two_looks_that_are_apart() {
        assert!(looks([look(0, 1.0, &[])]).node().is_none());
        assert!(looks([look(0, 1.0, &[]), look(0, 1.0, &[])]).node().is_none());
        let usage = looks([look(0, 1.0, &[]), look(10, 6.0, &[])]).node().unwrap();
        assert_eq!((usage.cpu, usage.window), (0.5, Duration::from_secs(10)));
        assert_eq!(usage.at, Timestamp::from_second(1_010).unwrap());
    }

    #[test]
    fn who_asks_often_gets_a_window_that_is_long_enough_and_not_too_long() {
        for apart in [1, 2, 7, 15] {
            let mut all = looks([look(0, 0.0, &[])]);
            for n in 1..200 {
                all.add(look(n * apart, (n * apart) as f64, &[]));
                let usage = all.node().expect("a rate");
                assert_eq!(usage.cpu, 1.0);
                assert!(
                    usage.window <= PERIOD.max(Duration::from_secs(apart)) && usage.window.as_secs() >= apart,
                    "{usage:?}"
                );
            }
        }
    }

    #[test]
    fn after_a_pause_the_past_is_not_averaged_in() {
        let mut all = looks([look(0, 0.0, &[]), look(10, 0.0, &[]), look(1_000, 50.0, &[])]);
        assert!(all.node().is_none());
        all.add(look(1_001, 50.5, &[]));
        assert_eq!(all.node().unwrap().cpu, 0.5);
    }

    #[test]
    fn containers_that_began_again_count_from_then() {
        let all = looks([
            look(0, 0.0, &[("old", 5.0, 900.0), ("again", 70.0, 900.0)]),
            look(
                10,
                0.0,
                &[("old", 6.0, 900.0), ("again", 4.0, 1_002.0), ("new", 0.5, 1_009.5)],
            ),
        ]);
        let pods = all.pods();
        let cpu: Vec<_> = pods[&("ns", "pod")].iter().map(|(n, u)| (*n, u.cpu)).collect();
        // A half second says too little.
        assert_eq!(cpu, [("again", 0.5), ("old", 0.1)]);
    }

    #[test]
    fn a_kubelet_that_failed_is_asked_again_later() {
        let mut all = looks([look(0, 0.0, &[]), look(10, 1.0, &[])]);
        let failed = look(11, 0.0, &[]).taken;
        all.fail(failed);
        assert!(all.node().is_none());
        assert!(all.suffice(failed + Duration::from_secs(29)));
        assert!(!all.suffice(failed + AFTER_FAILURE));
    }

    #[test]
    fn a_counter_that_went_back_says_nothing() {
        assert!(looks([look(0, 9.0, &[]), look(10, 1.0, &[])]).node().is_none());
    }
}
