//! Selectors compiled once: few are in use, each by many claims.

use super::slice::Device;
use keelson_machinery::cel::device::{self, Selector, explained};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// So many are kept; beyond, all are forgotten.
const MOST: usize = 1_000;

type Compiled = Arc<Result<Selector, String>>;

#[derive(Default)]
pub struct Selectors(Mutex<HashMap<String, Compiled>>);

impl Selectors {
    fn get(&self, expression: &str) -> Compiled {
        let mut known = self.0.lock();
        if let Some(compiled) = known.get(expression) {
            return compiled.clone();
        }
        if known.len() >= MOST {
            known.clear();
        }
        let compiled = Arc::new(Selector::compile(expression));
        known.insert(expression.to_owned(), compiled.clone());
        compiled
    }

    /// The error tells what failed, and on which device.
    pub fn matches(&self, expression: &str, device: &Device) -> Result<bool, String> {
        let compiled = self.get(expression);
        let selector = compiled
            .as_ref()
            .as_ref()
            .map_err(|error| format!(": CEL compile error: {error}"))?;
        let failed = |text: String| format!(" on device {}: CEL runtime error: {text}", device.id);
        if let Some(fault) = &device.fault {
            return Err(failed(fault.clone()));
        }
        let seen = device::Device {
            driver: &device.id.driver,
            is_shared: device.is_shared,
            attributes: &device.attributes,
            capacity: &device.amounts,
        };
        selector.matches(seen).map_err(|error| failed(explained(&error)))
    }
}
