//! Files as block devices (loop devices), and what file systems can do beyond reading and writing: clone, freeze, grow.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

// linux/loop.h, linux/fs.h and ext4's own header.
const LOOP_CLR_FD: u64 = 0x4C01;
const LOOP_GET_STATUS64: u64 = 0x4C05;
const LOOP_SET_CAPACITY: u64 = 0x4C07;
const LOOP_CONFIGURE: u64 = 0x4C0A;
const LOOP_CTL_GET_FREE: u64 = 0x4C82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
const FICLONE: u64 = 0x4004_9409;
const FIFREEZE: u64 = 0xC004_5877;
const FITHAW: u64 = 0xC004_5878;
const EXT4_IOC_RESIZE_FS: u64 = 0x4008_6610;

/// How often another device is tried when somebody else took the free one first.
const TRIES: usize = 64;

#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// A device over a file. The device stays when this is dropped, unless it was attached to go with its last user and has none.
#[derive(Debug)]
pub struct Loop {
    pub path: PathBuf,
    _open: File,
}

fn control(fd: RawFd, request: u64, argument: u64) -> io::Result<i32> {
    // SAFETY: each request used here takes a number, or a pointer to a value of its type that the caller keeps alive.
    match unsafe { libc::ioctl(fd, request as _, argument) } {
        n if n < 0 => Err(io::Error::last_os_error()),
        n => Ok(n),
    }
}

fn open(device: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(device)
}

/// To ask a device and not to write to it: whoever follows devices (udev) looks at one anew when it is closed by who could have written.
fn open_to_ask(device: &Path) -> io::Result<File> {
    File::open(device)
}

/// Attaches a file to a free device, past the page cache where the file system below can do that. With `goes`, the device is
/// detached when its last user goes, of whom the result is one.
pub fn attach(file: &Path, goes: bool) -> io::Result<Loop> {
    let backing = open(file)?;
    let free = open(Path::new("/dev/loop-control"))?;
    // SAFETY: plain numbers, for which zeros are values.
    let mut config: Config = unsafe { std::mem::zeroed() };
    config.fd = backing.as_raw_fd() as u32;
    config.info.flags = LO_FLAGS_DIRECT_IO | if goes { LO_FLAGS_AUTOCLEAR } else { 0 };
    for _ in 0..TRIES {
        let number = control(free.as_raw_fd(), LOOP_CTL_GET_FREE, 0)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open(&path)?;
        match control(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config as u64) {
            Ok(_) => return Ok(Loop { path, _open: device }),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// The device over a file, if there is one. It can't go while the result is held.
pub fn attached(file: &Path) -> io::Result<Option<Loop>> {
    let wanted = std::fs::metadata(file)?;
    for entry in std::fs::read_dir("/sys/block")? {
        let entry = entry?;
        if !entry.path().join("loop/backing_file").exists() {
            continue;
        }
        let path = Path::new("/dev").join(entry.file_name());
        let Ok(device) = open_to_ask(&path) else { continue };
        // SAFETY: plain numbers, for which zeros are values.
        let mut info: Info = unsafe { std::mem::zeroed() };
        if control(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info as u64).is_ok()
            && (info.device, info.inode) == (wanted.dev(), wanted.ino())
        {
            return Ok(Some(Loop { path, _open: device }));
        }
    }
    Ok(None)
}

/// Gives a device up; one that is in use goes with its last user.
pub fn detach(device: Loop) -> io::Result<()> {
    match control(device._open.as_raw_fd(), LOOP_CLR_FD, 0) {
        Err(e) if e.raw_os_error() != Some(libc::ENXIO) => Err(e),
        _ => Ok(()),
    }
}

/// Gives up all devices over files below a directory, which may have been removed from it.
pub fn detach_below(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir("/sys/block")? {
        let entry = entry?;
        let Ok(file) = std::fs::read_to_string(entry.path().join("loop/backing_file")) else {
            continue;
        };
        if Path::new(file.trim_end()).starts_with(dir) {
            let path = Path::new("/dev").join(entry.file_name());
            detach(Loop {
                _open: open_to_ask(&path)?,
                path,
            })?;
        }
    }
    Ok(())
}

/// Makes a device as large as its file has become.
pub fn follow_size(device: &Loop) -> io::Result<()> {
    control(device._open.as_raw_fd(), LOOP_SET_CAPACITY, 0).map(drop)
}

/// Makes `to` share all that `from` holds until either is written to; false if the file system can't.
pub fn clone_file(from: &File, to: &File) -> io::Result<bool> {
    match control(to.as_raw_fd(), FICLONE, from.as_raw_fd() as u64) {
        Ok(_) => Ok(true),
        Err(e) => match e.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EXDEV | libc::EINVAL) => Ok(false),
            _ => Err(e),
        },
    }
}

/// A file system that holds still: all that was written is on its device, and writers wait.
#[derive(Debug)]
pub struct Frozen(File);

/// Freezes the file system that is mounted at `dir`.
pub fn freeze(dir: &Path) -> io::Result<Frozen> {
    let dir = File::open(dir)?;
    control(dir.as_raw_fd(), FIFREEZE, 0)?;
    Ok(Frozen(dir))
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // One that is thawed already needs nothing.
        let _ = control(self.0.as_raw_fd(), FITHAW, 0);
    }
}

/// Thaws what a program that died left frozen.
pub fn thaw(dir: &Path) -> io::Result<()> {
    match control(File::open(dir)?.as_raw_fd(), FITHAW, 0) {
        Err(e) if e.raw_os_error() != Some(libc::EINVAL) => Err(e),
        _ => Ok(()),
    }
}

/// Makes the ext4 that is mounted at `dir` as large as this many of its blocks; one that is, stays.
pub fn grow_ext4(dir: &Path, blocks: u64) -> io::Result<()> {
    control(
        File::open(dir)?.as_raw_fd(),
        EXT4_IOC_RESIZE_FS,
        &raw const blocks as u64,
    )
    .map(drop)
}

/// Mounts the file system on a device.
pub fn mount(device: &Path, dir: &Path, kind: &str, options: &str) -> io::Result<()> {
    let (flags, rest) = split(options);
    let data = (!rest.is_empty()).then_some(rest.as_str());
    nix::mount::mount(Some(device), dir, Some(kind), flags, data).map_err(io::Error::from)
}

/// Options that the kernel takes as flags, and those that are the file system's own.
fn split(options: &str) -> (nix::mount::MsFlags, String) {
    use nix::mount::MsFlags as F;
    let mut flags = F::empty();
    let mut rest = Vec::new();
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option {
            "ro" => flags |= F::MS_RDONLY,
            "rw" => flags -= F::MS_RDONLY,
            "nosuid" => flags |= F::MS_NOSUID,
            "nodev" => flags |= F::MS_NODEV,
            "noexec" => flags |= F::MS_NOEXEC,
            "sync" => flags |= F::MS_SYNCHRONOUS,
            "dirsync" => flags |= F::MS_DIRSYNC,
            "noatime" => flags |= F::MS_NOATIME,
            "nodiratime" => flags |= F::MS_NODIRATIME,
            "relatime" => flags |= F::MS_RELATIME,
            "strictatime" => flags |= F::MS_STRICTATIME,
            "lazytime" => flags |= F::MS_LAZYTIME,
            "defaults" => {}
            other => rest.push(other),
        }
    }
    (flags, rest.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flags_or_the_file_systems() {
        let (flags, rest) = split("noatime,discard,ro,commit=5");
        assert!(flags.contains(nix::mount::MsFlags::MS_NOATIME | nix::mount::MsFlags::MS_RDONLY));
        assert_eq!(rest, "discard,commit=5");
    }

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!(std::mem::size_of::<Info>(), 232);
        assert_eq!(std::mem::size_of::<Config>(), 304);
    }
}
