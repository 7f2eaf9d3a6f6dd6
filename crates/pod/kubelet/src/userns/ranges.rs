//! Who has which range of ids. Pure.

use super::UNIT;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// Ranges of equal length, by number; each has one pod at most.
pub struct Ranges {
    /// Numbers of the ranges that there are.
    all: Range<u32>,
    per_pod: u32,
    by_pod: HashMap<String, u32>,
    taken: HashSet<u32>,
    /// Where the search goes on: a range that was given back rests as long as others are free.
    next: u32,
}

impl Ranges {
    /// Of so many ids from a first one on. What is odd about them is told in upstream's words.
    pub fn new((first, length): (u32, u32), per_pod: u32, pods: u32) -> Result<Ranges, String> {
        if per_pod == 0 || !per_pod.is_multiple_of(UNIT) {
            return Err(format!(
                "kubelet user namespace length {per_pod} is not a multiple of {UNIT}"
            ));
        }
        if !first.is_multiple_of(per_pod) {
            return Err(format!(
                "kubelet user assigned ID {first} is not a multiple of {per_pod}"
            ));
        }
        if first < per_pod {
            return Err(format!(
                "kubelet user assigned ID {first} must be greater or equal to {per_pod}"
            ));
        }
        if !length.is_multiple_of(per_pod) {
            return Err(format!(
                "kubelet user assigned IDs length {length} is not a multiple of {per_pod}"
            ));
        }
        // The kernel maps no range with the last number of all.
        let end = (u64::from(first) + u64::from(length)).min(u64::from(u32::MAX)) / u64::from(per_pod);
        let all = first / per_pod..end as u32;
        if (all.len() as u64) < u64::from(pods) {
            return Err(format!(
                "kubelet user assigned IDs are not enough to support {pods} pods"
            ));
        }
        Ok(Ranges {
            next: all.start,
            all,
            per_pod,
            by_pod: HashMap::new(),
            taken: HashSet::new(),
        })
    }

    pub fn per_pod(&self) -> u32 {
        self.per_pod
    }

    /// The first id of a pod's range.
    pub fn of(&self, uid: &str) -> Option<u32> {
        self.by_pod.get(uid).map(|number| number * self.per_pod)
    }

    /// Takes note of a range that a pod has: its first id and its length.
    pub fn record(&mut self, uid: &str, (first, length): (u32, u32)) -> Result<(), String> {
        if length != self.per_pod {
            return Err(format!("wrong user namespace length {length}"));
        }
        if !first.is_multiple_of(self.per_pod) {
            return Err(format!("wrong user namespace offset specified {first}"));
        }
        let number = first / self.per_pod;
        if !self.all.contains(&number) {
            return Err(format!("id {first} is out of range"));
        }
        match self.by_pod.get(uid) {
            Some(has) if *has == number => return Ok(()),
            Some(_) => return Err(format!("different user namespace range already used by pod \"{uid}\"")),
            None => {}
        }
        if !self.taken.insert(number) {
            return Err(format!("range picked for pod \"{uid}\" already taken"));
        }
        self.by_pod.insert(uid.to_owned(), number);
        Ok(())
    }

    /// Gives a pod a range, of which this is the first id.
    pub fn allocate(&mut self, uid: &str) -> Result<u32, String> {
        if let Some(first) = self.of(uid) {
            return Ok(first);
        }
        let free = (self.next..self.all.end)
            .chain(self.all.start..self.next)
            .find(|number| !self.taken.contains(number))
            .ok_or("could not find an empty slot to allocate a user namespace")?;
        self.next = if free + 1 < self.all.end {
            free + 1
        } else {
            self.all.start
        };
        self.taken.insert(free);
        self.by_pod.insert(uid.to_owned(), free);
        Ok(free * self.per_pod)
    }

    pub fn release(&mut self, uid: &str) {
        if let Some(number) = self.by_pod.remove(uid) {
            self.taken.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn odd_amounts_are_refused() {
        let odd = |ids, per_pod, pods| Ranges::new(ids, per_pod, pods).err().unwrap_or_default();
        assert_eq!(odd((UNIT, 110 * UNIT), UNIT, 110), "");
        assert_eq!(odd((2 * UNIT, 220 * UNIT), 2 * UNIT, 110), "");
        assert!(odd((UNIT + 1, 110 * UNIT), UNIT, 110).contains("is not a multiple of"));
        assert!(odd((0, 110 * UNIT), UNIT, 110).contains("greater or equal"));
        assert!(odd((UNIT, 110 * UNIT), 2 * UNIT, 1).contains("is not a multiple of"));
        assert!(odd((2 * UNIT, 111 * UNIT), 2 * UNIT, 1).contains("length"));
        assert!(odd((UNIT, 109 * UNIT), UNIT, 110).contains("not enough to support 110 pods"));
        assert!(odd((UNIT, UNIT), UNIT + 1, 1).contains("not a multiple of 65536"));
    }

    #[test]
    fn the_last_number_of_all_is_in_no_range() {
        let mut ranges = Ranges::new((UNIT, u32::MAX - UNIT + 1), UNIT, 110).unwrap();
        assert_eq!(ranges.all, 1..65_535);
        assert!(ranges.record("x", (65_535 * UNIT, UNIT)).is_err());
        assert_eq!(ranges.record("x", (65_534 * UNIT, UNIT)), Ok(()));
    }

    #[test]
    fn a_range_that_was_given_back_rests() {
        let mut ranges = Ranges::new((UNIT, 3 * UNIT), UNIT, 3).unwrap();
        assert_eq!(ranges.allocate("a"), Ok(UNIT));
        ranges.release("a");
        assert_eq!(ranges.allocate("b"), Ok(2 * UNIT));
        assert_eq!(ranges.allocate("c"), Ok(3 * UNIT));
        assert_eq!(ranges.allocate("d"), Ok(UNIT));
        assert!(
            ranges
                .allocate("e")
                .unwrap_err()
                .contains("could not find an empty slot")
        );
        assert_eq!(ranges.allocate("c"), Ok(3 * UNIT));
        ranges.release("nobody");
        ranges.release("b");
        assert_eq!(ranges.allocate("e"), Ok(2 * UNIT));
    }

    #[test]
    fn ranges_never_overlap_whatever_comes() {
        for seed in 0..20 {
            let mut random = rand::rngs::StdRng::seed_from_u64(seed);
            let per_pod = UNIT << random.random_range(0..3u32);
            let slots: u32 = random.random_range(1..40);
            let mut ranges = Ranges::new((per_pod, slots * per_pod), per_pod, 1).unwrap();
            let mut model: HashMap<String, u32> = HashMap::new();
            for step in 0..2000 {
                let uid = format!("pod-{}", random.random_range(0..60u32));
                match random.random_range(0..4u32) {
                    0 => {
                        ranges.release(&uid);
                        model.remove(&uid);
                    }
                    1 => {
                        let first = per_pod * random.random_range(0..slots + 2);
                        let before = model.get(&uid).copied();
                        let free = !model.values().any(|f| *f == first);
                        let good = (1..=slots).contains(&(first / per_pod)) && before.map_or(free, |b| b == first);
                        let done = ranges.record(&uid, (first, per_pod));
                        assert_eq!(done.is_ok(), good, "seed {seed}, step {step}");
                        if good {
                            model.insert(uid, first);
                        }
                    }
                    _ => match ranges.allocate(&uid) {
                        Ok(first) => {
                            let before = model.insert(uid, first);
                            assert!(before.is_none_or(|b| b == first), "seed {seed}, step {step}");
                        }
                        Err(_) => assert_eq!(model.len() as u32, slots, "seed {seed}, step {step}"),
                    },
                }
                let firsts: HashSet<u32> = model.values().copied().collect();
                assert_eq!(firsts.len(), model.len(), "seed {seed}, step {step}");
                for (uid, first) in &model {
                    assert_eq!(ranges.of(uid), Some(*first), "seed {seed}, step {step}");
                    assert!(*first >= per_pod && first % per_pod == 0);
                }
            }
        }
    }
}
