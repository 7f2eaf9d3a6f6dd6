//! Small things many controllers share.

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_client::ApiObject;
use serde_json::Value;
use std::hash::Hasher;
use std::time::Duration;

/// A number, or a percentage of `total`. What can't be read counts as 0: validation keeps it out.
pub fn scaled(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(text)) => {
            let Some(percent) = text.strip_suffix('%').and_then(|p| p.parse::<i64>().ok()) else {
                return 0;
            };
            let product = percent * i64::from(total);
            let whole = if round_up {
                (product + 99).div_euclid(100)
            } else {
                product.div_euclid(100)
            };
            whole.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32
        }
    }
}

/// The time until something is due, never less than it is: who looks again looks when it has come, and not over and over in
/// the last millisecond before.
pub fn until_due(wait: SignedDuration) -> Duration {
    Duration::try_from(wait)
        .unwrap_or_default()
        .max(Duration::from_millis(1))
}

/// 32-bit FNV-1a.
struct Fnv32(u32);

impl Hasher for Fnv32 {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }
    fn finish(&self) -> u64 {
        u64::from(self.0)
    }
}

/// A short name for some content, stable between runs; `collisions` tells names for equal hashes apart.
pub fn content_hash(content: &[u8], collisions: Option<i32>) -> String {
    let mut hasher = Fnv32(0x811c_9dc5);
    hasher.write(content);
    if let Some(collisions) = collisions {
        hasher.write(&collisions.to_le_bytes());
    }
    safe(&hasher.finish().to_string())
}

/// Letters and digits that can't form a word.
const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

fn safe(text: &str) -> String {
    text.bytes()
        .map(|b| char::from(SAFE[usize::from(b) % SAFE.len()]))
        .collect()
}

/// A template as JSON, by way of a pod: the two have the same form, and a pod's is compiled already.
pub fn template_value(template: &PodTemplateSpec) -> serde_json::Result<Value> {
    let pod = Pod {
        metadata: template.metadata.clone().unwrap_or_default(),
        spec: template.spec.clone(),
        status: None,
    };
    let mut value: Value = serde_json::from_slice(&pod.encode()?)?;
    if let Some(object) = value.as_object_mut() {
        object.remove("apiVersion");
        object.remove("kind");
    }
    Ok(value)
}

pub fn template_from_value(value: &Value) -> serde_json::Result<PodTemplateSpec> {
    let mut value = value.clone();
    if let Some(object) = value.as_object_mut() {
        object.remove("$patch");
        object
            .entry("metadata")
            .or_insert_with(|| Value::Object(Default::default()));
    }
    let pod = Pod::decode(value.to_string().as_bytes())?;
    Ok(PodTemplateSpec {
        metadata: Some(pod.metadata),
        spec: pod.spec,
    })
}

/// Sets a condition in a list, keyed by type; `same` says whether the old one already tells the new.
pub fn set_condition<C: Clone>(conditions: &mut Option<Vec<C>>, kind: impl Fn(&C) -> bool, new: C) {
    let list = conditions.get_or_insert_default();
    list.retain(|c| !kind(c));
    list.push(new);
}

/// Removes conditions; an empty list becomes none, as the server returns it.
pub fn drop_condition<C>(conditions: &mut Option<Vec<C>>, kind: impl Fn(&C) -> bool) {
    if let Some(list) = conditions {
        list.retain(|c| !kind(c));
        if list.is_empty() {
            *conditions = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_as_asked() {
        let percent = |p: &str| Some(IntOrString::String(p.into()));
        assert_eq!(scaled(percent("25%").as_ref(), 10, true), 3);
        assert_eq!(scaled(percent("25%").as_ref(), 10, false), 2);
        assert_eq!(scaled(Some(&IntOrString::Int(7)), 10, false), 7);
        assert_eq!(scaled(percent("x").as_ref(), 10, true), 0);
    }

    #[test]
    fn nobody_looks_too_early() {
        let exact = SignedDuration::new(2, 999_999_995);
        assert_eq!(until_due(exact), Duration::new(2, 999_999_995));
        assert_eq!(until_due(SignedDuration::from_nanos(5)), Duration::from_millis(1));
        assert_eq!(until_due(SignedDuration::from_secs(-1)), Duration::from_millis(1));
    }

    #[test]
    fn hashes_are_stable() {
        assert_eq!(content_hash(b"", None), safe("2166136261"));
        assert_ne!(content_hash(b"a", None), content_hash(b"a", Some(0)));
        assert_ne!(content_hash(b"a", Some(1)), content_hash(b"a", Some(0)));
    }
}
