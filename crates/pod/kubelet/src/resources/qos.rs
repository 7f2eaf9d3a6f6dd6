//! Quality of service class and the out-of-memory score that follows from it. Pure.

use super::{pod as amounts, quantity};
use crate::pods;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

/// The class recorded in the status, else the one that follows from the specification.
pub fn class(pod: &Pod) -> Qos {
    match pods::status(pod).qos_class.as_deref() {
        Some("Guaranteed") => Qos::Guaranteed,
        Some("Burstable") => Qos::Burstable,
        Some("BestEffort") => Qos::BestEffort,
        _ => compute(pod),
    }
}

/// Guaranteed: every container has CPU and memory limits equal to its requests. BestEffort: none asks for anything.
pub fn compute(pod: &Pod) -> Qos {
    let parts: Vec<Option<&ResourceRequirements>> = match amounts::pod_level(pod) {
        Some(level) => vec![Some(level)],
        None => pods::containers(pod)
            .iter()
            .chain(pods::init_containers(pod))
            .map(|c| c.resources.as_ref())
            .collect(),
    };
    let positive = |l: Option<&quantity::ResourceList>, n: &str| {
        let amount = l.and_then(|l| l.get(n)).map(quantity::amount);
        amount.filter(|a| !a.is_zero() && !a.is_negative())
    };
    let (mut any, mut guaranteed) = (false, true);
    for part in parts {
        for name in ["cpu", "memory"] {
            let request = positive(part.and_then(|r| r.requests.as_ref()), name);
            let limit = positive(part.and_then(|r| r.limits.as_ref()), name);
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

const GUARANTEED_SCORE: i64 = -997;
const BEST_EFFORT_SCORE: i64 = 1000;

/// How readily the kernel kills this container when memory runs out.
pub fn oom_score_adj(pod: &Pod, c: &Container, memory_capacity: i64) -> i64 {
    if pods::spec(pod).priority.unwrap_or(0) >= 2_000_001_000 {
        return GUARANTEED_SCORE;
    }
    match class(pod) {
        Qos::Guaranteed => return GUARANTEED_SCORE,
        Qos::BestEffort => return BEST_EFFORT_SCORE,
        Qos::Burstable => {}
    }
    let request = |c: &Container| quantity::value_of(c.resources.as_ref().and_then(|r| r.requests.as_ref()), "memory");
    let mut share = request(c);
    if let Some(level) = amounts::pod_level(pod) {
        // What the pod asks beyond its containers is spread over them evenly.
        let all: Vec<&Container> = pods::containers(pod).iter().chain(pods::init_containers(pod)).collect();
        let rest = quantity::value_of(level.requests.as_ref(), "memory") - all.iter().map(|c| request(c)).sum::<i64>();
        if rest > 0 && !all.is_empty() {
            share += rest / all.len() as i64;
        }
    }
    let score = |share: i64| {
        (1000 - (1000 * share as i128 / memory_capacity.max(1) as i128) as i64)
            .clamp(1000 + GUARANTEED_SCORE, BEST_EFFORT_SCORE - 1)
    };
    let own = score(share);
    if pods::init_containers(pod)
        .iter()
        .any(|i| i.name == c.name && pods::is_sidecar(i))
    {
        // A sidecar must not die before the containers it serves.
        return pods::containers(pod)
            .iter()
            .map(|m| score(request(m)))
            .fold(own, i64::min);
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"spec": {"containers": [{"name": "c", "resources": resources}]}}))
            .unwrap()
    }

    #[test]
    fn classes() {
        use serde_json::json;
        assert_eq!(compute(&pod(json!({}))), Qos::BestEffort);
        assert_eq!(compute(&pod(json!({"requests": {"cpu": "1"}}))), Qos::Burstable);
        assert_eq!(
            compute(&pod(json!({"limits": {"cpu": "1", "memory": "1Gi"}}))),
            Qos::Guaranteed
        );
        assert_eq!(
            compute(&pod(
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})
            )),
            Qos::Burstable
        );
    }

    #[test]
    fn scores_follow_the_request() {
        let p = pod(serde_json::json!({"requests": {"memory": "4Gi"}}));
        assert_eq!(oom_score_adj(&p, &pods::containers(&p)[0], 8 << 30), 500);
        let p = pod(serde_json::json!({}));
        assert_eq!(oom_score_adj(&p, &pods::containers(&p)[0], 8 << 30), 1000);
    }
}
