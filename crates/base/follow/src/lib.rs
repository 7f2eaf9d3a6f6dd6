//! Files and directories that somebody else writes: the kernel's notices of them ([`Watch`]), and what stands in them now ([`Contents`]).
//!
//! A path is followed by its name, not by the file that has it today: every directory and link on the way to it is watched. So a file may come
//! later, be replaced by renaming, or be reached by links that are set to others, as volumes of Secrets do it. What this doesn't know is what
//! the files say. Where the kernel tells nothing (file systems of networks), [`Contents`] looks once a minute, and [`Watch`] hears nothing.

mod contents;
mod mounts;
mod places;
mod watch;

pub use contents::Contents;
pub use places::Target;
pub use watch::Watch;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The whole of a file, which may have so many bytes. A part of it would be something else, so a longer one is an error.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let read = || {
        let mut content = Vec::new();
        File::open(path)?
            .take(most.saturating_add(1))
            .read_to_end(&mut content)?;
        match content.len() as u64 > most {
            true => Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it has more than {most} bytes"),
            )),
            false => Ok(content),
        }
    };
    read().map_err(|e| io::Error::new(e.kind(), format!("open {}: {e}", path.display())))
}
