//! Marks of removal: they hide what lower layers have, and nothing of their own layer.
//!
//! What the layer itself has made stands in the topmost directory of the overlay, which is looked at; nothing is kept
//! here of what was unpacked. Works on the working directory.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use keelson_sys::path::Root;
use nix::libc;

use super::archive::invalid;

/// Where a cell has the overlay.
pub const TARGET: &str = "/root";
/// Bytes kept of directories marked as a whole and of files copied up.
const MAX_NOTED: usize = 64 << 20;

pub struct Marks {
    /// The layer's own directory; `None` where there are no lower ones, and so nothing to hide.
    upper: Option<Root>,
    /// Directories that have been marked as a whole already.
    marked: HashSet<PathBuf>,
    /// Files of lower layers that are in the topmost directory only because this layer links to them.
    copied: HashSet<PathBuf>,
    noted: usize,
}

/// What the layer itself has under a name.
enum Own {
    Nothing,
    Directory,
    File,
}

impl Marks {
    pub fn new(upper: Option<Root>) -> Marks {
        Marks {
            upper,
            marked: HashSet::new(),
            copied: HashSet::new(),
            noted: 0,
        }
    }

    /// Hides what the layers below have under a name in the working directory.
    pub fn hide(&mut self, name: &OsStr) -> io::Result<()> {
        if self.upper.is_none() {
            return Ok(());
        }
        let path = here()?.join(name);
        match self.own(&path)? {
            Own::Nothing => super::remove(Path::new(name)),
            Own::Directory => self.hide_below(&path),
            Own::File => Ok(()),
        }
    }

    /// Hides all that the layers below have in the working directory.
    pub fn hide_all(&mut self) -> io::Result<()> {
        if self.upper.is_none() {
            return Ok(());
        }
        self.hide_below(&here()?)
    }

    fn hide_below(&mut self, directory: &Path) -> io::Result<()> {
        let mut waiting = vec![directory.to_path_buf()];
        while let Some(directory) = waiting.pop() {
            if self.marked.contains(&directory) {
                continue;
            }
            for child in std::fs::read_dir(Path::new(TARGET).join(&directory))? {
                let path = directory.join(child?.file_name());
                match self.own(&path)? {
                    Own::Nothing => super::remove(&Path::new(TARGET).join(&path))?,
                    Own::Directory => waiting.push(path),
                    Own::File => {}
                }
            }
        }
        self.note(directory)?;
        self.marked.insert(directory.to_path_buf());
        Ok(())
    }

    /// Before a link to a file of the working directory: a lower layer's is copied up by it.
    pub fn note_copy_of(&mut self, name: &OsStr) -> io::Result<()> {
        if self.upper.is_none() {
            return Ok(());
        }
        let path = here()?.join(name);
        if matches!(self.own(&path)?, Own::Nothing) {
            self.note(&path)?;
            self.copied.insert(path);
        }
        Ok(())
    }

    fn note(&mut self, path: &Path) -> io::Result<()> {
        self.noted += path.as_os_str().len() + size_of::<PathBuf>();
        if self.noted > MAX_NOTED {
            return Err(invalid("a layer with too many marks of removal"));
        }
        Ok(())
    }

    /// `path` has no links in it.
    fn own(&self, path: &Path) -> io::Result<Own> {
        let Some(upper) = &self.upper else {
            return Ok(Own::Nothing);
        };
        let file = match upper.open_in(path, libc::O_PATH | libc::O_NOFOLLOW, 0) {
            Ok(fd) => std::fs::File::from(fd).metadata()?,
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(Own::Nothing),
            Err(e) => return Err(e),
        };
        // A device without number is the overlay's own mark.
        let is_mark = file.file_type().is_char_device() && file.rdev() == 0;
        Ok(if is_mark || self.copied.contains(path) {
            Own::Nothing
        } else if file.is_dir() {
            Own::Directory
        } else {
            Own::File
        })
    }
}

/// The working directory, without links, below the target.
fn here() -> io::Result<PathBuf> {
    let path = std::env::current_dir()?;
    path.strip_prefix(TARGET)
        .map(Path::to_path_buf)
        .map_err(|_| invalid("a directory outside of the layer"))
}
