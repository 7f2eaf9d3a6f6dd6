//! The sizes replica sets should have: pure arithmetic over the deployment and its sets.

use super::sets::{DESIRED, MAXIMUM, Sets, age, annotation, available, fences, is_rolling, replicas, wanted};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use keelson_client::ApiObject;
use std::cmp::Reverse;
use std::sync::Arc;

/// A set and the size it gets.
pub type Scale = (Arc<ReplicaSet>, i32);

/// Whether the deployment was scaled since its sets were: then they are resized before any rollout goes on.
pub fn was_scaled(deployment: &Deployment, sets: &Sets) -> bool {
    sets.active()
        .any(|set| desired(set).is_some_and(|desired| desired != replicas(deployment)))
}

fn number(set: &ReplicaSet, name: &str) -> Option<i32> {
    annotation(set, name)?.parse().ok().filter(|n: &i32| *n >= 0)
}

fn desired(set: &ReplicaSet) -> Option<i32> {
    number(set, DESIRED)
}

/// The size of a new set at its creation, or when it may grow.
pub fn new_size(deployment: &Deployment, sets: &Sets, current: i32) -> i32 {
    let total = replicas(deployment);
    if !is_rolling(deployment) {
        return total;
    }
    let most = total + fences(deployment).0;
    let pods: i32 = sets.old.iter().map(|s| wanted(s)).sum::<i32>() + current;
    if pods >= most {
        current
    } else {
        current + (most - pods).min(total - current)
    }
}

/// One step of a rolling update: the new set grows; only when it needn't, old ones shrink.
pub fn rolling(deployment: &Deployment, sets: &Sets) -> Vec<Scale> {
    let Some(new) = &sets.new else { return Vec::new() };
    let total = replicas(deployment);
    let target = if wanted(new) >= total {
        total
    } else {
        new_size(deployment, sets, wanted(new))
    };
    if target != wanted(new) {
        return vec![(new.clone(), target)];
    }
    shrink_old(deployment, sets, new)
}

fn shrink_old(deployment: &Deployment, sets: &Sets, new: &Arc<ReplicaSet>) -> Vec<Scale> {
    let mut old: Vec<Scale> = sets
        .old
        .iter()
        .filter(|s| wanted(s) > 0)
        .map(|s| (s.clone(), wanted(s)))
        .collect();
    let pods: i32 = old.iter().map(|(_, size)| size).sum::<i32>() + wanted(new);
    let least = replicas(deployment) - fences(deployment).1;
    let mut room = pods - least - (wanted(new) - working(new));
    if old.is_empty() || room <= 0 {
        return Vec::new();
    }
    // Pods that don't work go first: they block the rollout and their end costs nothing.
    old.sort_by_key(|(set, _)| age(set));
    for (set, size) in &mut old {
        let broken = (*size - available(set)).clamp(0, room);
        *size -= broken;
        room -= broken;
    }
    let works = sets.all().map(|s| working(s)).sum::<i32>();
    let mut spare = (works - least).max(0);
    for (_, size) in &mut old {
        let fewer = (*size).min(spare);
        *size -= fewer;
        spare -= fewer;
    }
    old.retain(|(set, size)| *size != wanted(set));
    old
}

/// The pods that work and stay: a set that was made smaller a moment ago still tells of those that go.
fn working(set: &ReplicaSet) -> i32 {
    available(set).min(wanted(set))
}

/// The sizes after the deployment was scaled, or while it is paused.
pub fn resize(deployment: &Deployment, sets: &Sets) -> Vec<Scale> {
    let total = replicas(deployment);
    let mut active: Vec<Arc<ReplicaSet>> = sets.active().cloned().collect();
    if active.len() <= 1 {
        let newest = || {
            sets.new
                .clone()
                .or_else(|| sets.old.iter().max_by_key(|s| age(s)).cloned())
        };
        return active
            .pop()
            .or_else(newest)
            .map(|set| (set, total))
            .into_iter()
            .collect();
    }
    if let Some(new) = &sets.new
        && wanted(new) == total
        && desired(new) == Some(total)
        && available(new) == total
    {
        return active
            .into_iter()
            .filter(|s| s.uid() != new.uid())
            .map(|s| (s, 0))
            .collect();
    }
    if is_rolling(deployment) {
        proportional(deployment, active)
    } else {
        Vec::new()
    }
}

/// Shares what is added or removed among the active sets by their size; what rounding leaves goes to the largest.
fn proportional(deployment: &Deployment, mut active: Vec<Arc<ReplicaSet>>) -> Vec<Scale> {
    let total = replicas(deployment);
    let most = if total > 0 { total + fences(deployment).0 } else { 0 };
    let add = most - active.iter().map(|s| wanted(s)).sum::<i32>();
    if add >= 0 {
        active.sort_by_key(|s| (Reverse(wanted(s)), Reverse(age(s))));
    } else {
        active.sort_by_key(|s| (Reverse(wanted(s)), age(s)));
    }
    let mut added = 0;
    let mut sizes = Vec::new();
    for set in active {
        let share = share(deployment, &set, add, added);
        added += share;
        let size = wanted(&set) + share;
        sizes.push((set, size));
    }
    if let Some((_, largest)) = sizes.first_mut() {
        *largest = (*largest + add - added).max(0);
    }
    sizes
}

fn share(deployment: &Deployment, set: &ReplicaSet, add: i32, added: i32) -> i32 {
    let size = wanted(set);
    if size == 0 || add == 0 || add == added {
        return 0;
    }
    let total = replicas(deployment);
    let fraction = if total == 0 {
        -size
    } else {
        let before = match number(set, MAXIMUM) {
            Some(most) if most > 0 => most,
            _ => deployment.status.as_ref().and_then(|s| s.replicas).unwrap_or(0),
        };
        if before == 0 {
            return 0;
        }
        let now = f64::from(total + fences(deployment).0);
        (f64::from(size) * now / f64::from(before)).round() as i32 - size
    };
    if add > 0 {
        fraction.min(add - added)
    } else {
        fraction.max(add - added)
    }
}

/// The old sets that history needn't keep, the oldest revision first.
pub fn surplus(deployment: &Deployment, sets: &Sets) -> Vec<Arc<ReplicaSet>> {
    let Some(limit) = deployment.spec.revision_history_limit.filter(|l| *l != i32::MAX) else {
        return Vec::new();
    };
    let mut old: Vec<Arc<ReplicaSet>> = sets.old.iter().filter(|s| !s.is_deleting()).cloned().collect();
    let extra = old.len().saturating_sub(limit.max(0) as usize);
    old.sort_by_key(|s| (super::sets::revision(s), age(s)));
    old.truncate(extra);
    old.retain(|set| {
        let status = set.status.as_ref();
        let seen = status.and_then(|s| s.observed_generation).unwrap_or(0) >= set.metadata.generation.unwrap_or(0);
        wanted(set) == 0 && status.is_none_or(|s| s.replicas == 0) && seen
    });
    old
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::{
        DeploymentSpec, DeploymentStrategy, ReplicaSetSpec, ReplicaSetStatus, RollingUpdateDeployment,
    };
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

    fn deployment(total: i32, surge: i32, unavailable: i32) -> Deployment {
        Deployment {
            spec: DeploymentSpec {
                replicas: Some(total),
                strategy: Some(DeploymentStrategy {
                    type_: Some("RollingUpdate".into()),
                    rolling_update: Some(RollingUpdateDeployment {
                        max_surge: Some(IntOrString::Int(surge)),
                        max_unavailable: Some(IntOrString::Int(unavailable)),
                    }),
                }),
                ..Default::default()
            },
            ..Default::default()
        }
    }

    fn set(name: &str, born: i64, size: i32, works: i32, annotations: &[(&str, i32)]) -> Arc<ReplicaSet> {
        Arc::new(ReplicaSet {
            metadata: ObjectMeta {
                name: Some(name.into()),
                uid: Some(name.into()),
                creation_timestamp: Some(Time(jiff::Timestamp::from_second(born).unwrap_or_default())),
                annotations: Some(
                    annotations
                        .iter()
                        .map(|(k, v)| (k.to_string(), v.to_string()))
                        .collect(),
                ),
                ..Default::default()
            },
            spec: ReplicaSetSpec {
                replicas: Some(size),
                ..Default::default()
            },
            status: Some(ReplicaSetStatus {
                replicas: size,
                available_replicas: Some(works),
                ..Default::default()
            }),
        })
    }

    fn names(scales: Vec<Scale>) -> Vec<(String, i32)> {
        scales.into_iter().map(|(s, n)| (s.name().to_string(), n)).collect()
    }

    #[test]
    fn a_rolling_update_step_by_step() {
        let d = deployment(10, 3, 2);
        let sets = |new: (i32, i32), old: (i32, i32)| Sets {
            new: Some(set("new", 2, new.0, new.1, &[])),
            old: vec![set("old", 1, old.0, old.1, &[])],
        };
        assert_eq!(names(rolling(&d, &sets((0, 0), (10, 10)))), [("new".into(), 3)]);
        assert_eq!(names(rolling(&d, &sets((3, 0), (10, 10)))), [("old".into(), 8)]);
        assert_eq!(names(rolling(&d, &sets((3, 0), (8, 8)))), [("new".into(), 5)]);
        assert_eq!(names(rolling(&d, &sets((5, 0), (8, 8)))), []);
        assert_eq!(names(rolling(&d, &sets((5, 3), (8, 8)))), [("old".into(), 5)]);
        assert_eq!(names(rolling(&d, &sets((10, 10), (1, 1)))), [("old".into(), 0)]);
        assert_eq!(names(rolling(&d, &sets((12, 12), (0, 0)))), [("new".into(), 10)]);
        let small = deployment(5, 3, 2);
        assert_eq!(
            names(rolling(&small, &sets((4, 0), (4, 7)))),
            [("old".into(), 3)],
            "what was just made smaller has no more pods to spare than it keeps"
        );
    }

    #[test]
    fn pods_that_dont_work_go_first() {
        let d = deployment(10, 3, 2);
        let sets = Sets {
            new: Some(set("new", 3, 8, 8, &[])),
            old: vec![set("a", 1, 2, 2, &[]), set("b", 2, 3, 0, &[])],
        };
        assert_eq!(
            names(rolling(&d, &sets)),
            [("new".into(), 8)]
                .into_iter()
                .filter(|_| false)
                .collect::<Vec<_>>()
                .into_iter()
                .chain([("a".to_string(), 0), ("b".to_string(), 0)])
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn scaling_is_shared_by_size() {
        let d = deployment(20, 0, 0);
        let before = [(MAXIMUM, 10), (DESIRED, 10)];
        let sets = Sets {
            new: Some(set("new", 2, 6, 6, &before)),
            old: vec![set("old", 1, 4, 4, &before)],
        };
        assert!(was_scaled(&d, &sets));
        assert_eq!(names(resize(&d, &sets)), [("new".into(), 12), ("old".into(), 8)]);
        let d = deployment(0, 3, 2);
        assert_eq!(names(resize(&d, &sets)), [("new".into(), 0), ("old".into(), 0)]);
        let d = deployment(5, 0, 1);
        assert_eq!(names(resize(&d, &sets)), [("new".into(), 3), ("old".into(), 2)]);
    }

    #[test]
    fn one_active_set_takes_all() {
        let d = deployment(4, 1, 0);
        let sets = Sets {
            new: None,
            old: vec![set("a", 1, 0, 0, &[]), set("b", 2, 2, 2, &[])],
        };
        assert_eq!(names(resize(&d, &sets)), [("b".into(), 4)]);
        let sets = Sets {
            new: None,
            old: vec![set("a", 1, 0, 0, &[]), set("b", 2, 0, 0, &[])],
        };
        assert_eq!(names(resize(&d, &sets)), [("b".into(), 4)]);
    }
}
