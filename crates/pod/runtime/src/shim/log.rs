//! The log of a container, in the format that kubelets read:
//! `2016-10-06T00:17:09.669794202Z stdout F line`, with `P` for a line that goes on in the next one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Longer lines are cut; upstream runtimes cut here too.
const MAX_LINE: usize = 16 << 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// The file, shared by both streams.
pub struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    pub fn open(path: &Path) -> io::Result<LogFile> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        Ok(LogFile {
            path: path.to_path_buf(),
            file: open(path)?,
        })
    }

    /// After a rotation: goes on in a new file at the same path.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        Ok(())
    }

    pub fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.file.write_all(lines)
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// Cuts one stream's output into lines.
pub struct Lines {
    stream: Stream,
    /// The beginning of a line whose end has not come yet.
    rest: Vec<u8>,
}

impl Lines {
    pub fn new(stream: Stream) -> Lines {
        Lines {
            stream,
            rest: Vec::new(),
        }
    }

    /// Appends what `output` completes to `lines`.
    pub fn push(&mut self, output: &[u8], now: &str, lines: &mut Vec<u8>) {
        let mut output = output;
        while !output.is_empty() {
            let room = MAX_LINE - self.rest.len();
            match output.iter().take(room + 1).position(|b| *b == b'\n') {
                Some(end) => {
                    self.emit(&output[..end], b'F', now, lines);
                    output = &output[end + 1..];
                }
                None if output.len() > room => {
                    self.emit(&output[..room], b'P', now, lines);
                    output = &output[room..];
                }
                None => {
                    self.rest.extend_from_slice(output);
                    return;
                }
            }
        }
    }

    /// The stream has ended; a line without end is a partial one.
    pub fn finish(&mut self, now: &str, lines: &mut Vec<u8>) {
        if !self.rest.is_empty() {
            self.emit(&[], b'P', now, lines);
        }
    }

    fn emit(&mut self, end: &[u8], tag: u8, now: &str, lines: &mut Vec<u8>) {
        lines.extend_from_slice(now.as_bytes());
        lines.push(b' ');
        lines.extend_from_slice(self.stream.name().as_bytes());
        lines.extend_from_slice(&[b' ', tag, b' ']);
        lines.append(&mut self.rest);
        lines.extend_from_slice(end);
        lines.push(b'\n');
        // A burst of long lines must not hold its memory for the life of the pod.
        self.rest = Vec::new();
    }
}

/// The time now as logs have it: nine digits of a second, UTC.
pub fn now() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(chunks: &[&[u8]]) -> String {
        let (mut lines, mut out) = (Lines::new(Stream::Stdout), Vec::new());
        chunks.iter().for_each(|c| lines.push(c, "T", &mut out));
        lines.finish("T", &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_joined_across_reads() {
        assert_eq!(cut(&[b"a", b"b\nc\n\n"]), "T stdout F ab\nT stdout F c\nT stdout F \n");
    }

    #[test]
    fn an_unfinished_line_is_partial() {
        assert_eq!(cut(&[b"a\nrest"]), "T stdout F a\nT stdout P rest\n");
    }

    #[test]
    fn long_lines_are_cut_at_the_limit_and_not_before() {
        let exact = [vec![b'x'; MAX_LINE], b"\n".to_vec()].concat();
        assert_eq!(cut(&[&exact]).matches(" F ").count(), 1);
        assert_eq!(cut(&[&exact]).matches(" P ").count(), 0);
        let long = [vec![b'x'; 2 * MAX_LINE + 1], b"\n".to_vec()].concat();
        let text = cut(&[&long]);
        assert_eq!((text.matches(" P ").count(), text.matches(" F ").count()), (2, 1));
        assert!(text.ends_with(" F x\n"));
    }

    #[test]
    fn times_have_nine_digits() {
        let now = now();
        assert!(now.len() == 30 && now.ends_with('Z'), "{now}");
    }
}
