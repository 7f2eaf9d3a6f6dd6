//! What is told of files that come, go, are written and exchanged, and what isn't.

#![allow(clippy::unwrap_used)]

use keelson_follow::{Contents, Target, Watch};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);
/// What would be told is told by then.
const NOT: Duration = Duration::from_millis(400);
const MOST: u64 = 64;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("keelson-follow-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
        fs::write(self.at(name), text).unwrap();
    }

    /// As editors and volumes do it: in one step.
    fn link(&self, name: &str, to: &str) {
        symlink(to, self.at("fresh")).unwrap();
        fs::rename(self.at("fresh"), self.at(name)).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn told(watch: &mut Watch, what: &str) {
    let told = timeout(SOON, watch.changed()).await;
    told.unwrap_or_else(|_| panic!("{what} isn't told")).unwrap();
    // The rest of the same, if any.
    while timeout(NOT, watch.changed()).await.is_ok() {}
}

async fn untold(watch: &mut Watch, what: &str) {
    assert!(timeout(NOT, watch.changed()).await.is_err(), "{what} is told");
}

async fn says(contents: &mut Contents, text: &str) {
    let now = timeout(SOON, contents.changed()).await;
    let now = now.unwrap_or_else(|_| panic!("{text:?} isn't told")).unwrap();
    assert_eq!(String::from_utf8_lossy(&now.concat()), text);
}

async fn is_quiet(contents: &mut Contents) {
    if let Ok(told) = timeout(NOT, contents.changed()).await {
        panic!("{told:?}");
    }
}

#[tokio::test]
async fn a_file_is_followed_from_before_its_directory_is_there() {
    let at = Scratch::new("late");
    let mut watch = Watch::files([at.at("a/b/file")]).unwrap();
    untold(&mut watch, "nothing").await;
    fs::create_dir(at.at("a")).unwrap();
    told(&mut watch, "a directory on the way").await;
    at.write("a/other", "x");
    at.write("elsewhere", "x");
    untold(&mut watch, "what is beside the way").await;
    at.write("a/b/file", "one");
    told(&mut watch, "the file").await;
    at.write("a/b/file", "two");
    told(&mut watch, "what was written").await;
    at.write("a/b/next", "three");
    fs::read(at.at("a/b/file")).unwrap();
    untold(&mut watch, "a file beside, and reading").await;
    fs::rename(at.at("a/b/next"), at.at("a/b/file")).unwrap();
    told(&mut watch, "another file of the name").await;
    at.write("a/b/file", "four");
    told(&mut watch, "what was written to the other file").await;
    fs::rename(at.at("a"), at.at("gone")).unwrap();
    told(&mut watch, "that the directory was moved away").await;
    at.write("gone/b/file", "five");
    untold(&mut watch, "what happens where it was moved to").await;
    at.write("a/b/file", "six");
    told(&mut watch, "a file where it was").await;
}

#[tokio::test]
async fn links_on_the_way_may_be_set_to_others() {
    let at = Scratch::new("links");
    for name in ["one", "two"] {
        at.write(&format!("volume/..{name}/key"), name);
    }
    at.link("volume/..data", "..one");
    at.link("volume/key", "..data/key");
    at.link("known", at.at("volume/../volume").to_str().unwrap());
    let mut contents = Contents::of([at.at("known/key")], MOST);
    says(&mut contents, "one").await;
    at.link("volume/..data", "..two");
    says(&mut contents, "two").await;
    at.write("volume/..two/key", "three");
    says(&mut contents, "three").await;
    at.write("volume/..one/key", "old");
    is_quiet(&mut contents).await;
    at.write("elsewhere/key", "four");
    at.link("known", "elsewhere");
    says(&mut contents, "four").await;
    // In circles: it isn't there, and that is told as anybody would.
    at.link("known", "known");
    assert!(timeout(SOON, contents.changed()).await.unwrap().is_err());
    at.link("known", "volume");
    says(&mut contents, "three").await;
}

#[tokio::test]
async fn what_is_told_is_another_content_and_a_burst_is_told_once() {
    let at = Scratch::new("contents");
    at.write("a", "1");
    at.write("b", "1");
    let mut contents = Contents::of([at.at("a"), at.at("b")], MOST).known(vec![b"1".to_vec(), b"1".to_vec()]);
    is_quiet(&mut contents).await;
    at.write("a", "1");
    fs::File::open(at.at("b"))
        .unwrap()
        .set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    is_quiet(&mut contents).await;
    for i in 2..20 {
        at.write("a", &i.to_string());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    at.write("b", "-");
    says(&mut contents, "19-").await;
    is_quiet(&mut contents).await;
    fs::remove_file(at.at("b")).unwrap();
    let gone = timeout(SOON, contents.changed()).await.unwrap().unwrap_err();
    assert!(
        gone.to_string()
            .starts_with(&format!("open {}: ", at.at("b").display())),
        "{gone}"
    );
    at.write("b", &"x".repeat(MOST as usize + 1));
    let long = timeout(SOON, contents.changed()).await.unwrap().unwrap_err();
    assert!(long.to_string().contains("more than 64 bytes"), "{long}");
    at.write("b", "-");
    is_quiet(&mut contents).await;
    contents.again(Duration::from_millis(50));
    says(&mut contents, "19-").await;
}

#[tokio::test]
async fn who_gives_up_waiting_is_told_when_he_asks_again() {
    let at = Scratch::new("again");
    at.write("file", "one");
    let mut contents = Contents::of([at.at("file")], MOST);
    says(&mut contents, "one").await;
    at.write("file", "two");
    // Between any two steps.
    for _ in 0..500 {
        let give_up = timeout(Duration::from_micros(300), contents.changed()).await;
        if let Ok(told) = give_up {
            assert_eq!(told.unwrap().concat(), b"two");
            return;
        }
    }
    says(&mut contents, "two").await;
}

#[tokio::test]
async fn a_tree_is_followed_with_all_that_comes_into_it() {
    let at = Scratch::new("tree");
    let follow = |target: fn(PathBuf) -> Target, name: &str| Watch::new(vec![target(at.at(name))]).unwrap();
    let mut tree = follow(Target::Tree, "tree");
    let mut flat = follow(Target::Directory, "tree");
    fs::create_dir(at.at("tree")).unwrap();
    told(&mut tree, "the directory").await;
    told(&mut flat, "the directory").await;
    fs::create_dir(at.at("tree/below")).unwrap();
    told(&mut tree, "a directory below").await;
    told(&mut flat, "a directory below").await;
    at.write("tree/below/deeper/file", "1");
    told(&mut tree, "a file below").await;
    untold(&mut flat, "what is in directories below").await;
    at.write("tree/below/deeper/file", "2");
    told(&mut tree, "what was written").await;
    at.write("tree/file", "1");
    told(&mut flat, "a file").await;
    fs::rename(at.at("tree"), at.at("old")).unwrap();
    told(&mut tree, "that it was moved away").await;
    at.write("tree/below/new", "1");
    told(&mut tree, "another directory of the name").await;
    at.write("old/below/new", "1");
    untold(&mut tree, "what happens where it was moved to").await;
    // Not followed: it may lead to all that the machine has.
    at.link("tree/link", at.at("old").to_str().unwrap());
    told(&mut tree, "a link").await;
    at.write("old/below/new", "2");
    untold(&mut tree, "what happens where a link leads").await;
}

#[tokio::test]
async fn several_targets_in_one_directory_keep_what_each_wants() {
    let at = Scratch::new("several");
    at.write("dir/file", "1");
    let both = [Target::Directory(at.at("dir")), Target::File(at.at("dir/file"))];
    for targets in [both.to_vec(), both.iter().rev().cloned().collect()] {
        let mut watch = Watch::new(targets).unwrap();
        for file in ["dir/file", "dir/other"] {
            at.write(file, "2");
            told(&mut watch, file).await;
            fs::File::options()
                .append(true)
                .open(at.at(file))
                .unwrap()
                .set_len(0)
                .unwrap();
            told(&mut watch, file).await;
        }
    }
    assert!(Watch::files([Path::new("relative").to_path_buf()]).is_ok());
}
