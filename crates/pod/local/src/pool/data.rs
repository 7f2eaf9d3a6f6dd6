//! The files that hold volumes' data.

use keelson_sys::program;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// What is copied at a time; as much of zeros is left out.
const CHUNK: usize = 1 << 20;
/// The block of every file system made here; sizes are multiples of it.
pub const BLOCK: u64 = 4096;
/// The program that makes file systems.
pub const MKFS: &str = "mkfs.ext4";
/// Whether it can be told that there are zeros; until it has refused that.
static KNOWS_ZEROED: AtomicBool = AtomicBool::new(true);

pub fn create(file: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
}

/// Gives the file its size, and the room for it unless it is to be taken later.
pub fn size(file: &File, bytes: u64, thin: bool) -> io::Result<()> {
    if file.metadata()?.len() < bytes {
        file.set_len(bytes)?;
    }
    if thin {
        return Ok(());
    }
    let length = i64::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(nix::libc::EFBIG))?;
    nix::fcntl::fallocate(file, nix::fcntl::FallocateFlags::empty(), 0, length).map_err(io::Error::from)
}

/// Shares what `from` holds, or copies it where the file system can't share.
pub fn copy(from: &File, to: &File) -> io::Result<()> {
    if keelson_sys::block::clone_file(from, to)? {
        return Ok(());
    }
    let bytes = from.metadata()?.len();
    to.set_len(bytes)?;
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while at < bytes {
        let read = from.read_at(&mut chunk, at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if chunk[..read].iter().any(|b| *b != 0) {
            to.write_all_at(&chunk[..read], at)?;
        }
        at += read as u64;
    }
    Ok(())
}

/// Makes an empty ext4 in the file, which nobody has written to: it is all zeros, so neither mkfs nor the kernel, once it is mounted, has
/// to write any. What was reserved for the file stays so, and nothing of it is kept from its user for root.
pub fn format(file: &Path) -> io::Result<()> {
    const PLAIN: &str = "nodiscard";
    const ZEROED: &str = "nodiscard,assume_storage_prezeroed=1";
    let make = |how| tool(MKFS, &["-q", "-F", "-m", "0", "-b", "4096", "-E", how], file, &[0]);
    if KNOWS_ZEROED.load(Ordering::Relaxed) {
        let Err(first) = make(ZEROED) else { return Ok(()) };
        // e2fsprogs before 1.47 refuse what they don't know before they write anything.
        make(PLAIN).map_err(|_| first)?;
        KNOWS_ZEROED.store(false, Ordering::Relaxed);
        return Ok(());
    }
    make(PLAIN)
}

/// How many blocks the ext4 in a file or on a device has.
pub fn blocks(file: &Path) -> io::Result<u64> {
    let mut head = [0; 1024];
    File::open(file)?.read_exact_at(&mut head, 1024)?;
    let number = |at: usize| u64::from(u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
    if head[0x38..0x3A] != [0x53, 0xEF] {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "there is no ext4 in it"));
    }
    Ok(number(4) | number(0x150) << 32)
}

/// Makes an ext4 that isn't mounted as large as its device, checked before.
pub fn grow_unmounted(device: &Path) -> io::Result<()> {
    // 1: it was repaired.
    tool("e2fsck", &["-f", "-p"], device, &[0, 1])?;
    tool("resize2fs", &[], device, &[0])
}

fn tool(name: &str, options: &[&str], file: &Path, fine: &[i32]) -> io::Result<()> {
    let done = program::command(name).and_then(|mut command| command.args(options).arg(file).output());
    let done = done.map_err(|e| io::Error::new(e.kind(), format!("{name} (package e2fsprogs) can't be run: {e}")))?;
    if done.status.code().is_some_and(|code| fine.contains(&code)) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    Err(io::Error::other(format!("{name}: {}: {}", done.status, said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_equal_and_as_sparse() {
        let dir = tempfile::tempdir().expect("a directory");
        let from = create(&dir.path().join("a")).expect("a file");
        size(&from, 8 << 20, true).expect("a size");
        from.write_all_at(b"middle", 5 << 20).expect("written");
        let to = create(&dir.path().join("b")).expect("a file");
        copy(&from, &to).expect("copied");
        let mut read = [0; 6];
        to.read_exact_at(&mut read, 5 << 20).expect("read");
        assert_eq!((&read, to.metadata().expect("known").len()), (b"middle", 8 << 20));
        let blocks = |f: &File| std::os::unix::fs::MetadataExt::blocks(&f.metadata().expect("known"));
        assert!(blocks(&to) <= 2 * (CHUNK as u64) / 512, "{} blocks", blocks(&to));
        assert!(create(&dir.path().join("b")).is_err(), "nothing is written over");
    }
}
