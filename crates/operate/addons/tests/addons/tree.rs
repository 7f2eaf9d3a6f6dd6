//! What is found in directories.

use keelson_addons::source::tree::{Tree, read};
use std::fs;

fn told(tree: &Tree) -> Vec<String> {
    let told = tree.files.iter().map(|f| match f.content.text() {
        Ok(text) => format!("{} {}", f.path, String::from_utf8_lossy(&text)),
        Err(why) => format!("{}: {}", f.path, why.split(':').next().unwrap_or_default()),
    });
    told.collect()
}

#[test]
fn files_of_manifests_are_found_in_directories_below_and_by_links() {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::create_dir_all(at(".git")).unwrap();
    fs::create_dir_all(at("k/base")).unwrap();
    fs::create_dir_all(at("c")).unwrap();
    for (path, text) in [
        ("x.yaml", "1"),
        ("a/y.yml", "2"),
        ("a/b/z.json", "3"),
        ("README.md", "no"),
        (".hidden.yaml", "no"),
        (".git/config.yaml", "no"),
        ("k/kustomization.yaml", "no"),
        ("k/base/web.yaml", "no"),
        ("c/Chart.yaml", "no"),
        ("c/values.yaml", "no"),
    ] {
        fs::write(at(path), text).unwrap();
    }
    std::os::unix::fs::symlink("x.yaml", at("link.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere", at("gone.yaml")).unwrap();
    let tree = read(dir.path());
    assert_eq!(tree.incomplete, None);
    assert_eq!(
        told(&tree),
        [
            "a/b/z.json 3",
            "a/y.yml 2",
            "c/Chart.yaml: a chart isn't rendered here",
            "gone.yaml: it can't be read",
            "k/kustomization.yaml: kustomizations aren't built here",
            "link.yaml 1",
            "x.yaml 1",
        ]
    );
    assert!(!tree.place.is_empty());
}

#[test]
fn what_cannot_be_read_makes_the_list_incomplete() {
    let dir = tempfile::tempdir().unwrap();
    assert!(read(&dir.path().join("absent")).incomplete.is_some());
    assert_eq!(read(&dir.path().join("absent")).place, "");
    fs::write(dir.path().join("x.yaml"), "1").unwrap();
    assert_eq!(read(dir.path()).incomplete, None);
    std::os::unix::fs::symlink(dir.path(), dir.path().join("circle")).unwrap();
    let tree = read(dir.path());
    assert!(tree.incomplete.is_some() && tree.files.len() == 1, "{tree:?}");
    // A file in place of a directory.
    assert!(read(&dir.path().join("x.yaml")).incomplete.is_some());
}

#[test]
fn what_may_lead_to_a_disk_that_is_away_is_not_taken_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("x.yaml"), "1").unwrap();
    std::os::unix::fs::symlink("/nowhere/at/all", dir.path().join("shared")).unwrap();
    let tree = read(dir.path());
    let why = tree.incomplete.unwrap_or_default();
    assert!(why.contains("shared"), "{why}");
    assert_eq!(tree.files.len(), 1);
}

#[test]
fn a_file_that_was_not_written_does_not_say_that_there_is_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("x.yaml", ""), ("y.yaml", "\n \0\0\0"), ("z.yaml", "# nothing\n")] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let tree = read(dir.path());
    let is_known: Vec<bool> = tree.files.iter().map(|f| f.content.text().is_ok()).collect();
    assert_eq!(is_known, [false, false, true]);
}

#[test]
fn a_file_knows_where_it_was_and_whether_it_was_just_written() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    for name in ["a/b/x.yaml", "y.yaml"] {
        fs::write(dir.path().join(name), "1").unwrap();
    }
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    let file = fs::File::options().write(true).open(dir.path().join("y.yaml")).unwrap();
    file.set_modified(old).unwrap();
    let tree = read(dir.path());
    let (x, y) = (&tree.files[0], &tree.files[1]);
    assert_eq!((x.path.as_str(), y.path.as_str()), ("a/b/x.yaml", "y.yaml"));
    assert_eq!((x.place.split(' ').count(), &y.place), (3, &tree.place));
    assert!(x.place.ends_with(&tree.places["a/b/"]), "{tree:?}");
    assert!(!y.is_young);
}
