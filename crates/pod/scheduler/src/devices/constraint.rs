//! What the devices of a claim must have in common, or each for itself.

use super::slice::Device;
use keelson_machinery::cel::device::Attribute;

/// A constraint, and what the devices chosen so far say. Once it refuses, more devices don't change that.
#[derive(Debug)]
pub struct Constraint<'c> {
    /// Of which requests; none: of all.
    requests: &'c [String],
    attribute: &'c str,
    is_distinct: bool,
    seen: Vec<Attribute>,
}

impl<'c> Constraint<'c> {
    pub fn new(requests: Option<&'c Vec<String>>, attribute: &'c str, is_distinct: bool) -> Constraint<'c> {
        Constraint {
            requests: requests.map(Vec::as_slice).unwrap_or_default(),
            attribute,
            is_distinct,
            seen: Vec::new(),
        }
    }

    fn concerns(&self, request: &str, whole: &str) -> bool {
        self.requests.is_empty() || self.requests.iter().any(|name| name == request || name == whole)
    }

    /// `request`: as the claim has it; `whole`: with the alternative that was chosen.
    pub fn add(&mut self, request: &str, whole: &str, device: &Device) -> bool {
        if !self.concerns(request, whole) {
            return true;
        }
        let Some(value) = device.attribute(self.attribute) else {
            return false;
        };
        let fits = match self.is_distinct {
            true => !self.seen.contains(value),
            false => self.seen.first().is_none_or(|first| first == value),
        };
        if fits {
            self.seen.push(value.clone());
        }
        fits
    }

    /// The device that was added last goes.
    pub fn remove(&mut self, request: &str, whole: &str) {
        if self.concerns(request, whole) {
            self.seen.pop();
        }
    }
}
