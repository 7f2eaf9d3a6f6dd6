//! How objects are, case by case.

use keelson_addons::health::{of, short};
use serde_json::Value;

/// `state: object`, a line each; the first word of the message after a bar.
const CASES: &str = include_str!("health_cases.txt");

#[test]
fn objects_are_as_kstatus_says() {
    let mut cases = 0;
    for line in CASES.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let (wanted, object) = line.split_once(": ").unwrap();
        let object: Value = serde_saphyr::from_str(object).unwrap_or_else(|e| panic!("{line}: {e}"));
        let is = of(&object);
        assert_eq!(format!("{:?}", is.state), wanted, "{line}\n{}", is.message);
        cases += 1;
    }
    assert!(cases > 40);
}

#[test]
fn messages_are_cut_between_letters() {
    let long = "ä".repeat(1000);
    assert!(short(&long).len() < 1000 + 4 && short(&long).ends_with('…'));
    assert_eq!(short("ä"), "ä");
}
