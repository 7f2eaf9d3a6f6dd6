//! The side of a cell that stays outside: starts it, waits for its answer, and believes no more than that.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use parking_lot::{Condvar, Mutex};

use super::{Answer, MAX_ANSWER, Task};
use crate::images::Unpacked;

/// Cells at the same time; more wait. Each may take what [`super::MEMORY`] says.
const MOST: usize = 3;

/// Starts cells.
#[derive(Debug)]
pub struct Cells {
    program: PathBuf,
    running: Mutex<usize>,
    ended: Condvar,
}

impl Cells {
    /// `program`: whose first argument `cell` leads to [`super::main`].
    pub fn new(program: &Path) -> Cells {
        Cells {
            program: program.to_path_buf(),
            running: Mutex::new(0),
            ended: Condvar::new(),
        }
    }

    /// Does a task in a cell of its own; `archive` stands where the archive begins. Blocks.
    pub fn run(&self, task: &Task, archive: File) -> io::Result<Unpacked> {
        let _place = self.place();
        let mut child = Command::new(&self.program)
            .arg("cell")
            .arg(serde_json::to_string(task)?)
            .stdin(archive)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .env_clear()
            .spawn()
            .map_err(|e| io::Error::new(e.kind(), format!("cannot start {}: {e}", self.program.display())))?;
        let mut answer = Vec::new();
        let read = match child.stdout.take() {
            Some(out) => out.take(MAX_ANSWER as u64 + 1).read_to_end(&mut answer).map(drop),
            None => Ok(()),
        };
        // What has said too much is not waited for.
        if read.is_err() || answer.len() > MAX_ANSWER {
            child.kill()?;
        }
        let status = child.wait()?;
        read?;
        if let Some(signal) = status.signal() {
            return Err(failed(match signal {
                libc::SIGXCPU | libc::SIGALRM => "unpacking took too long and was ended".to_owned(),
                libc::SIGKILL => "unpacking was ended: it took too long, or the machine is out of memory".to_owned(),
                libc::SIGABRT | libc::SIGSEGV => {
                    format!("unpacking needed too much memory, or broke (signal {signal})")
                }
                _ => format!("unpacking was ended by signal {signal}"),
            }));
        }
        match serde_json::from_slice(&answer) {
            Ok(Answer::Done(unpacked)) if status.success() => Ok(unpacked),
            Ok(Answer::Failed(text)) => Err(failed(printable(&text))),
            _ => Err(failed(format!("unpacking broke ({status})"))),
        }
    }

    fn place(&self) -> Place<'_> {
        let mut running = self.running.lock();
        while *running >= MOST {
            self.ended.wait(&mut running);
        }
        *running += 1;
        Place(self)
    }
}

/// A cell's place among those that run.
struct Place<'a>(&'a Cells);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.running.lock() -= 1;
        self.0.ended.notify_one();
    }
}

/// Text that came from a cell may quote names that an archive's author chose.
fn printable(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(plain).collect()
}

fn failed(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
