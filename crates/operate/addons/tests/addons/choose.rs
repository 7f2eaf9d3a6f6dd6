//! Whose file counts.

use keelson_addons::choose::choose;
use keelson_addons::source::Source;

fn source(server: &str, hash: &str) -> Source {
    Source {
        server: server.into(),
        file: "/a/x.yaml".into(),
        hash: hash.into(),
        ..Source::default()
    }
}

#[test]
fn the_file_in_force_stays_so_while_its_server_has_it() {
    let all = [source("s2", "old"), source("s1", "new"), source("s3", "old")];
    let chosen = |all: &[Source], before: Option<&str>| {
        let choice = choose(all, before).unwrap();
        let other: Vec<String> = choice.other.iter().map(|s| s.server.clone()).collect();
        (choice.chosen.server.clone(), other.join(" "))
    };
    assert_eq!(chosen(&all, Some("s2:/a/x.yaml")), ("s2".into(), "s1".into()));
    assert_eq!(chosen(&all, None), ("s1".into(), "s2 s3".into()));
    assert_eq!(chosen(&all, Some("s9:/a/x.yaml")), ("s1".into(), "s2 s3".into()));
    assert_eq!(
        chosen(&[source("s2", "new"), source("s1", "new")], None),
        ("s1".into(), String::new())
    );
    assert!(choose(&[], Some("s1:/a/x.yaml")).is_none());
}
