use super::*;
use crate::document::{self, OCI_IMAGE, OCI_INDEX};
use crate::error::Code;
use crate::names::{Algorithm, Reference};
use std::time::Instant;

fn open(dir: &Path, bounds: Bounds) -> Store {
    Store::open(dir, bounds).unwrap()
}

fn name(text: &str) -> Repository {
    Repository::parse(text).unwrap()
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

async fn push(store: &Store, repository: &str, bytes: &[u8]) -> Result<Digest> {
    let repository = name(repository);
    let id = store.begin(&repository, Algorithm::Sha256)?;
    let mut upload = store.upload(&repository, &id.to_string())?;
    let mut file = store.writer(&upload).await?;
    store.append(&mut upload, &mut file, bytes).await?;
    tokio::io::AsyncWriteExt::flush(&mut file).await?;
    let digest = sha256(bytes);
    store.finish(upload, &digest)?;
    Ok(digest)
}

fn image(blobs: &[(&Digest, usize)]) -> Vec<u8> {
    let descriptor = |(digest, size): &(&Digest, usize)| serde_json::json!({"mediaType": "application/octet-stream", "digest": digest.to_string(), "size": size});
    let all: Vec<_> = blobs.iter().map(descriptor).collect();
    let text = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_IMAGE, "config": all[0], "layers": all[1..]});
    text.to_string().into_bytes()
}

fn put(store: &Store, repository: &str, bytes: &[u8], tags: &[&str]) -> Result<Digest> {
    let facts = document::read(None, bytes)?;
    let digest = sha256(bytes);
    store.put(&name(repository), &digest, bytes, &facts, tags, false)?;
    Ok(digest)
}

/// Everything that can be seen as older than `grace`.
fn grown_old(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            grown_old(&path);
        } else {
            let old = SystemTime::now() - Duration::from_secs(100 * 3600);
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_modified(old)
                .unwrap();
        }
    }
}

const HOW: Collect = Collect {
    grace: Duration::from_secs(3600),
    untagged: None,
};

#[tokio::test]
async fn what_is_pushed_is_there_after_a_restart_and_what_is_no_blob_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Bounds::default());
    let (config, layer) = (
        push(&store, "a/b", b"{}").await.unwrap(),
        push(&store, "a/b", b"layer").await.unwrap(),
    );
    let manifest = image(&[(&config, 2), (&layer, 5)]);
    let digest = put(&store, "a/b", &manifest, &["v1"]).unwrap();
    // Another content than its digest says leaves nothing.
    let repository = name("a/b");
    let id = store.begin(&repository, Algorithm::Sha256).unwrap().to_string();
    let mut upload = store.upload(&repository, &id).unwrap();
    let mut file = store.writer(&upload).await.unwrap();
    store.append(&mut upload, &mut file, b"other").await.unwrap();
    drop(file);
    assert_eq!(store.finish(upload, &layer).unwrap_err().code, Code::DigestInvalid);
    assert_eq!(
        store.upload(&repository, &id).err().unwrap().code,
        Code::BlobUploadUnknown
    );
    // One that is under way goes on where it was.
    let id = store.begin(&repository, Algorithm::Sha256).unwrap().to_string();
    let mut upload = store.upload(&repository, &id).unwrap();
    let mut file = store.writer(&upload).await.unwrap();
    store.append(&mut upload, &mut file, b"half").await.unwrap();
    tokio::io::AsyncWriteExt::flush(&mut file).await.unwrap();
    drop((upload, file));
    let kept = store.kept();
    assert!(
        Store::open(dir.path(), Bounds::default()).is_err(),
        "two registries on one directory"
    );
    drop(store);

    let store = open(dir.path(), Bounds::default());
    assert_eq!(store.kept(), kept);
    let found = store.manifest(&repository, &Reference::Tag("v1".into())).unwrap();
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut &found.file, &mut bytes).unwrap();
    assert_eq!((found.digest, bytes), (digest, manifest));
    assert_eq!(store.blob(&repository, &layer).unwrap().1, 5);
    assert_eq!(
        store.blob(&name("a"), &layer).unwrap_err().code,
        Code::BlobUnknown,
        "another repository's"
    );
    let mut upload = store.upload(&repository, &id).unwrap();
    assert_eq!(upload.written, 4);
    assert_eq!(store.upload(&repository, &id).err().unwrap().code, Code::Busy);
    let mut file = store.writer(&upload).await.unwrap();
    store.append(&mut upload, &mut file, b"+half").await.unwrap();
    tokio::io::AsyncWriteExt::flush(&mut file).await.unwrap();
    store.finish(upload, &sha256(b"half+half")).unwrap();
    assert_eq!(store.blob(&repository, &sha256(b"half+half")).unwrap().1, 9);
}

#[tokio::test]
async fn a_manifest_stands_only_on_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Bounds::default());
    let config = push(&store, "a", b"{}").await.unwrap();
    let missing = sha256(b"missing");
    let refused = put(&store, "a", &image(&[(&config, 2), (&missing, 7)]), &[]).unwrap_err();
    assert_eq!(refused.code, Code::ManifestBlobUnknown);
    let refused = put(&store, "a", &image(&[(&config, 3)]), &[]).unwrap_err();
    assert_eq!(refused.code, Code::ManifestInvalid, "{refused:?}");
    assert_eq!(
        put(&store, "b", &image(&[(&config, 2)]), &[]).unwrap_err().code,
        Code::ManifestBlobUnknown
    );
    let manifest = image(&[(&config, 2)]);
    let digest = put(&store, "a", &manifest, &["x"]).unwrap();
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{{"mediaType":"{OCI_IMAGE}","digest":"{digest}","size":{}}}]}}"#,
        manifest.len()
    );
    put(&store, "a", index.as_bytes(), &["all"]).unwrap();
    // A tag moves; a manifest goes with its tags.
    let other = push(&store, "a", b"{ }").await.unwrap();
    let moved = put(&store, "a", &image(&[(&other, 3)]), &["x"]).unwrap();
    let a = name("a");
    assert_eq!(store.resolve(&a, &Reference::Tag("x".into())), Ok(moved.clone()));
    store.delete(&a, &Reference::Digest(moved)).unwrap();
    assert_eq!(store.tags(&a, "", 10).unwrap().names, ["all"]);
    assert!(store.delete(&a, &Reference::Tag("x".into())).is_err());
}

#[tokio::test]
async fn only_what_nothing_names_is_collected_and_never_what_somebody_counts_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Bounds::default());
    let (config, layer) = (
        push(&store, "a", b"{}").await.unwrap(),
        push(&store, "a", b"layer").await.unwrap(),
    );
    let loose = push(&store, "a", b"loose").await.unwrap();
    let digest = put(&store, "a", &image(&[(&config, 2), (&layer, 5)]), &["v1"]).unwrap();
    store.mount(&name("a"), &name("b"), &layer).unwrap();
    assert_eq!(
        store.collect(HOW, |_| None).unwrap(),
        Collected::default(),
        "all of it is new"
    );
    grown_old(dir.path());
    // Who asks for a blob counts on it.
    store.blob(&name("a"), &loose).unwrap();
    assert_eq!(store.collect(HOW, |_| None).unwrap().blobs, 0);
    grown_old(dir.path());
    let done = store.collect(HOW, |_| None).unwrap();
    assert_eq!((done.blobs, done.bytes), (1, 5));
    assert!(store.blob(&name("a"), &layer).is_ok() && store.blob(&name("a"), &loose).is_err());
    assert!(store.blob(&name("b"), &layer).is_err(), "nothing names it there");
    // Without its manifest the rest goes too.
    store.delete(&name("a"), &Reference::Digest(digest)).unwrap();
    grown_old(dir.path());
    assert_eq!(store.collect(HOW, |_| None).unwrap().blobs, 3);
    assert_eq!(store.kept(), 0);
}

#[tokio::test]
async fn manifests_go_that_nothing_stands_for_if_that_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Bounds::default());
    let config = push(&store, "a", b"{}").await.unwrap();
    let tagged = put(&store, "a", &image(&[(&config, 2)]), &["v1"]).unwrap();
    let untagged = put(&store, "a", &image(&[(&config, 2), (&config, 2)]), &[]).unwrap();
    let how = Collect {
        untagged: Some(Duration::from_secs(7200)),
        ..HOW
    };
    assert_eq!(store.collect(how, |_| None).unwrap().manifests, 0);
    grown_old(dir.path());
    assert_eq!(store.collect(how, |_| None).unwrap().manifests, 1);
    let a = name("a");
    assert!(store.resolve(&a, &Reference::Digest(untagged)).is_err());
    assert!(store.resolve(&a, &Reference::Digest(tagged.clone())).is_ok());
    // A signature of what is gone goes too, one of what is here stays.
    let says = |of: &Digest, n: usize| {
        let blobs = vec![(&config, 2); n];
        let mut text: serde_json::Value = serde_json::from_slice(&image(&blobs)).unwrap();
        text["subject"] = serde_json::json!({"mediaType": OCI_IMAGE, "digest": of.to_string(), "size": 1});
        put(&store, "a", text.to_string().as_bytes(), &[]).unwrap()
    };
    let (stays, goes) = (says(&tagged, 3), says(&sha256(b"gone"), 4));
    grown_old(dir.path());
    assert_eq!(store.collect(how, |_| None).unwrap().manifests, 1);
    assert!(store.resolve(&a, &Reference::Digest(goes)).is_err());
    store.delete(&a, &Reference::Digest(stays)).unwrap();
    // What is kept for others only goes by its age, tags or not.
    grown_old(dir.path());
    assert_eq!(
        store
            .collect(HOW, |_| Some(Duration::from_secs(7200)))
            .unwrap()
            .manifests,
        1
    );
}

/// Pushes beside a collection that takes everything it may: either the push finds out that something is gone, or it stays.
#[test]
fn a_push_beside_a_collection_is_whole_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path(), Bounds::default()));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let collecting = {
        let (store, stop) = (store.clone(), stop.clone());
        std::thread::spawn(move || {
            let how = Collect {
                grace: Duration::ZERO,
                untagged: None,
            };
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                store.collect(how, |_| None).unwrap();
                rounds += 1;
            }
            rounds
        })
    };
    let (mut whole, mut refused) = (0, 0);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        let n = whole + refused;
        let bytes = format!("blob {n}").into_bytes();
        let Ok(blob) = runtime.block_on(push(&store, "a", &bytes)) else {
            continue;
        };
        match put(&store, "a", &image(&[(&blob, bytes.len())]), &["t"]) {
            Ok(_) => {
                whole += 1;
                assert!(
                    store.blob(&name("a"), &blob).is_ok(),
                    "a blob of a manifest that was taken is gone"
                );
            }
            Err(error) => {
                assert_eq!(error.code, Code::ManifestBlobUnknown, "{error:?}");
                refused += 1;
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    assert!(collecting.join().unwrap() > 1);
    assert!(whole + refused > 10, "{whole} {refused}");
}

#[tokio::test]
async fn quotas_hold_for_all_and_for_one_repository() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds {
        whole: Some(30),
        repository: Some(12),
        blob: 20,
        uploads: 1,
        upload_idle: Duration::ZERO,
    };
    let store = open(dir.path(), bounds);
    let first = push(&store, "a", b"0123456789").await.unwrap();
    let refused = push(&store, "a", b"more").await.unwrap_err();
    assert_eq!(refused.code, Code::Denied, "{refused:?}");
    assert!(refused.message.contains("12 bytes of this repository"));
    assert_eq!(store.uploads(), 1, "what came stays for a while");
    assert_eq!(push(&store, "b", b"x").await.unwrap_err().code, Code::TooManyRequests);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(store.expire(), Ok(1));
    assert_eq!(store.kept(), 10);
    // What is named twice counts for both, and once in all.
    store.mount(&name("a"), &name("b"), &first).unwrap();
    assert_eq!(push(&store, "b", b"abc").await.unwrap_err().code, Code::Denied);
    store.expire().unwrap();
    assert_eq!(push(&store, "c", &[0; 21]).await.unwrap_err().code, Code::TooLarge);
    store.expire().unwrap();
    push(&store, "c", &[0; 12]).await.unwrap();
    let refused = push(&store, "d", &[1; 9]).await.unwrap_err();
    assert!(refused.message.contains("registry's quota"), "{refused:?}");
    store.expire().unwrap();
    store.delete_blob(&name("b"), &first).unwrap();
    push(&store, "b", b"abc").await.unwrap();
}

/// What several find free at once isn't taken by all of them.
#[test]
fn a_repository_quota_holds_for_many_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds {
        repository: Some(12),
        ..Bounds::default()
    };
    let store = open(dir.path(), bounds);
    let taken = std::thread::scope(|scope| {
        let all: Vec<_> = (0..16_u8)
            .map(|n| {
                let store = &store;
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    runtime.block_on(push(store, "a/b", &[n; 10])).is_ok()
                })
            })
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).filter(|ok| *ok).count()
    });
    assert_eq!(taken, 1);
}

#[tokio::test]
async fn one_namespace_leaves_uploads_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds {
        uploads: 4,
        ..Bounds::default()
    };
    let store = open(dir.path(), bounds);
    let begin = |repository: &str| store.begin(&name(repository), Algorithm::Sha256).map_err(|r| r.code);
    assert!(begin("a/x").is_ok() && begin("a/y").is_ok());
    assert_eq!(begin("a/z"), Err(Code::TooManyRequests));
    assert!(begin("b/x").is_ok() && begin("b").is_ok());
    assert_eq!(begin("c"), Err(Code::TooManyRequests));
}

/// Bytes that became content count as content, whatever else failed; they are given back once.
#[tokio::test]
async fn what_cannot_be_named_is_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds {
        upload_idle: Duration::ZERO,
        ..Bounds::default()
    };
    let store = open(dir.path(), bounds);
    push(&store, "b", b"other").await.unwrap();
    store.ensure_repository(&name("a")).unwrap();
    let marks = dir.path().join("repositories/a/blobs");
    fs::remove_dir(&marks).unwrap();
    fs::write(&marks, "in the way").unwrap();
    assert!(push(&store, "a", b"0123456789").await.is_err());
    assert_eq!(store.uploads(), 0, "nothing is left to go on with");
    assert_eq!(store.kept(), 15);
    fs::remove_file(&marks).unwrap();
    fs::create_dir(&marks).unwrap();
    grown_old(dir.path());
    assert_eq!(store.collect(HOW, |_| None).unwrap().bytes, 15);
    assert_eq!(store.kept(), 0);
}

#[tokio::test]
async fn what_an_index_begins_to_name_is_as_new_as_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Bounds::default());
    let config = push(&store, "a", b"{}").await.unwrap();
    let manifest = image(&[(&config, 2)]);
    let digest = put(&store, "a", &manifest, &[]).unwrap();
    grown_old(dir.path());
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{{"mediaType":"{OCI_IMAGE}","digest":"{digest}","size":{}}}]}}"#,
        manifest.len()
    );
    put(&store, "a", index.as_bytes(), &["all"]).unwrap();
    // A collection that has looked for what nothing stands for before leaves what was touched since.
    let marked = fs::metadata(store.record(&name("a"), &digest))
        .unwrap()
        .modified()
        .unwrap();
    assert!(marked.elapsed().unwrap_or_default() < Duration::from_secs(60));
    // And its content is a manifest's, not anybody's blob to delete.
    assert_eq!(
        store.delete_blob(&name("a"), &digest).unwrap_err().code,
        Code::Unsupported
    );
}

#[tokio::test]
async fn repositories_go_when_nothing_is_in_them_and_none_is_made_for_what_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Bounds::default());
    let nothing = sha256(b"nothing");
    assert!(put(&store, "b", &image(&[(&nothing, 7)]), &[]).is_err());
    assert!(store.mount(&name("a"), &name("b"), &nothing).is_err());
    assert!(!store.has_repository(&name("b")));
    push(&store, "a", b"{}").await.unwrap();
    grown_old(dir.path());
    assert_eq!(store.collect(HOW, |_| None).unwrap().blobs, 1);
    assert!(store.has_repository(&name("a")), "something was in it a moment ago");
    for part in ["blobs", "manifests", "tags", "referrers"] {
        let old = SystemTime::now() - Duration::from_secs(100 * 3600);
        let part = File::open(dir.path().join("repositories/a").join(part)).unwrap();
        part.set_modified(old).unwrap();
    }
    store.collect(HOW, |_| None).unwrap();
    assert!(!store.has_repository(&name("a")));
    push(&store, "a", b"{}").await.unwrap();
}

/// One record that can't be read keeps what its repository names, and stops nothing else.
#[tokio::test]
async fn what_cannot_be_read_of_one_repository_is_collected_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Bounds::default());
    let config = push(&store, "a", b"{}").await.unwrap();
    let digest = put(&store, "a", &image(&[(&config, 2)]), &["v1"]).unwrap();
    push(&store, "b", b"loose").await.unwrap();
    fs::write(store.record(&name("a"), &digest), "{").unwrap();
    grown_old(dir.path());
    let done = store.collect(HOW, |_| None).unwrap();
    assert_eq!((done.blobs, done.bytes), (1, 5));
    assert!(store.blob(&name("a"), &config).is_ok());
}

#[test]
fn lists_are_told_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Bounds::default());
    for n in 0..25 {
        store.ensure_repository(&name(&format!("r/{n:02}"))).unwrap();
    }
    let (mut last, mut all, mut pages) = (String::new(), Vec::new(), 0);
    loop {
        let page = store.repositories(&last, 10).unwrap();
        pages += 1;
        last = page.names.last().cloned().unwrap_or_default();
        all.extend(page.names);
        if page.is_last {
            break;
        }
    }
    assert_eq!((pages, all.len()), (3, 25));
    assert!(all.is_sorted());
    assert!(store.repositories("", 0).unwrap().names.is_empty());
    assert_eq!(store.tags(&name("none"), "", 1).unwrap_err().code, Code::NameUnknown);
}

/// A tag that can't be read may stand for any manifest.
#[tokio::test]
async fn nothing_goes_of_a_repository_that_can_not_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Bounds::default());
    let config = push(&store, "a", b"{}").await.unwrap();
    put(&store, "a", &image(&[(&config, 2)]), &[]).unwrap();
    grown_old(dir.path());
    let how = Collect {
        untagged: Some(Duration::from_secs(7200)),
        ..HOW
    };
    let tag = dir.path().join("repositories/a/tags/x");
    fs::create_dir(&tag).unwrap();
    assert_eq!(store.collect(how, |_| None).unwrap(), Collected::default());
    fs::remove_dir(&tag).unwrap();
    assert_eq!(store.collect(how, |_| None).unwrap().manifests, 1);
}
