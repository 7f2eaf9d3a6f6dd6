//! All volumes as they are at one moment, beside the pool: for backups.
//!
//! Where the disk's file system can share what files hold (XFS, btrfs), every volume's file system holds still at once, for as long as that
//! takes. Elsewhere each is copied while it alone holds still, and is of a moment of its own.

use super::record::Volume;
use super::{BLOCK, Fault, Hold, Pool, Result, data, io_of};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long a volume that somebody works on is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Picture {
    pub volumes: Vec<Pictured>,
    pub one_moment: bool,
}

pub struct Pictured {
    pub volume: Volume,
    pub file: PathBuf,
    pub at: SystemTime,
}

impl Pool {
    /// Into a directory of the same disk, a file a volume, named by its id. Blocks.
    pub fn picture(&self, to: &Path) -> Result<Picture> {
        let mut held = Vec::new();
        for volume in self.volumes()? {
            held.extend(self.held(&volume.id)?);
        }
        let (holds, volumes): (Vec<Hold>, Vec<Volume>) = held.into_iter().unzip();
        let shared = self.share(&volumes, to)?;
        drop(holds);
        if let Some(at) = shared {
            let pictured = |volume: Volume| Pictured {
                file: to.join(&volume.id),
                volume,
                at,
            };
            let volumes = volumes.into_iter().map(pictured).collect();
            return Ok(Picture {
                volumes,
                one_moment: true,
            });
        }
        let mut pictured = Vec::new();
        for volume in volumes {
            pictured.extend(self.copied(&volume.id, to)?);
        }
        Ok(Picture {
            one_moment: pictured.len() < 2,
            volumes: pictured,
        })
    }

    /// `None`: the file system can't. What there is then is removed.
    fn share(&self, volumes: &[Volume], to: &Path) -> Result<Option<SystemTime>> {
        let mut mounted = Vec::new();
        for volume in volumes.iter().filter(|v| !v.block) {
            mounted.extend(self.mounts(&volume.id)?.into_iter().next());
        }
        // Whether it can be done at all is found out before anybody waits.
        let Some(first) = volumes.first() else {
            return Ok(Some(SystemTime::now()));
        };
        let probe = self.clone_to(first, to)?;
        std::fs::remove_file(to.join(&first.id)).map_err(io_of("clearing away"))?;
        if !probe {
            return Ok(None);
        }
        let freeze = |dir: &PathBuf| keelson_sys::block::freeze(dir).map_err(io_of("freezing a file system"));
        let still = mounted.iter().map(freeze).collect::<Result<Vec<_>>>()?;
        let at = SystemTime::now();
        for volume in volumes {
            if !self.clone_to(volume, to)? {
                return Err(Fault::Invalid(format!(
                    "volume {} can't be shared, and others can",
                    volume.id
                )));
            }
        }
        drop(still);
        Ok(Some(at))
    }

    fn clone_to(&self, volume: &Volume, to: &Path) -> Result<bool> {
        let from = File::open(self.file(&volume.id)).map_err(io_of("reading a volume"))?;
        let file = data::create(&to.join(&volume.id)).map_err(io_of("making a copy"))?;
        keelson_sys::block::clone_file(&from, &file).map_err(io_of("sharing a volume's blocks"))
    }

    /// Volumes before it may have taken long: it is what it is now. `None`: it went meanwhile.
    fn copied(&self, id: &str, to: &Path) -> Result<Option<Pictured>> {
        let Some((_hold, volume)) = self.held(id)? else {
            return Ok(None);
        };
        let from = self.file(&volume.id);
        // What was written to; the rest is left out of the copy.
        let wanted = from.metadata().map_err(io_of("reading a volume"))?.blocks() * 512;
        let free = self.free()?;
        if wanted > free {
            return Err(Fault::Full { wanted, free });
        }
        let copy = to.join(&volume.id);
        let file = data::create(&copy).map_err(io_of("making a copy"))?;
        let at = SystemTime::now();
        let _still = self.still(&volume)?;
        let from = File::open(from).map_err(io_of("reading a volume"))?;
        data::copy(&from, &file).map_err(io_of("copying"))?;
        Ok(Some(Pictured { volume, file: copy, at }))
    }

    /// What nobody changes or removes while it is held. `None`: it isn't there any more.
    fn held(&self, id: &str) -> Result<Option<(Hold, Volume)>> {
        let hold = self.hold_within(id, PATIENCE)?;
        match self.volume(id) {
            Ok(volume) => Ok(Some((hold, volume))),
            Err(Fault::NotFound(_)) => Ok(None),
            Err(other) => Err(other),
        }
    }
}

/// A volume that comes from elsewhere. It is in the pool when it is whole; what is given up before goes at once, and what was cut short when the
/// pool is next opened.
pub struct Incoming {
    volume: Volume,
    root: PathBuf,
    new: PathBuf,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Nothing is there once it is in its place.
        if let Err(error) = super::remove(&self.new) {
            tracing::warn!(volume = self.volume.id, %error, "half a volume stays until the pool is next opened");
        }
    }
}

impl Incoming {
    /// Beside a pool that a server may have open. Gives the file that is to be filled.
    pub fn begin(root: &Path, volume: Volume) -> Result<(Incoming, File)> {
        if !super::is_id(&volume.id, "vol") || !volume.bytes.is_multiple_of(BLOCK) {
            return Err(Fault::Invalid("that is no volume of ours".into()));
        }
        let to = root.join("volumes").join(&volume.id);
        if to.exists() {
            return Err(Fault::Exists(format!("volume {}", volume.id)));
        }
        let new = root.join("new").join(format!("{}.{}", volume.id, std::process::id()));
        super::remove(&new)?;
        for dir in [root.join("volumes"), root.join("snapshots"), new.clone()] {
            std::fs::create_dir_all(dir).map_err(io_of("making a directory"))?;
        }
        std::fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(io_of("protecting the pool"))?;
        let file = data::create(&new.join("data")).map_err(io_of("making a volume"))?;
        let root = root.to_path_buf();
        Ok((Incoming { volume, root, new }, file))
    }

    pub fn file(&self) -> PathBuf {
        self.new.join("data")
    }

    /// Reserves its room, and puts it where it belongs.
    pub fn place(self) -> Result<()> {
        let file = File::options()
            .write(true)
            .open(self.file())
            .map_err(io_of("opening a volume"))?;
        data::size(&file, self.volume.bytes, self.volume.thin).map_err(io_of("reserving a volume's room"))?;
        file.sync_all().map_err(io_of("writing a volume"))?;
        super::record::write(&self.new.join("volume.json"), &self.volume)
            .map_err(io_of("writing a volume's record"))?;
        super::place(&self.new, &self.root.join("volumes").join(&self.volume.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(id: &str, bytes: u64) -> Volume {
        Volume {
            id: id.into(),
            name: "pvc-1".into(),
            bytes,
            block: true,
            thin: true,
            origin: None,
        }
    }

    #[test]
    fn a_volume_goes_out_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to, out) = (dir.path().join("from"), dir.path().join("to"), dir.path().join("out"));
        let pool = Pool::open(&from).unwrap();
        assert!(pool.picture(&out).unwrap().volumes.is_empty());
        let gone = format!("vol-{}", "a".repeat(32));
        assert!(pool.copied(&gone, &out).unwrap().is_none(), "it went meanwhile");
        let wanted = super::super::Wanted {
            name: "pvc-1".into(),
            bytes: 8 << 20,
            limit: None,
            block: true,
            thin: true,
            origin: None,
        };
        let made = pool.create(&wanted).unwrap();
        std::fs::write(pool.file(&made.id), b"content").unwrap();
        File::options()
            .write(true)
            .open(pool.file(&made.id))
            .unwrap()
            .set_len(8 << 20)
            .unwrap();
        std::fs::create_dir(&out).unwrap();
        let picture = pool.picture(&out).unwrap();
        assert_eq!((picture.volumes.len(), picture.one_moment), (1, true));
        let before = std::fs::read(&picture.volumes[0].file).unwrap();
        assert!(before.starts_with(b"content") && before.len() == 8 << 20);

        let (incoming, file) = Incoming::begin(&to, made.clone()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"content", 0).unwrap();
        drop(incoming);
        assert_eq!(
            std::fs::read_dir(to.join("new")).unwrap().count(),
            0,
            "given up it goes"
        );
        let (incoming, file) = Incoming::begin(&to, made.clone()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"content", 0).unwrap();
        assert!(
            Pool::open(&to).unwrap().volumes().unwrap().is_empty(),
            "cut short it is not there"
        );
        drop(incoming);
        let (incoming, file) = Incoming::begin(&to, made.clone()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"content", 0).unwrap();
        incoming.place().unwrap();
        let placed = Pool::open(&to).unwrap();
        assert_eq!(placed.volumes().unwrap(), std::slice::from_ref(&made));
        assert!(std::fs::read(placed.file(&made.id)).unwrap() == before);
        assert!(matches!(Incoming::begin(&to, made), Err(Fault::Exists(_))));
    }

    #[test]
    fn a_volume_that_somebody_works_on_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(dir.path()).unwrap();
        let hold = pool.hold("vol-1").unwrap();
        assert!(matches!(pool.hold("vol-1"), Err(Fault::Busy(_))));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| pool.hold_within("vol-1", Duration::from_secs(60)).is_ok());
            drop(hold);
            assert!(waiting.join().unwrap());
        });
        assert!(pool.hold("vol-1").is_ok());
    }

    #[test]
    fn records_that_lead_elsewhere_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for wrong in [
            volume("../../etc", BLOCK),
            volume("vol-1", BLOCK),
            volume(&format!("vol-{}", "a".repeat(32)), 5),
        ] {
            assert!(matches!(Incoming::begin(dir.path(), wrong), Err(Fault::Invalid(_))));
        }
    }
}
