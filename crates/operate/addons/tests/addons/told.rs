//! What a server tells, and what it takes back.

use keelson_addons::source::plan::{Plan, Step, plan};
use keelson_addons::source::tree::{Found, Tree};
use keelson_addons::source::{Content, Source};

fn tree(place: &str, files: &[(&str, &str)]) -> Tree {
    let found = files.iter().map(|(path, text)| Found {
        path: (*path).into(),
        file: format!("/a/{path}").into(),
        place: match path.contains('/') {
            true => format!("{place} {BELOW}"),
            false => place.into(),
        },
        is_young: false,
        hash: (*text).into(),
        content: Content::Packed(text.as_bytes().to_vec()),
    });
    Tree {
        directory: "/a".into(),
        place: place.into(),
        files: found.collect(),
        ..Tree::default()
    }
}

/// Where directories below are.
const BELOW: &str = "5:5";

fn told(trees: &[Tree]) -> Vec<Source> {
    let steps = plan("s", trees, &[]).steps.into_iter();
    steps
        .filter_map(|s| match s {
            Step::Tell(source) => Some(*source),
            Step::Withdraw(_) => None,
        })
        .collect()
}

fn shown(plan: &Plan, before: &[Source]) -> Vec<String> {
    let of = |name: &String| before.iter().find(|s| s.secret_name() == *name).map(|s| s.path.clone());
    let steps = plan.steps.iter().map(|s| match s {
        Step::Tell(source) => format!("tell {} {}", source.path, source.hash),
        Step::Withdraw(name) => format!("withdraw {}", of(name).unwrap_or_default()),
    });
    steps.collect()
}

#[test]
fn what_has_changed_is_told_and_what_is_gone_withdrawn_last() {
    let before = told(&[tree("1:1", &[("x.yaml", "1"), ("y.yaml", "1"), ("z.yaml", "1")])]);
    let now = plan(
        "s",
        &[tree("1:1", &[("x.yaml", "1"), ("y.yaml", "2"), ("w.yaml", "1")])],
        &before,
    );
    assert_eq!(
        shown(&now, &before),
        ["tell y.yaml 2", "tell w.yaml 1", "withdraw z.yaml"]
    );
    // The last one, from the same directory.
    let now = plan("s", &[tree("1:1", &[])], &before);
    assert_eq!((now.steps.len(), now.kept.len()), (3, 0));
}

#[test]
fn a_directory_that_is_not_what_it_was_takes_nothing_away() {
    let before = told(&[tree("1:1", &[("x.yaml", "1")])]);
    let incomplete = Tree {
        incomplete: Some("an error of the disk".into()),
        ..tree("1:1", &[])
    };
    for (trees, why) in [
        (vec![tree("2:2", &[])], "another directory"),
        (vec![incomplete], "an error of the disk"),
        (vec![], "no directory of add-ons"),
    ] {
        let now = plan("s", &trees, &before);
        assert!(
            now.steps.is_empty() && now.kept.len() == 1 && now.kept[0].contains(why),
            "{now:?}"
        );
    }
    // Another one with files in it was put there by somebody, all at once.
    let now = plan("s", &[tree("2:2", &[("w.yaml", "1")])], &before);
    assert_eq!(shown(&now, &before), ["tell w.yaml 1", "withdraw x.yaml"]);
}

#[test]
fn a_disk_below_that_is_not_mounted_takes_nothing_away() {
    let before = told(&[tree("1:1", &[("mnt/x.yaml", "1"), ("y.yaml", "1")])]);
    let now = |below: Option<&str>| {
        let mut tree = tree("1:1", &[("y.yaml", "1")]);
        tree.places
            .extend(below.map(|place| ("mnt/".to_string(), place.to_string())));
        plan("s", &[tree], &before)
    };
    let unmounted = now(Some("6:6"));
    assert!(
        unmounted.steps.is_empty() && unmounted.kept[0].contains("/a/mnt/"),
        "{unmounted:?}"
    );
    assert_eq!(shown(&now(Some(BELOW)), &before), ["withdraw mnt/x.yaml"]);
    assert_eq!(
        shown(&now(None), &before),
        ["withdraw mnt/x.yaml"],
        "with its directory"
    );
}

#[test]
fn while_a_file_is_being_written_what_was_told_counts() {
    let before = told(&[tree("1:1", &[("x.yaml", "1"), ("y.yaml", "1")])]);
    let mut half = tree("1:1", &[("x.yaml", "half")]);
    half.files[0].is_young = true;
    let now = plan("s", &[half], &before);
    assert!(now.steps.is_empty() && now.kept[0].contains("/a/x.yaml"), "{now:?}");
}
