use super::*;
use keelson_store::embedded::Options;
use keelson_store::{Expect, Store};

fn names(directory: &Path) -> Vec<String> {
    let found = list(directory).unwrap().into_iter();
    found
        .map(|f| f.path.file_name().unwrap().to_str().unwrap().to_string())
        .collect()
}

#[test]
fn names_say_why_and_when_and_others_are_let_alone() {
    let directory = tempfile::tempdir().unwrap();
    let at = "2026-03-01T12:00:03Z".parse::<Timestamp>().unwrap();
    for expected in ["manual-20260301T120003Z.db", "manual-20260301T120004Z.db"] {
        let path = name(directory.path(), Why::Asked, at);
        assert_eq!(path, directory.path().join(expected));
        std::fs::write(&path, "").unwrap();
    }
    std::fs::write(name(directory.path(), Why::Scheduled, at), "abc").unwrap();
    for other in [
        "notes.txt",
        "scheduled-yesterday.db",
        "mine-20260301T120003Z.db",
        "scheduled-20260301T120003Z.db.part",
    ] {
        std::fs::write(directory.path().join(other), "").unwrap();
    }
    let found = list(directory.path()).unwrap();
    assert_eq!(found.len(), 3);
    assert_eq!((found[1].why, found[1].at, found[1].bytes), (Why::Scheduled, at, 3));
    prepare(directory.path()).unwrap();
    assert!(!directory.path().join("scheduled-20260301T120003Z.db.part").exists());
    assert!(directory.path().join("notes.txt").exists());
    assert_eq!(list(&directory.path().join("none")).unwrap(), []);
}

#[tokio::test]
async fn the_schedules_oldest_go_and_nobody_elses() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path().join("store"), Options::default())
        .await
        .unwrap();
    store
        .put("/registry/a".into(), "b".into(), Expect::Any, None)
        .await
        .unwrap();
    let snapshots = Snapshots::new(
        Source::Embedded(store),
        &Settings::here(directory.path().join("snapshots"), None),
        &Measures::default(),
    );
    let asked = snapshots.take(Why::Asked).await.unwrap();
    assert_eq!((asked.keys, asked.revision), (1, 2));
    for _ in 0..4 {
        let taken = snapshots.take(Why::Scheduled).await.unwrap();
        snapshots.keep(2, &taken.path, Timestamp::now()).unwrap();
        assert!(taken.path.exists());
    }
    let left = names(&snapshots.directory);
    assert_eq!(
        left.iter().filter(|n| n.starts_with("scheduled-")).count(),
        2,
        "{left:?}"
    );
    // Two of a clock that was ahead keep nothing of today's away.
    for year in [2098, 2099] {
        std::fs::write(snapshots.directory.join(format!("scheduled-{year}0101T000000Z.db")), "").unwrap();
    }
    std::fs::create_dir(snapshots.directory.join("scheduled-20200102T000000Z.db")).unwrap();
    let taken = snapshots.take(Why::Scheduled).await.unwrap();
    snapshots.keep(1, &taken.path, Timestamp::now()).unwrap();
    assert!(taken.path.exists());
    assert_eq!(
        list(&snapshots.directory).unwrap().len(),
        2,
        "{:?}",
        names(&snapshots.directory)
    );
    assert!(asked.path.exists());
    let newest = list(&snapshots.directory).unwrap().pop().unwrap();
    assert_eq!(
        keelson_store::snapshot::check(&newest.path, keelson_store::snapshot::Sum::Wanted)
            .unwrap()
            .keys,
        1
    );
}
