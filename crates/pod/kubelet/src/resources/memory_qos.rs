//! What the kernel keeps of pods' memory for them, and from where on it slows them down: MemoryQoS, of cgroups of version 2.
//! Pure; numbers are upstream's.

use super::{pod as amounts, qos, quantity};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::BTreeMap;

pub const MIN: &str = "memory.min";
pub const LOW: &str = "memory.low";
pub const HIGH: &str = "memory.high";

/// Files of a cgroup, and what is written into them.
pub type Files = BTreeMap<String, String>;

/// How a node guards memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryQos {
    /// Which part of what is between request and limit may be used before the kernel reclaims; `None`: all of it.
    pub throttling: Option<f64>,
    /// Requests are kept: from all others for guaranteed pods, as long as there is other memory for burstable ones.
    pub tiered: bool,
    /// What the node gives to pods, which is the limit of who has none.
    pub allocatable: i64,
    pub page: i64,
}

impl MemoryQos {
    /// What a container's cgroup carries.
    pub fn container(&self, pod: &Pod, c: &Container) -> Files {
        let of = |list| quantity::value_of(list, "memory");
        let request = of(c.resources.as_ref().and_then(|r| r.requests.as_ref()));
        let limit = of(c.resources.as_ref().and_then(|r| r.limits.as_ref()));
        let mut files = Files::new();
        if request != 0 && self.tiered {
            files.insert(kept_by(pod).into(), request.to_string());
        } else {
            // What was kept by other settings isn't any more.
            files.extend([MIN, LOW].map(|f| (f.to_owned(), "0".to_owned())));
        }
        // Without a limit of its own the pod's cgroup throttles it.
        let by_pod = limit == 0 && amounts::pod_level(pod).is_some_and(|r| of(r.limits.as_ref()) != 0);
        if !by_pod && (request != limit || request == 0) {
            let most = if limit != 0 { limit } else { self.allocatable };
            files.extend(self.high(request, most));
        }
        files
    }

    /// What a pod's cgroup carries.
    pub fn pod(&self, pod: &Pod) -> Files {
        let of = |list| quantity::value_of(Some(&list), "memory");
        let request = of(amounts::pod_requests(pod));
        let mut files = Files::new();
        if self.tiered && request > 0 {
            files.insert(kept_by(pod).into(), request.to_string());
        }
        if amounts::pod_level(pod).is_some() && super::cgroup::is_declared(pod, "memory") {
            let limit = of(amounts::pod_limits(pod));
            if limit != 0 && (request != limit || request == 0) {
                files.extend(self.high(request, limit));
            }
        }
        files
    }

    fn high(&self, request: i64, most: i64) -> Option<(String, String)> {
        let between = (most - request) as f64 * self.throttling?;
        let high = ((request as f64 + between).floor() / self.page as f64) as i64 * self.page;
        (most > 0 && high > 0 && high > request).then(|| (HIGH.into(), high.to_string()))
    }
}

fn kept_by(pod: &Pod) -> &'static str {
    match qos::class(pod) {
        qos::Qos::Guaranteed => MIN,
        _ => LOW,
    }
}

/// Requests of memory by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Classes {
    pub guaranteed: i64,
    pub burstable: i64,
}

impl Classes {
    pub fn of<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Classes {
        let mut sums = Classes::default();
        for pod in pods {
            let request = || quantity::value_of(Some(&amounts::pod_requests(pod)), "memory");
            match qos::class(pod) {
                qos::Qos::Guaranteed => sums.guaranteed += request(),
                qos::Qos::Burstable => sums.burstable += request(),
                qos::Qos::BestEffort => {}
            }
        }
        sums
    }

    /// What the cgroup of all pods carries: a group's memory is kept only as far as its parents' is.
    pub fn root(self) -> Files {
        Files::from([
            (MIN.into(), (self.guaranteed + self.burstable).to_string()),
            (LOW.into(), self.burstable.to_string()),
        ])
    }

    /// What the cgroup of burstable pods carries.
    pub fn burstable(self) -> Files {
        Files::from([(LOW.into(), self.burstable.to_string())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods;
    use serde_json::{Value, json};

    const NODE: MemoryQos = MemoryQos {
        throttling: Some(0.9),
        tiered: true,
        allocatable: 8 << 30,
        page: 4096,
    };

    fn pod(requests: &str, limits: &str, level: &Value) -> Pod {
        let list = |t: &str| match t {
            "" => json!({}),
            t => json!({"memory": t}),
        };
        serde_json::from_value(
            json!({"metadata": {"uid": "u"}, "spec": {"resources": level, "containers": [
            {"name": "c", "resources": {"requests": list(requests), "limits": list(limits)}}]}}),
        )
        .unwrap()
    }

    fn files(of: Files) -> String {
        let all: Vec<String> = of
            .iter()
            .map(|(k, v)| format!("{}={v}", k.trim_start_matches("memory.")))
            .collect();
        all.join(" ")
    }

    /// Request and limit of the container, limit of the pod; what the container's cgroup carries, and the pod's.
    #[test]
    fn numbers_are_upstreams() {
        let (keeping, plain) = (NODE, MemoryQos { tiered: false, ..NODE });
        let off = MemoryQos {
            throttling: None,
            ..plain
        };
        let table = [
            // 128Mi + 0.9 · 128Mi = 255 013 683.2, in whole pages.
            (
                keeping,
                "128Mi",
                "256Mi",
                "",
                "high=255012864 low=134217728",
                "low=134217728",
            ),
            (plain, "128Mi", "256Mi", "", "high=255012864 low=0 min=0", ""),
            (off, "128Mi", "256Mi", "", "low=0 min=0", ""),
            // Without a limit it is the node's: 128Mi + 0.9 · (8Gi − 128Mi).
            (
                keeping,
                "128Mi",
                "",
                "",
                "high=7744360448 low=134217728",
                "low=134217728",
            ),
            (keeping, "", "", "", "high=7730937856 low=0 min=0", ""),
            // Below a pod's own limit the pod is throttled as a whole.
            (
                keeping,
                "128Mi",
                "",
                "256Mi",
                "low=134217728",
                "high=255012864 low=134217728",
            ),
            (off, "128Mi", "", "256Mi", "low=0 min=0", ""),
        ];
        for (node, request, limit, level, container, whole) in table {
            let level = match level {
                "" => json!(null),
                l => json!({"limits": {"memory": l}}),
            };
            let pod = pod(request, limit, &level);
            let c = &pods::containers(&pod)[0];
            let got = (files(node.container(&pod, c)), files(node.pod(&pod)));
            assert_eq!(got, (container.into(), whole.into()), "{request} {limit} {level}");
        }
    }

    #[test]
    fn what_guaranteed_pods_ask_for_is_never_reclaimed() {
        let list = json!({"cpu": "1", "memory": "64Mi"});
        let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"containers": [
            {"name": "c", "resources": {"requests": list, "limits": list}}]}}))
        .unwrap();
        let c = &pods::containers(&pod)[0];
        assert_eq!(
            files(NODE.container(&pod, c)),
            "min=67108864",
            "and it is never throttled"
        );
        assert_eq!(files(NODE.pod(&pod)), "min=67108864");
    }

    #[test]
    fn classes_keep_what_is_below_them() {
        let list = json!({"cpu": "1", "memory": "64Mi"});
        let guaranteed: Pod = serde_json::from_value(json!({"spec": {"containers": [
            {"name": "c", "resources": {"requests": list, "limits": list}}]}}))
        .unwrap();
        let all = [guaranteed, pod("16Mi", "", &json!(null)), pod("", "", &json!(null))];
        let sums = Classes::of(&all);
        assert_eq!((sums.guaranteed, sums.burstable), (64 << 20, 16 << 20));
        assert_eq!(files(sums.root()), "low=16777216 min=83886080");
        assert_eq!(files(sums.burstable()), "low=16777216");
    }
}
