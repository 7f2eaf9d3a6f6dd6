//! Cells: what strangers wrote is unpacked by this program executed again, locked in.
//!
//! A cell is one process for one archive. Before it reads the first byte it has given up everything that its work does
//! not need ([`confine`]): it sees the directory it fills and nothing else of the machine, has no network, the
//! capabilities of a `tar` and the system calls of one, and bounds of memory, time, file sizes and descriptors. It gets
//! the archive as its standard input and gives one short answer ([`Answer`]) on its standard output. Whatever it dies of
//! is the error of one pull; it dies with the process that started it ([`run`]).
//!
//! A cell's memory is bounded by [`MEMORY`] above what the program has at its start, however large the archive is.

mod confine;
mod run;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use keelson_sys::path::Root;
use serde::{Deserialize, Serialize};

use crate::images::{Limits, Unpacked, unpack};

pub use run::Cells;

/// Address space for a cell's work: the largest window of zstd in a buffer twice its size, what that grew out of and the
/// allocator keeps, and as much again for everything else.
const MEMORY: u64 = 768 << 20;
/// Longest answer.
const MAX_ANSWER: usize = 16 << 10;

/// What a cell is to do; its only argument.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// The new layer's own directory.
    pub upper: PathBuf,
    /// An empty directory, for overlayfs and for the cell's own root.
    pub work: PathBuf,
    /// The layers below, topmost first.
    pub below: Vec<PathBuf>,
    /// Bytes of the standard input that are the archive.
    pub length: u64,
    pub limits: Limits,
    /// Seconds of computing, and of all.
    pub seconds: (u64, u64),
    /// Whose child the cell is.
    pub parent: u32,
}

/// A cell's answer, or why there is none.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Done(Unpacked),
    Failed(String),
}

/// The program's entry when its first argument is `cell`; `args` are those behind it. Must run before any thread is
/// started.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ! {
    let answer = match work(args.into_iter().next()) {
        Ok(unpacked) => Answer::Done(unpacked),
        Err(error) => {
            let mut text = error.to_string();
            text.truncate(text.floor_char_boundary(MAX_ANSWER / 8));
            Answer::Failed(text)
        }
    };
    let told = serde_json::to_vec(&answer).is_ok_and(|bytes| io::stdout().write_all(&bytes).is_ok());
    std::process::exit(i32::from(!told))
}

fn work(task: Option<OsString>) -> io::Result<Unpacked> {
    let task = task.ok_or_else(|| io::Error::other("usage: cell <task>"))?;
    let task: Task = serde_json::from_slice(task.as_encoded_bytes())?;
    let inside = confine::confine(&task)?;
    let archive = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    unpack(
        archive.take(task.length),
        Root::open(inside.target)?,
        inside.upper.map(Root::open).transpose()?,
        task.limits,
    )
}
