//! What devices of a pool share: each that is allocated consumes some of it.

use super::pool::Pool;
use super::slice::{Amounts, Device};
use super::state::State;
use keelson_api::Quantity;
use std::collections::BTreeMap;

type Sets = BTreeMap<String, Amounts>;

/// The counters of one pool.
#[derive(Debug)]
pub struct Counters {
    /// What allocated devices leave. It can be less than nothing.
    available: Sets,
    consumed: Sets,
}

impl Counters {
    pub fn of(pool: &Pool, state: &State) -> Counters {
        let mut available = pool.counters.clone();
        let devices = pool
            .slices
            .iter()
            .chain(&pool.elsewhere)
            .flat_map(|slice| &slice.devices);
        for (set, amounts) in devices.filter(|d| state.is_used(&d.id)).flat_map(|d| &d.consumes) {
            for (name, amount) in amounts {
                if let Some(left) = available.get_mut(set).and_then(|set| set.get_mut(name)) {
                    left.sub(*amount);
                }
            }
        }
        Counters {
            available,
            consumed: Sets::new(),
        }
    }

    /// `false`: not enough is left, and nothing is taken.
    pub fn take(&mut self, device: &Device) -> bool {
        self.shift(device, Quantity::add);
        let is_enough = self.available.iter().all(|(set, available)| {
            let consumed = self.consumed.get(set);
            let of = |name: &String| consumed.and_then(|c| c.get(name)).copied().unwrap_or(Quantity::ZERO);
            available.iter().all(|(name, amount)| of(name) <= *amount)
        });
        if !is_enough {
            self.give_back(device);
        }
        is_enough
    }

    pub fn give_back(&mut self, device: &Device) {
        self.shift(device, Quantity::sub);
    }

    fn shift(&mut self, device: &Device, by: fn(&mut Quantity, Quantity)) {
        for (set, amounts) in &device.consumes {
            let consumed = self.consumed.entry(set.clone()).or_default();
            for (name, amount) in amounts {
                by(consumed.entry(name.clone()).or_default(), *amount);
            }
        }
    }
}
