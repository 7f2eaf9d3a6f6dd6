//! When that came about which changed a service's endpoints: by it is measured how long the way to the nodes takes.

use crate::pods;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{ApiObject, ObjectKey};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

const ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What was seen of each service and its pods at the last look.
#[derive(Default)]
pub struct TriggerTimes(Mutex<HashMap<ObjectKey, Seen>>);

#[derive(Default)]
struct Seen {
    made: Option<Timestamp>,
    pods: HashMap<String, Timestamp>,
}

impl TriggerTimes {
    /// The earliest of what is new since the last look; of a service that wasn't known, when it was made.
    pub fn look(&self, key: &ObjectKey, service: &Service, pods: &[Arc<Pod>]) -> Option<Timestamp> {
        let made = service.metadata.creation_timestamp.as_ref().map(|t| t.0);
        let turned = |pod: &Arc<Pod>| {
            let at = pods::condition(pod, "Ready")?.last_transition_time.as_ref()?.0;
            Some((pod.name().to_string(), at))
        };
        let now = Seen {
            made,
            pods: pods.iter().filter_map(turned).collect(),
        };
        let mut all = self.0.lock();
        let Some(before) = all.get(key) else {
            all.insert(key.clone(), now);
            return made;
        };
        let newer = now
            .pods
            .iter()
            .filter(|(name, at)| before.pods.get(*name).is_none_or(|b| *at > b));
        let earliest = newer
            .map(|(_, at)| *at)
            .chain(made.filter(|_| made > before.made))
            .min();
        all.insert(key.clone(), now);
        earliest
    }

    pub fn forget(&self, key: &ObjectKey) {
        self.0.lock().remove(key);
    }
}

/// Says so in what is written because of it.
pub fn tell(meta: &mut ObjectMeta, at: Option<Timestamp>) {
    let mut annotations = meta.annotations.take().unwrap_or_default();
    match at {
        Some(at) => annotations.insert(ANNOTATION.into(), at.to_string()),
        None => annotations.remove(ANNOTATION),
    };
    meta.annotations = (!annotations.is_empty()).then_some(annotations);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_counts_and_of_that_the_earliest() {
        let times = TriggerTimes::default();
        let key = ObjectKey::new("a", "web");
        let service = |second: u8| {
            let text = format!(r#"{{"metadata":{{"name":"web","creationTimestamp":"1970-01-01T00:00:0{second}Z"}}}}"#);
            Service::decode(text.as_bytes()).expect("valid")
        };
        let pod = |name: &str, second: u8| {
            let text = format!(
                r#"{{"metadata":{{"name":"{name}"}},"status":{{"conditions":[{{"type":"Ready","status":"True","lastTransitionTime":"1970-01-01T00:00:0{second}Z"}}]}}}}"#
            );
            Arc::new(Pod::decode(text.as_bytes()).expect("valid"))
        };
        let look = |made: u8, pods: &[Arc<Pod>]| times.look(&key, &service(made), pods).map(|t| t.as_second());
        assert_eq!(look(1, &[pod("a", 5)]), Some(1), "a new service");
        assert_eq!(look(1, &[pod("a", 5)]), None, "nothing new");
        assert_eq!(look(1, &[pod("a", 7), pod("b", 6)]), Some(6));
        assert_eq!(look(1, &[pod("b", 6)]), None, "an end has no moment");
        assert_eq!(look(8, &[pod("b", 9)]), Some(8), "made anew");
        let mut meta = ObjectMeta::default();
        tell(&mut meta, Some(Timestamp::UNIX_EPOCH));
        let said = meta.annotations.as_ref().and_then(|a| a.get(ANNOTATION));
        assert_eq!(said.map(String::as_str), Some("1970-01-01T00:00:00Z"));
        tell(&mut meta, None);
        assert_eq!(meta.annotations, None);
    }
}
