//! The format of container logs: `time stream tag content`, a line a line, partial ones tagged `P`. Pure but for `tail`.

use crate::host::Host;
use std::io;
use std::path::Path;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    pub time: &'a str,
    pub stdout: bool,
    pub partial: bool,
    /// Without the line's end.
    pub content: &'a [u8],
}

/// One line without its newline; `None` when it is none of a log.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut fields = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?;
    let stdout = match fields.next()? {
        b"stdout" => true,
        b"stderr" => false,
        _ => return None,
    };
    let partial = fields.next()?.split(|b| *b == b':').next()? == b"P";
    Some(Line {
        time,
        stdout,
        partial,
        content: fields.next().unwrap_or_default(),
    })
}

/// What a client wants to see of a log.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub follow: bool,
    pub timestamps: bool,
    pub since: Option<jiff::Timestamp>,
    pub tail: Option<usize>,
    pub limit: Option<usize>,
    /// `None` is both.
    pub stdout_only: Option<bool>,
}

/// Writes lines as the client wants them; remembers what a partial line and the limit need.
#[derive(Debug)]
pub struct Writer {
    options: Options,
    at_line_start: bool,
    written: usize,
}

impl Writer {
    pub fn new(options: Options) -> Self {
        Writer {
            options,
            at_line_start: true,
            written: 0,
        }
    }

    /// The limit is reached: nothing more will be written.
    pub fn full(&self) -> bool {
        self.options.limit.is_some_and(|l| self.written >= l)
    }

    pub fn push(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(l) = parse(line) else { return };
        if self.options.stdout_only.is_some_and(|want| want != l.stdout) {
            return;
        }
        if let Some(since) = self.options.since
            && l.time.parse::<jiff::Timestamp>().is_ok_and(|t| t < since)
        {
            return;
        }
        let before = out.len();
        if self.options.timestamps && self.at_line_start {
            out.extend_from_slice(l.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(l.content);
        if !l.partial {
            out.push(b'\n');
        }
        self.at_line_start = !l.partial;
        let mut added = out.len() - before;
        if let Some(limit) = self.options.limit {
            let room = limit.saturating_sub(self.written);
            if added > room {
                out.truncate(before + room);
                added = room;
            }
        }
        self.written += added;
    }
}

/// Where the last `lines` lines begin.
pub fn tail_start(data: &[u8], lines: usize) -> usize {
    if lines == 0 {
        return data.len();
    }
    let end = if data.last() == Some(&b'\n') {
        data.len() - 1
    } else {
        data.len()
    };
    let mut left = lines;
    for (i, b) in data[..end].iter().enumerate().rev() {
        if *b == b'\n' {
            left -= 1;
            if left == 0 {
                return i + 1;
            }
        }
    }
    0
}

/// As much of a log's end as is looked at: more than its last lines can have.
const END: u64 = 2 << 20;

/// The end of a log as text, bounded by lines and bytes.
pub fn tail(host: &dyn Host, path: &Path, lines: usize, bytes: usize) -> io::Result<String> {
    let mut data = host.read_end(path, END)?;
    if data.len() as u64 == END {
        // Begun in the middle of a line.
        let whole = data.iter().position(|b| *b == b'\n').map_or(data.len(), |i| i + 1);
        data.drain(..whole);
    }
    let mut writer = Writer::new(Options::default());
    let mut out = Vec::new();
    for line in data[tail_start(&data, lines)..].split(|b| *b == b'\n') {
        writer.push(line, &mut out);
    }
    let from = out.len().saturating_sub(bytes);
    Ok(String::from_utf8_lossy(&out[from..]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[u8] = b"2026-01-01T00:00:00.000000001Z stdout F one\n2026-01-01T00:00:01Z stdout P two-\n2026-01-01T00:00:02Z stdout F end\n2026-01-01T00:00:03Z stderr F err\n";

    fn show(options: Options, data: &[u8]) -> String {
        let mut w = Writer::new(options);
        let mut out = Vec::new();
        data.split(|b| *b == b'\n').for_each(|l| w.push(l, &mut out));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn only_the_end_of_a_long_log_is_looked_at() {
        use crate::host::fake::FakeHost;
        let host = FakeHost::new(crate::host::Machine::default(), jiff::Timestamp::UNIX_EPOCH);
        let line = |i: u32| format!("2026-01-01T00:00:00Z stdout F line {i}\n");
        let text: String = (0..70_000).map(line).collect();
        assert!(text.len() as u64 > END);
        host.write(Path::new("/log"), text.as_bytes(), 0o600).unwrap();
        let tail = |lines, bytes| tail(&host, Path::new("/log"), lines, bytes).unwrap();
        assert_eq!(tail(2, 2048), "line 69998\nline 69999\n");
        assert_eq!(tail(80, 6), "69999\n");
    }

    #[test]
    fn options() {
        assert_eq!(show(Options::default(), LOG), "one\ntwo-end\nerr\n");
        assert_eq!(
            show(
                Options {
                    stdout_only: Some(false),
                    ..Default::default()
                },
                LOG
            ),
            "err\n"
        );
        assert_eq!(
            show(
                Options {
                    limit: Some(6),
                    ..Default::default()
                },
                LOG
            ),
            "one\ntw"
        );
        assert_eq!(
            show(
                Options {
                    timestamps: true,
                    since: Some("2026-01-01T00:00:01Z".parse().unwrap()),
                    ..Default::default()
                },
                LOG
            ),
            "2026-01-01T00:00:01Z two-end\n2026-01-01T00:00:03Z err\n"
        );
        assert_eq!(show(Options::default(), &LOG[tail_start(LOG, 1)..]), "err\n");
        assert_eq!(tail_start(LOG, 0), LOG.len());
        assert_eq!(tail_start(LOG, 99), 0);
    }
}
