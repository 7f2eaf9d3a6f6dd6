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

/// How many columns and rows a terminal has.
pub fn size(tty: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: `size` is a winsize to write to.
    if unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCGWINSZ, &mut size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((size.ws_col, size.ws_row))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_terminal_has_the_size_that_it_was_told() {
        let (master, tty) = open_pair().unwrap();
        resize(master.as_fd(), 123, 45).unwrap();
        assert_eq!(size(tty.as_fd()).unwrap(), (123, 45));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(size(file.as_fd()).is_err());
    }
}
