//! What made-up containers do, and where their pods' addresses are from.

use keelson_kubelet::fake::addresses::Addresses;
use keelson_kubelet::fake::annotations::{
    EXIT_CODE, FAILING_PROBES, READY_SECONDS, RUN_SECONDS, STOP_SECONDS, probe, script,
};
use keelson_kubelet::probes::Kind;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[test]
fn addresses_are_given_in_turn_and_none_twice() {
    let mut all = Addresses::of("10.1.2.0/29").unwrap();
    let mut used = BTreeSet::new();
    for n in 2..7 {
        let got = all.next(&used);
        assert_eq!(got, [format!("10.1.2.{n}")]);
        used.extend(got);
    }
    assert!(all.next(&used).is_empty());
    used.remove("10.1.2.4");
    assert_eq!(all.next(&used), ["10.1.2.4"]);
    let mut both = Addresses::of("10.1.2.0/24,fd00::/64").unwrap();
    assert_eq!(both.next(&BTreeSet::new()), ["10.1.2.2", "fd00::2"]);
    for wrong in ["10.1.2.0", "10.1.2.0/33", "10.1.2.0/31", "x/8", ""] {
        assert!(Addresses::of(wrong).is_none(), "{wrong}");
    }
}

#[test]
fn scripts_are_read() {
    let read = |parts: &[&str]| {
        let command: Vec<String> = parts.iter().map(|p| (*p).to_owned()).collect();
        let s = script(&command, |_| None);
        (s.ends_after.map(|d| d.as_secs()), s.exit_code)
    };
    assert_eq!(read(&["sleep", "5"]), (Some(5), 0));
    assert_eq!(read(&["sh", "-c", "sleep 2; exit 3"]), (Some(2), 3));
    assert_eq!(read(&["/bin/false"]), (Some(0), 1));
    assert_eq!(read(&["/pause"]), (None, 0));
    assert_eq!(read(&[]), (None, 0));
    assert_eq!(read(&["sh", "-c", "sleep 1; server"]), (None, 0));
    assert_eq!(read(&["sleep", "infinity"]), (None, 0));
}

#[test]
fn annotations_say_more_than_commands() {
    let with = |pairs: &[(&str, &str)]| {
        let map: BTreeMap<String, String> = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let s = script(&["sleep".into(), "9".into()], |k| map.get(k));
        (s.ends_after.map(|d| d.as_secs()), s.exit_code, s.stop_delay.as_secs())
    };
    assert_eq!(with(&[(EXIT_CODE, "2")]), (Some(0), 2, 0));
    assert_eq!(with(&[(RUN_SECONDS, "30"), (STOP_SECONDS, "4")]), (Some(30), 0, 4));
    assert_eq!(with(&[(RUN_SECONDS, "soon"), (STOP_SECONDS, "-1")]), (Some(9), 0, 0));
    assert!(with(&[(RUN_SECONDS, "1e300")]).0.is_some());
}

#[test]
fn probes_fail_as_annotated() {
    let map = |k: &str, v: &str| BTreeMap::from([(k.to_owned(), v.to_owned())]);
    let fails = |kind, map: &BTreeMap<String, String>, s| probe(kind, map, Duration::from_secs(s)).is_some();
    let late = map(READY_SECONDS, "30");
    assert!(fails(Kind::Readiness, &late, 29) && !fails(Kind::Readiness, &late, 30));
    assert!(!fails(Kind::Liveness, &late, 0));
    let ill = map(FAILING_PROBES, "liveness, readiness");
    assert!(fails(Kind::Liveness, &ill, 99) && fails(Kind::Readiness, &ill, 99) && !fails(Kind::Startup, &ill, 99));
}
