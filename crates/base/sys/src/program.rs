//! Programs of the system, started by their path. The standard library starts what has to be looked for along a PATH of the program's own by a
//! copy of this process, with all its tables of pages: tens of milliseconds in a large one, for all of its threads.

use nix::unistd::{AccessFlags, access};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where a program of the system may be, as a PATH.
pub const PLACES: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a program of this name is, if anywhere.
pub fn find(name: &str) -> Option<PathBuf> {
    let mut places = PLACES.split(':').map(|place| Path::new(place).join(name));
    places.find(|path| access(path, AccessFlags::X_OK).is_ok())
}

/// A command of the program of this name, which finds others where this was found.
pub fn command(name: &str) -> io::Result<Command> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{name}: not found in {PLACES}"));
    let mut command = Command::new(find(name).ok_or_else(missing)?);
    command.env("PATH", PLACES);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_have_paths() {
        let found = command("sh").unwrap();
        assert!(Path::new(found.get_program()).is_absolute());
        let error = command("keelson-none").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
