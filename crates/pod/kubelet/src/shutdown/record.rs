//! When the last graceful shutdown began and ended, kept over restarts: upstream's file.

use crate::host::Host;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::io;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub start: Option<Timestamp>,
    pub end: Option<Timestamp>,
}

/// Go's "no time".
const NEVER: &str = "0001-01-01T00:00:00Z";

fn path(root: &Path) -> PathBuf {
    root.join("graceful_node_shutdown_state")
}

pub fn save(host: &dyn Host, root: &Path, record: Record) -> io::Result<()> {
    let text = |t: Option<Timestamp>| t.map_or_else(|| NEVER.to_owned(), |t| t.to_string());
    let all = json!({"startTime": text(record.start), "endTime": text(record.end)});
    host.write(&path(root), all.to_string().as_bytes(), 0o644)
}

/// What was noted last; nothing, where nothing was.
pub fn load(host: &dyn Host, root: &Path) -> io::Result<Record> {
    let bytes = match host.read(&path(root), 4096) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Record::default()),
        other => other?,
    };
    let all: Value = serde_json::from_slice(&bytes)?;
    let time = |name: &str| match all[name].as_str() {
        None | Some("" | NEVER) => Ok(None),
        Some(text) => text.parse().map(Some).map_err(io::Error::other),
    };
    Ok(Record {
        start: time("startTime")?,
        end: time("endTime")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::FakeHost;

    #[test]
    fn what_upstream_wrote_is_read_and_what_is_written_comes_back() {
        let host = FakeHost::small("n", Timestamp::UNIX_EPOCH);
        let root = Path::new("/k");
        host.make_dir(root, 0o755).unwrap();
        assert_eq!(load(&host, root).unwrap(), Record::default());
        let go = br#"{"startTime":"2026-01-02T03:04:05.678901234+02:00","endTime":"0001-01-01T00:00:00Z"}"#;
        host.write(&path(root), go, 0o644).unwrap();
        let read = load(&host, root).unwrap();
        assert_eq!(
            (read.start.map(|t| t.as_second()), read.end),
            (Some(1_767_315_845), None)
        );
        let both = Record {
            end: read.start,
            ..read
        };
        save(&host, root, both).unwrap();
        assert_eq!(load(&host, root).unwrap(), both);
        host.write(&path(root), b"{", 0o644).unwrap();
        assert!(load(&host, root).is_err());
    }
}
