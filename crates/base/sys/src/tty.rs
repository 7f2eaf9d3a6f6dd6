//! Pseudo terminals.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Makes `tty` the controlling terminal of this session.
pub fn set_controlling_terminal(tty: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the ioctl takes a plain number.
    if unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSCTTY, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives up the controlling terminal `tty`, without the hang-up that this would mean for this process.
pub fn release_controlling_terminal(tty: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an ignored signal runs no code of ours; the ioctl takes nothing.
    unsafe {
        libc::signal(libc::SIGHUP, libc::SIG_IGN);
        if libc::ioctl(tty.as_raw_fd(), libc::TIOCNOTTY) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Tells a terminal its size; processes in the foreground get SIGWINCH.
pub fn resize(tty: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: `size` is a valid winsize.
    if unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSWINSZ, &size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A new pair (master, terminal) of the mount namespace's /dev/pts, both close-on-exec.
pub fn open_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let master: OwnedFd = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/pts/ptmx")
        .or_else(|_| std::fs::OpenOptions::new().read(true).write(true).open("/dev/ptmx"))?
        .into();
    let unlock: libc::c_int = 0;
    // SAFETY: the ioctl reads one int.
    if unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlock) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the ioctl takes open flags and returns a new descriptor, the other end, whatever /dev/pts holds.
    let tty = unsafe {
        libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCGPTPEER,
            libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
        )
    };
    if tty < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: see above.
    Ok((master, unsafe { std::os::fd::FromRawFd::from_raw_fd(tty) }))
}
