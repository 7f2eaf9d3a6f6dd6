//! Parts of a device: how much of its capacity a request consumes, and whether that is left.

use super::slice::{Amounts, quantity};
use k8s_openapi::api::resource::v1::{CapacityRequestPolicy, DeviceCapacity};
use keelson_api::Quantity;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub struct Capacity {
    pub value: Quantity,
    policy: Option<Policy>,
}

/// What may be asked for.
#[derive(Clone, Debug)]
struct Policy {
    /// Whoever asks for nothing gets so much.
    default: Option<Quantity>,
    range: Option<Range>,
    /// In ascending order.
    values: Vec<Quantity>,
}

#[derive(Clone, Debug)]
struct Range {
    min: Quantity,
    max: Option<Quantity>,
    step: Option<Quantity>,
}

impl Capacity {
    pub fn of(capacity: &DeviceCapacity) -> Capacity {
        Capacity {
            value: quantity(&capacity.value),
            policy: capacity.request_policy.as_ref().map(Policy::of),
        }
    }

    /// What a request for so much consumes: what the policy allows, rounded up.
    fn consumed(&self, asked: Option<Quantity>) -> Result<Quantity, String> {
        let Some(asked) = asked else {
            let default = self.policy.as_ref().and_then(|policy| policy.default);
            return Ok(default.unwrap_or(self.value));
        };
        match &self.policy {
            Some(Policy { range: Some(range), .. }) => range.round_up(asked),
            Some(Policy { values, .. }) => {
                let enough = values.iter().find(|value| asked <= **value);
                Ok(enough.copied().unwrap_or(asked))
            }
            None => Ok(asked),
        }
    }
}

impl Policy {
    fn of(policy: &CapacityRequestPolicy) -> Policy {
        let range = policy.valid_range.as_ref();
        Policy {
            default: policy.default.as_ref().map(quantity),
            range: range.map(|range| Range {
                min: quantity(&range.min),
                max: range.max.as_ref().map(quantity),
                step: range.step.as_ref().map(quantity),
            }),
            values: policy.valid_values.iter().flatten().map(quantity).collect(),
        }
    }

    fn allows(&self, amount: Quantity) -> bool {
        if self.default == Some(amount) {
            return true;
        }
        match &self.range {
            Some(range) => range.allows(amount),
            None => self.values.is_empty() || self.values.contains(&amount),
        }
    }
}

/// In thousandths, if it can be told so.
fn milli(amount: Quantity) -> Option<i64> {
    let milli = amount.milli_value();
    (Quantity::from_milli(milli, amount.format()) == amount).then_some(milli)
}

impl Range {
    /// Whether it is counted in thousandths: all its bounds can be.
    fn is_fine(&self) -> bool {
        let bounds = [Some(self.min), self.max, self.step];
        bounds.into_iter().flatten().all(|bound| milli(bound).is_some())
            && self.step.is_none_or(|s| s.milli_value() >= 1)
    }

    fn round_up(&self, asked: Quantity) -> Result<Quantity, String> {
        if asked < self.min {
            return Ok(self.min);
        }
        let Some(step) = self.step else { return Ok(asked) };
        let beyond =
            |why: String| format!("capacity request cannot be represented in the device's range arithmetic: {why}");
        let unit = if self.is_fine() {
            "the milli-value range"
        } else {
            "MaxInt64"
        };
        let (value, by, min) = if self.is_fine() {
            let value =
                milli(asked).ok_or_else(|| beyond(format!("request {asked} is not a representable milli value")))?;
            (value, step.milli_value(), self.min.milli_value())
        } else {
            if asked > Quantity::new(i64::MAX, asked.format()) {
                return Err(beyond(format!("request {asked} exceeds MaxInt64")));
            }
            (asked.value(), step.value(), self.min.value())
        };
        if by <= 0 {
            return Ok(asked);
        }
        let added = i128::from(value) - i128::from(min);
        let steps = added.div_euclid(by.into()) + i128::from(added.rem_euclid(by.into()) != 0);
        let rounded = i64::try_from(i128::from(min) + steps * i128::from(by))
            .map_err(|_| beyond(format!("rounding request {asked} up to the next step passes {unit}")))?;
        Ok(match self.is_fine() {
            true => Quantity::from_milli(rounded, step.format()),
            false => Quantity::new(rounded, step.format()),
        })
    }

    fn allows(&self, amount: Quantity) -> bool {
        if self.max.is_some_and(|max| amount > max) {
            return false;
        }
        let Some(step) = self.step else { return true };
        let (value, by, min) = match (self.is_fine(), milli(amount)) {
            (true, None) => return false,
            (true, Some(amount)) => (amount, step.milli_value(), self.min.milli_value()),
            (false, _) => (amount.value(), step.value(), self.min.value()),
        };
        by <= 0 || (i128::from(value) - i128::from(min)) % i128::from(by) == 0
    }
}

/// Whether what is asked for fits in the capacity, beside what has been taken. An error: it can't even be said, and no other
/// device can be tried for it.
pub fn fits(
    capacity: &BTreeMap<String, Capacity>,
    asked: &Amounts,
    taken: &[Option<&Amounts>],
) -> Result<bool, String> {
    if asked.keys().any(|name| !capacity.contains_key(name)) {
        return Ok(false);
    }
    let consumed = consumed(capacity, asked)?;
    Ok(capacity.iter().all(|(name, has)| {
        let Some(mut sum) = consumed.get(name).copied() else {
            return true;
        };
        if has.policy.as_ref().is_some_and(|policy| !policy.allows(sum)) {
            return false;
        }
        let others = taken.iter().flatten().filter_map(|amounts| amounts.get(name));
        others.for_each(|amount| sum.add(*amount));
        sum <= has.value
    }))
}

/// How much of each capacity a request consumes.
pub fn consumed(capacity: &BTreeMap<String, Capacity>, asked: &Amounts) -> Result<Amounts, String> {
    let mut amounts = Amounts::new();
    for (name, has) in capacity {
        let amount = has
            .consumed(asked.get(name).copied())
            .map_err(|error| format!("capacity {name:?}: {error}"))?;
        if amount.is_negative() {
            return Err(format!("capacity {name:?}: capacity value is negative"));
        }
        amounts.insert(name.clone(), amount);
    }
    Ok(amounts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn capacity(policy: Value) -> BTreeMap<String, Capacity> {
        let capacity: DeviceCapacity = serde_json::from_value(json!({"value": "10", "requestPolicy": policy})).unwrap();
        BTreeMap::from([("c".to_owned(), Capacity::of(&capacity))])
    }

    fn asked(text: &str) -> Amounts {
        match text {
            "" => Amounts::new(),
            text => Amounts::from([("c".to_owned(), Quantity::parse(text).unwrap())]),
        }
    }

    #[test]
    fn requests_are_rounded_up_to_what_the_policy_allows() {
        let range = json!({"default": "1", "validRange": {"min": "2", "max": "8", "step": "2"}});
        let fine = json!({"validRange": {"min": "500m", "step": "250m"}});
        let values = json!({"default": "1", "validValues": ["1", "4"]});
        for (policy, request, expected) in [
            (Value::Null, "", "10"),
            (Value::Null, "3", "3"),
            (range.clone(), "", "1"),
            (range.clone(), "1", "2"),
            (range.clone(), "3", "4"),
            (range.clone(), "4", "4"),
            (fine.clone(), "600m", "750m"),
            (fine.clone(), "900m", "1"),
            (values.clone(), "2", "4"),
            (values.clone(), "5", "5"),
        ] {
            let consumed = consumed(&capacity(policy.clone()), &asked(request)).unwrap();
            assert_eq!(consumed["c"].to_string(), expected, "{policy} {request}");
        }
        let huge = consumed(&capacity(range), &asked("9223372036854775807"));
        assert!(huge.unwrap_err().contains("cannot be represented"));
    }

    #[test]
    fn what_is_taken_leaves_less() {
        let range = json!({"default": "1", "validRange": {"min": "2", "max": "8", "step": "2"}});
        let values = json!({"default": "1", "validValues": ["1", "4"]});
        let one = asked("7");
        for (policy, request, taken, expected) in [
            (Value::Null, "10", None, true),
            (Value::Null, "11", None, false),
            (Value::Null, "3", Some(&one), true),
            (Value::Null, "4", Some(&one), false),
            (Value::Null, "", Some(&one), false),
            (range.clone(), "9", None, false),
            (range.clone(), "", Some(&one), true),
            (values, "5", None, false),
        ] {
            let answer = fits(&capacity(policy.clone()), &asked(request), &[taken, None]);
            assert_eq!(answer, Ok(expected), "{policy} {request} beside {taken:?}");
        }
        let other = Amounts::from([("other".to_owned(), Quantity::ZERO)]);
        assert_eq!(
            fits(&capacity(range), &other, &[]),
            Ok(false),
            "another device may have it"
        );
    }
}
