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
