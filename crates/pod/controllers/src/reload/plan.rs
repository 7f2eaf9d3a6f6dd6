//! Whether something that a workload follows has changed since it was last rolled out.

use std::collections::BTreeMap;

/// On the workload: what it was last rolled out with, as `configmap/NAME=PRINT,…`.
pub const SEEN: &str = "keelson.dev/reload-seen";
/// On the template of its pods: what had changed. By it they are others.
pub const RELOADED: &str = "keelson.dev/reloaded";

#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    Nothing,
    /// Nothing that it had changed; from now on this counts.
    Note(String),
    Reload {
        seen: String,
        changed: String,
    },
}

/// `now`: how each that is followed is, if it is there. What is new to a workload was named by a new template, or came after its pods: they
/// have it, or wait for it. What isn't there is remembered as it was.
pub fn plan(seen: Option<&str>, now: &BTreeMap<String, Option<String>>) -> Plan {
    let before: BTreeMap<&str, &str> = seen.map(read).unwrap_or_default();
    let entry = |(name, print): (&String, &Option<String>)| {
        let print = print.as_deref().or_else(|| before.get(name.as_str()).copied())?;
        Some(format!("{name}={print}"))
    };
    let text = now.iter().filter_map(entry).collect::<Vec<_>>().join(",");
    if seen.unwrap_or_default() == text {
        return Plan::Nothing;
    }
    let differs = |name: &str, print: &str| before.get(name).is_some_and(|was| *was != print);
    let changed: Vec<String> = now
        .iter()
        .filter_map(|(name, print)| Some((name, print.as_deref()?)))
        .filter(|(name, print)| differs(name, print))
        .map(|(name, print)| format!("{name}={print}"))
        .collect();
    match changed.is_empty() {
        true => Plan::Note(text),
        false => Plan::Reload {
            seen: text,
            changed: changed.join(","),
        },
    }
}

fn read(seen: &str) -> BTreeMap<&str, &str> {
    seen.split(',').filter_map(|entry| entry.split_once('=')).collect()
}

/// Without how they are.
pub fn names(changed: &str) -> Vec<&str> {
    read(changed).into_keys().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(entries: &[(&str, Option<&str>)]) -> BTreeMap<String, Option<String>> {
        let own = |(name, print): &(&str, Option<&str>)| ((*name).to_owned(), print.map(str::to_owned));
        entries.iter().map(own).collect()
    }

    #[test]
    fn only_what_it_had_and_what_is_other_now_rolls_it_out() {
        let (a, b) = ("configmap/a", "secret/b");
        let note = |text: &str| Plan::Note(text.to_owned());
        assert_eq!(
            plan(None, &now(&[(a, Some("1"))])),
            note("configmap/a=1"),
            "at first it is noted"
        );
        assert_eq!(
            plan(None, &now(&[(a, None)])),
            Plan::Nothing,
            "there is nothing to note"
        );
        let seen = Some("configmap/a=1,secret/b=2");
        assert_eq!(plan(seen, &now(&[(a, Some("1")), (b, Some("2"))])), Plan::Nothing);
        let reload = Plan::Reload {
            seen: "configmap/a=3,secret/b=2".into(),
            changed: "configmap/a=3".into(),
        };
        assert_eq!(plan(seen, &now(&[(a, Some("3")), (b, Some("2"))])), reload);
        assert_eq!(names("configmap/a=3,secret/b=2"), [a, b]);
        // It went, and comes back as another.
        assert_eq!(plan(seen, &now(&[(a, None), (b, Some("2"))])), Plan::Nothing);
        assert!(matches!(
            plan(seen, &now(&[(a, Some("4")), (b, None)])),
            Plan::Reload { .. }
        ));
        // It is named anew, or no more.
        assert_eq!(
            plan(Some("configmap/a=1"), &now(&[(a, Some("1")), (b, Some("2"))])),
            note("configmap/a=1,secret/b=2")
        );
        assert_eq!(plan(seen, &now(&[(b, Some("2"))])), note("secret/b=2"));
    }
}
