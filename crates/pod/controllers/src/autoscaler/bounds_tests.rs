//! `bounds.jsonl` has the facts of upstream's own table: wishes under rules, after changes so many seconds ago.

use super::*;
use serde::Deserialize;

const WINDOW: Duration = Duration::from_secs(300);

#[derive(Debug, Deserialize)]
struct Case {
    min: i32,
    max: i32,
    current: i32,
    wish: i32,
    want: i32,
    reason: String,
    /// Pods, their period, per cent, their period, window.
    up: Option<[i32; 5]>,
    down: Option<[i32; 5]>,
    /// How many, and how many seconds ago.
    #[serde(default)]
    ups: Vec<(i32, u64)>,
    #[serde(default)]
    downs: Vec<(i32, u64)>,
}

fn rules([pods, pods_period, percent, percent_period, window]: [i32; 5]) -> HPAScalingRules {
    let policy = |kind: &str, value, period_seconds| HPAScalingPolicy {
        type_: kind.into(),
        value,
        period_seconds,
    };
    let given = [
        policy("Pods", pods, pods_period),
        policy("Percent", percent, percent_period),
    ];
    HPAScalingRules {
        policies: Some(given.into_iter().filter(|p| p.value != 0).collect()),
        select_policy: Some("Max".into()),
        stabilization_window_seconds: Some(window),
        tolerance: None,
    }
}

#[tokio::test(start_paused = true)]
async fn rates_are_upstreams() {
    // No time before the machine's start can be told.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let now = Instant::now();
    let changes = |list: &[(i32, u64)]| -> Vec<Change> {
        let change = |&(replicas, ago): &(i32, u64)| Change {
            replicas,
            at: now - Duration::from_secs(ago),
        };
        list.iter().map(change).collect()
    };
    let mut cases = 0;
    for line in include_str!("bounds.jsonl").lines() {
        let case: Case = serde_json::from_str(line).expect("a case");
        cases += 1;
        let memory = Memory {
            recommendations: Vec::new(),
            ups: changes(&case.ups),
            downs: changes(&case.downs),
        };
        let behavior = HorizontalPodAutoscalerBehavior {
            scale_up: case.up.map(rules),
            scale_down: case.down.map(rules),
        };
        let bounds = Bounds {
            min: case.min,
            max: case.max,
            current: case.current,
        };
        let (replicas, (reason, _)) = memory.ruled_bounds(case.wish, bounds, &Rules::of(&behavior, WINDOW), now);
        assert_eq!((replicas, reason), (case.want, case.reason.as_str()), "{case:?}");
    }
    assert!(cases > 30, "{cases} cases: the table is cut off");
}

#[test]
fn without_rules_at_most_double_or_four() {
    let bounded = |current, wish, min, max| {
        let (replicas, (reason, _)) = plain_bounds(wish, Bounds { min, max, current });
        (replicas, reason)
    };
    assert_eq!(bounded(5, 7, 3, 8), (7, "DesiredWithinRange"));
    assert_eq!(bounded(3, 1, 2, 8), (2, "TooFewReplicas"));
    assert_eq!(bounded(1, 0, 0, 10), (0, "DesiredWithinRange"));
    assert_eq!(bounded(20, 1000, 1, 10), (10, "TooManyReplicas"));
    assert_eq!(bounded(3, 1000, 1, 2000), (6, "ScaleUpLimit"));
    assert_eq!(bounded(1, 1000, 1, 2000), (4, "ScaleUpLimit"));
}

#[tokio::test(start_paused = true)]
async fn the_highest_of_five_minutes_holds() {
    let bounds = Bounds {
        min: 1,
        max: 100,
        current: 10,
    };
    let mut memory = Memory::default();
    memory.begin(10, Instant::now());
    let first = memory.plain(4, bounds, WINDOW, Instant::now());
    assert_eq!((first.replicas, first.able.0), (10, "ScaleDownStabilized"));
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(memory.plain(8, bounds, WINDOW, Instant::now()).replicas, 10);
    tokio::time::sleep(Duration::from_secs(150)).await;
    assert_eq!(
        memory.plain(4, bounds, WINDOW, Instant::now()).replicas,
        8,
        "the ten are forgotten"
    );
    tokio::time::sleep(Duration::from_secs(301)).await;
    let last = memory.plain(4, bounds, WINDOW, Instant::now());
    assert_eq!(
        (last.replicas, last.able.0, last.limited.0),
        (4, "ReadyForNewScale", false)
    );
    assert!(memory.recommendations.len() <= 3, "what is old gives its place away");
}

#[tokio::test(start_paused = true)]
async fn windows_of_a_behaviour_hold_both_ways() {
    let behavior = HorizontalPodAutoscalerBehavior {
        scale_up: Some(rules([0, 0, 1000, 60, 60])),
        scale_down: Some(rules([0, 0, 100, 60, 120])),
    };
    let rules = Rules::of(&behavior, WINDOW);
    let bounds = Bounds {
        min: 1,
        max: 100,
        current: 5,
    };
    let mut memory = Memory::default();
    memory.begin(5, Instant::now());
    let up = memory.ruled(20, bounds, &rules, Instant::now());
    assert_eq!((up.replicas, up.able.0), (5, "ScaleUpStabilized"));
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert_eq!(memory.ruled(20, bounds, &rules, Instant::now()).replicas, 20);
    let full = Bounds { current: 20, ..bounds };
    let down = memory.ruled(2, full, &rules, Instant::now());
    assert_eq!((down.replicas, down.able.0), (20, "ScaleDownStabilized"));
    tokio::time::sleep(Duration::from_secs(121)).await;
    assert_eq!(memory.ruled(2, full, &rules, Instant::now()).replicas, 2);
}
