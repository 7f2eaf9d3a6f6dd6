//! Volumes as files, in memory, where there is room: what is there, is there completely. Needs mkfs.ext4, no rights.

use keelson_local::pool::record::Origin;
use keelson_local::pool::{Fault, Pool, Wanted, data};
use std::fs;
use std::path::Path;

const MIB: u64 = 1 << 20;

fn wanted(name: &str, bytes: u64) -> Wanted {
    Wanted {
        name: name.into(),
        bytes,
        limit: None,
        block: false,
        thin: true,
        origin: None,
    }
}

fn names(dir: &Path) -> Vec<String> {
    let list = fs::read_dir(dir).expect("a directory");
    list.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn the_same_name_is_the_same_volume() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let pool = Pool::open(dir.path()).expect("a pool");
    let first = pool.create(&wanted("a", 20 * MIB)).expect("made");
    assert_eq!(pool.create(&wanted("a", 20 * MIB)).expect("there"), first);
    assert!(matches!(pool.create(&wanted("a", 40 * MIB)), Err(Fault::Exists(_))));
    let block = Wanted {
        block: true,
        ..wanted("a", 20 * MIB)
    };
    assert!(matches!(pool.create(&block), Err(Fault::Exists(_))));
    assert_eq!(
        data::blocks(&pool.file(&first.id)).expect("an ext4"),
        20 * MIB / data::BLOCK
    );
    drop(pool);
    let pool = Pool::open(dir.path()).expect("opened again");
    assert_eq!(pool.volumes().expect("listed"), std::slice::from_ref(&first));
    pool.delete(&first.id).expect("removed");
    pool.delete(&first.id).expect("removed before");
    assert!(pool.volumes().expect("listed").is_empty());
    assert!(names(&dir.path().join("new")).is_empty());
}

#[test]
fn what_was_left_half_done_is_cleared_away() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let pool = Pool::open(dir.path()).expect("a pool");
    let kept = pool.create(&wanted("kept", 20 * MIB)).expect("made");
    drop(pool);
    let half = dir.path().join("new/vol-00000000000000000000000000000000");
    fs::create_dir(&half).expect("made");
    fs::write(half.join("data"), "half").expect("written");
    let pool = Pool::open(dir.path()).expect("opened again");
    assert!(names(&dir.path().join("new")).is_empty());
    assert_eq!(pool.volumes().expect("listed"), [kept]);
    assert!(
        matches!(pool.volume("../new"), Err(Fault::NotFound(_))),
        "an id is no path"
    );
}

#[test]
fn copies_are_of_their_moment() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let pool = Pool::open(dir.path()).expect("a pool");
    let block = Wanted {
        block: true,
        ..wanted("a", 16 * MIB)
    };
    let first = pool.create(&block).expect("made");
    let file = fs::File::options()
        .write(true)
        .open(pool.file(&first.id))
        .expect("its file");
    let write = |text: &[u8]| std::os::unix::fs::FileExt::write_all_at(&file, text, 9 * MIB).expect("written");
    write(b"before");
    let snapshot = pool.snap("s", &first.id, (0, 0)).expect("taken");
    assert_eq!(pool.snap("s", &first.id, (9, 9)).expect("there"), snapshot);
    write(b"after!");
    let copy = |name: &str, origin: Origin| {
        let wanted = Wanted {
            block: true,
            origin: Some(origin),
            ..wanted(name, 24 * MIB)
        };
        let made = pool.create(&wanted).expect("made");
        let bytes = fs::read(pool.file(&made.id)).expect("its file");
        assert_eq!(bytes.len() as u64, 24 * MIB);
        bytes[9 << 20..][..6].to_vec()
    };
    assert_eq!(copy("of-snapshot", Origin::Snapshot(snapshot.id.clone())), b"before");
    assert_eq!(copy("of-volume", Origin::Volume(first.id.clone())), b"after!");
    pool.delete(&first.id).expect("removed");
    assert_eq!(copy("later", Origin::Snapshot(snapshot.id.clone())), b"before");
    pool.unsnap(&snapshot.id).expect("removed");
    assert!(pool.snapshots().expect("listed").is_empty());
}

#[test]
fn sizes_only_grow_and_never_beyond_the_disk() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let pool = Pool::open(dir.path()).expect("a pool");
    let made = pool.create(&wanted("a", 20 * MIB)).expect("made");
    assert_eq!(pool.expand(&made.id, 10 * MIB, None).expect("left").bytes, 20 * MIB);
    assert_eq!(pool.expand(&made.id, 30 * MIB, None).expect("grown").bytes, 30 * MIB);
    assert_eq!(pool.volume(&made.id).expect("there").bytes, 30 * MIB);
    data::grow_unmounted(&pool.file(&made.id)).expect("its file system too");
    assert_eq!(
        data::blocks(&pool.file(&made.id)).expect("an ext4"),
        30 * MIB / data::BLOCK
    );
    let all = pool.free().expect("known") + (1 << 40);
    assert!(matches!(pool.create(&wanted("b", all)), Err(Fault::Full { .. })));
    assert!(matches!(pool.expand(&made.id, all, None), Err(Fault::Full { .. })));
    assert_eq!(names(&dir.path().join("volumes")), [made.id]);
}

#[test]
fn a_copy_smaller_than_its_source_is_refused() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let pool = Pool::open(dir.path()).expect("a pool");
    let made = pool.create(&wanted("a", 32 * MIB)).expect("made");
    let copy = |name: &str, bytes: u64| {
        pool.create(&Wanted {
            origin: Some(Origin::Volume(made.id.clone())),
            ..wanted(name, bytes)
        })
    };
    assert!(matches!(copy("small", 16 * MIB), Err(Fault::Smaller { .. })));
    assert_eq!(copy("unsaid", 0).expect("as its source").bytes, 32 * MIB);
    assert_eq!(pool.volumes().expect("listed").len(), 2);
}
