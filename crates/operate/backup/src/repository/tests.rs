use super::*;
use crate::manifest::{self, Manifest, Writer};
use crate::place::directory::Directory;
use std::path::Path;

const SIZES: [usize; 5] = [0, 1, piece::SIZE - 1, piece::SIZE, 3 * piece::SIZE + 5];

fn place(at: &Path) -> Arc<dyn Place> {
    Arc::new(Directory::new(at.to_path_buf()))
}

fn secret() -> Secret {
    Secret::passphrase("correct horse battery").unwrap()
}

/// Files of all sizes, with zeros, noise and repetitions in them.
fn write(dir: &Path) -> Vec<PathBuf> {
    let mut state = 7u64;
    let mut noise = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    let files = SIZES.iter().enumerate().map(|(n, size)| {
        let mut content: Vec<u8> = (0..*size).map(|_| noise()).collect();
        if n == 4 {
            content[piece::SIZE..2 * piece::SIZE].fill(0);
        }
        let path = dir.join(format!("file{n}"));
        std::fs::write(&path, content).unwrap();
        path
    });
    files.collect()
}

async fn backup(repository: &Repository, files: &[PathBuf], scheduled: bool) -> (String, u64) {
    let writer = Writer::new(repository).await.unwrap();
    let mut kept = Vec::new();
    for path in files {
        kept.push(writer.keep(path).await.unwrap());
    }
    let mut kept = kept.into_iter();
    let manifest = Manifest {
        at: Timestamp::now(),
        keelson: "test".into(),
        kubernetes: "1.37.2".into(),
        node: "n".into(),
        revision: 7,
        keys: 1,
        scheduled,
        store: kept.next().unwrap(),
        pki: Vec::new(),
        volumes: kept
            .enumerate()
            .map(|(n, data)| manifest::Volume {
                id: format!("vol-{n}"),
                record: serde_json::Value::Null,
                at: Timestamp::now(),
                data,
            })
            .collect(),
        one_moment: true,
        lacking: Vec::new(),
    };
    let (name, sent) = writer.finish(&manifest).await.unwrap();
    (name, sent.pieces)
}

async fn restored(repository: &Repository, name: &str, dir: &Path) -> Result<Vec<Vec<u8>>> {
    let backup = manifest::read(repository, Some(name)).await?;
    let mut contents = Vec::new();
    for (n, (_, file)) in backup.manifest.files().enumerate() {
        let path = dir.join(format!("restored{n}"));
        repository
            .fill(file, &path, std::fs::File::create(&path).unwrap())
            .await?;
        contents.push(std::fs::read(path).unwrap());
    }
    Ok(contents)
}

#[tokio::test]
async fn what_is_kept_comes_back_and_is_kept_once() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("repository");
    let files = write(dir.path());
    let repository = Repository::open_or_make(place(&at), &secret()).await.unwrap();
    let (first, sent) = backup(&repository, &files, false).await;
    assert_eq!(sent, 6, "an empty piece and an empty file are none");
    let (second, sent) = backup(&repository, &files, false).await;
    assert_eq!(sent, 0, "all of it was there");
    // One byte of the last file.
    let mut changed = std::fs::read(&files[4]).unwrap();
    *changed.last_mut().unwrap() ^= 1;
    std::fs::write(&files[4], changed).unwrap();
    let (third, sent) = backup(&repository, &files, false).await;
    assert_eq!(sent, 1);
    assert_ne!(first, second);

    let again = Repository::open(place(&at), &secret()).await.unwrap();
    let now: Vec<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert_eq!(restored(&again, &third, dir.path()).await.unwrap(), now);
    let before = restored(&again, &first, dir.path()).await.unwrap();
    assert!(before[..4] == now[..4] && before[4] != now[4]);
    let verified = manifest::verify(&again, None).await.unwrap();
    assert!(
        verified.faults.is_empty() && verified.backups == 3 && verified.pieces == 7,
        "{verified:?}"
    );

    // Nothing of a file can be read in the repository.
    let sealed = again.place.list("").await.unwrap();
    let needle = &now[3][..16];
    for object in sealed {
        let bytes = std::fs::read(at.join(object.name)).unwrap();
        assert!(!bytes.windows(16).any(|window| window == needle));
    }
}

#[tokio::test]
async fn damage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("repository");
    let files = write(dir.path());
    let repository = Repository::open_or_make(place(&at), &Secret::None).await.unwrap();
    let (name, _) = backup(&repository, &files, false).await;
    let pieces = repository.place.list(CHUNKS).await.unwrap();
    let list = full_of(&name);
    let flip = |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1;
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2);
    for object in [&pieces[0].name, &pieces[5].name, &list] {
        let path = at.join(object);
        let whole = std::fs::read(&path).unwrap();
        for damage in [&flip as &dyn Fn(&mut Vec<u8>), &cut] {
            let mut damaged = whole.clone();
            damage(&mut damaged);
            std::fs::write(&path, damaged).unwrap();
            let verified = manifest::verify(&repository, None).await.unwrap();
            assert_eq!(verified.faults.len(), 1, "{verified:?}");
            let fault = &verified.faults[0];
            assert!(
                fault.backup == name && fault.what.contains(object.as_str()),
                "{fault:?}"
            );
            assert!(
                restored(&repository, &name, dir.path()).await.is_err(),
                "nothing wrong is restored"
            );
        }
        // Another piece in its place.
        if *object != list {
            std::fs::copy(at.join(&pieces[1].name), &path).unwrap();
            assert_eq!(manifest::verify(&repository, None).await.unwrap().faults.len(), 1);
        }
        std::fs::remove_file(&path).unwrap();
        if *object == list {
            assert!(
                manifest::names(&repository).await.unwrap().is_empty(),
                "what has no list is no backup"
            );
        } else {
            let fault = manifest::verify(&repository, None).await.unwrap().faults.remove(0);
            assert!(fault.what.contains("is missing"), "{fault:?}");
        }
        std::fs::write(&path, &whole).unwrap();
    }
    assert!(manifest::verify(&repository, None).await.unwrap().faults.is_empty());
    std::fs::remove_file(at.join(CONFIG)).unwrap();
    let refused = Repository::open_or_make(place(&at), &Secret::None).await.err().unwrap();
    assert!(
        matches!(refused, Damage::Missing(_)),
        "no new keys over what old ones sealed: {refused}"
    );
}

fn full_of(name: &str) -> String {
    format!("{BACKUPS}{name}")
}

#[tokio::test]
async fn who_makes_a_repository_is_alone() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("repository");
    let secret = secret();
    let (one, other) = tokio::join!(
        Repository::open_or_make(place(&at), &secret),
        Repository::open_or_make(place(&at), &secret)
    );
    // Whoever got one can read what is written to the one that is there.
    let is = Repository::open_or_make(place(&at), &secret).await.unwrap();
    for made in [one, other].into_iter().flatten() {
        assert_eq!(made.keys.id(b"content"), is.keys.id(b"content"));
    }
    assert!(is.place.list("locks/").await.unwrap().is_empty());
}

#[tokio::test]
async fn who_was_taken_for_dead_is_told_before_anything_counts() {
    let dir = tempfile::tempdir().unwrap();
    let files = write(dir.path());
    let at = dir.path().join("repository");
    let repository = Repository::open_or_make(place(&at), &Secret::None).await.unwrap();
    let (name, _) = backup(&repository, &files, true).await;
    let lock = repository.lock("here").await.unwrap();
    lock.held().await.unwrap();
    // As by a machine whose clock is an hour ahead.
    for note in repository.place.list("locks/").await.unwrap() {
        repository.place.remove(&note.name).await.unwrap();
    }
    let refused = lock.held().await.unwrap_err().to_string();
    assert!(refused.contains("took our note"), "{refused}");
    let given_up = manifest::give_up(&repository, &lock, std::slice::from_ref(&name)).await;
    assert!(given_up.is_err());
    assert_eq!(manifest::names(&repository).await.unwrap(), [name]);
    lock.release().await.unwrap();
}

#[tokio::test]
async fn what_nobody_needs_goes_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("repository");
    let files = write(dir.path());
    let repository = Repository::open_or_make(place(&at), &Secret::None).await.unwrap();
    let (first, _) = backup(&repository, &files, true).await;
    std::fs::write(&files[3], vec![1; piece::SIZE]).unwrap();
    let (second, _) = backup(&repository, &files, true).await;
    // As a backup that was cut short leaves it.
    std::fs::write(dir.path().join("alone"), b"alone").unwrap();
    let alone = Writer::new(&repository).await.unwrap();
    alone.keep(&dir.path().join("alone")).await.unwrap();
    // As by somebody who leads these directories to others.
    let elsewhere = ["locks/authorized_keys", "chunks/passwd", "chunks/ab/group"].map(|name| at.join(name));
    for path in &elsewhere {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "somebody's").unwrap();
    }

    let lock = repository.lock("here").await.unwrap();
    let other = repository.lock("there").await.err().unwrap().to_string();
    assert!(other.contains("here writes to"), "{other}");
    assert_eq!(manifest::give_up(&repository, &lock, &[first]).await.unwrap(), 2);
    lock.release().await.unwrap();
    repository.lock("there").await.unwrap().release().await.unwrap();
    assert_eq!(
        manifest::names(&repository).await.unwrap(),
        std::slice::from_ref(&second)
    );
    assert!(manifest::verify(&repository, None).await.unwrap().faults.is_empty());
    assert!(elsewhere.iter().all(|path| path.exists()), "it is nobody's of ours");
    let now: Vec<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert_eq!(restored(&repository, &second, dir.path()).await.unwrap(), now);
}
