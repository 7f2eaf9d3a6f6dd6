//! Arithmetic on the API's quantities as the kubelet needs it: milli-units for CPU, whole units for everything else.
//! Knows nothing of pods. Unparseable text counts as zero, because validation happened in the API server.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use keelson_api::quantity::{Format, Quantity as Amount};
use std::collections::BTreeMap;

/// A resource list as the API has it.
pub type ResourceList = BTreeMap<String, Quantity>;

/// What the text means.
pub fn amount(q: &Quantity) -> Amount {
    Amount::parse(&q.0).unwrap_or_default()
}

fn text(amount: Amount) -> Quantity {
    Quantity(amount.to_string())
}

/// Whole units, rounded up.
pub fn value(q: &Quantity) -> i64 {
    amount(q).value()
}

/// Thousandths, rounded up.
pub fn milli(q: &Quantity) -> i64 {
    amount(q).milli_value()
}

/// Whether two quantities mean the same amount.
pub fn same(a: &Quantity, b: &Quantity) -> bool {
    amount(a) == amount(b)
}

/// A CPU amount in canonical form.
pub fn from_milli(m: i64) -> Quantity {
    text(Amount::from_milli(m, Format::DecimalSi))
}

/// A plain number, as counts of CPUs and pods are written.
pub fn decimal_plain(v: i64) -> Quantity {
    Quantity(v.to_string())
}

/// A number of bytes in canonical binary form (`64Mi`).
pub fn bytes(v: i64) -> Quantity {
    text(Amount::new(v, Format::BinarySi))
}

/// The amount of `name` in thousandths; absent is zero.
pub fn milli_of(list: Option<&ResourceList>, name: &str) -> i64 {
    list.and_then(|l| l.get(name)).map_or(0, milli)
}

/// The amount of `name` in whole units; absent is zero.
pub fn value_of(list: Option<&ResourceList>, name: &str) -> i64 {
    list.and_then(|l| l.get(name)).map_or(0, value)
}

/// Adds `more` to `into`, name by name.
pub fn add(into: &mut ResourceList, more: &ResourceList) {
    for (name, q) in more {
        let mut sum = into.get(name).map(amount).unwrap_or_default();
        sum.add(amount(q));
        into.insert(name.clone(), text(sum));
    }
}

/// Raises each amount of `into` to at least that of `other`.
pub fn raise(into: &mut ResourceList, other: &ResourceList) {
    for (name, q) in other {
        if into.get(name).is_none_or(|have| amount(have) < amount(q)) {
            into.insert(name.clone(), q.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn q(s: &str) -> Quantity {
        Quantity(s.into())
    }

    #[test]
    fn text_that_is_no_quantity_is_nothing() {
        assert_eq!((value(&q("1.5Gi")), milli(&q("1.0005"))), (1_610_612_736, 1001));
        assert_eq!(value(&q("abc")), 0);
    }

    #[test]
    fn writes_canonical_forms() {
        assert_eq!(from_milli(1500).0, "1500m");
        assert_eq!(from_milli(2000).0, "2");
        assert_eq!(bytes(64 << 20).0, "64Mi");
    }

    #[test]
    fn adds_and_raises() {
        let mut a = ResourceList::from([("memory".into(), q("64Mi"))]);
        add(
            &mut a,
            &ResourceList::from([("memory".into(), q("64Mi")), ("cpu".into(), q("100m"))]),
        );
        assert_eq!((a["memory"].0.as_str(), a["cpu"].0.as_str()), ("128Mi", "100m"));
        raise(&mut a, &ResourceList::from([("cpu".into(), q("1"))]));
        assert_eq!(a["cpu"].0, "1");
    }
}
