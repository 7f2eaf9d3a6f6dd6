//! Reads a container's log, to its present end or as it grows, for whoever has the file: the kubelet for its clients, a command on the node.
//! Growth and rotation are told by the kernel, the container's end by whoever knows it ([`Life`]); nothing is asked again and again.

use super::logs::{Options, Writer};
use bytes::Bytes;
use keelson_cri::{CriClients, v1 as cri};
use keelson_follow::Watch;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tokio::sync::mpsc;

/// Bytes read at once.
const CHUNK: usize = 64 << 10;
/// A line can't be longer than the runtime writes them.
const MAX_LINE: usize = 1 << 20;

/// What is known of the container that writes the log.
pub trait Life: Send {
    /// Whether it runs, as far as can be told.
    fn runs(&mut self) -> impl Future<Output = bool> + Send;

    /// Comes back when that may be otherwise than before; with false when nobody tells any more, which is taken for its end. May be given up
    /// and asked again.
    fn changed(&mut self) -> impl Future<Output = bool> + Send;
}

/// Whether its runtime says that the container runs. Pods outlive the runtime's server: only its word that the container is gone is the end.
pub async fn runs(cri: &CriClients, id: &str) -> bool {
    let request = cri::ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: false,
    };
    match cri.runtime.clone().container_status(request).await {
        Ok(answer) => {
            let status = answer.into_inner().status;
            status.is_some_and(|s| s.state == cri::ContainerState::ContainerRunning as i32)
        }
        Err(error) => error.code() != tonic::Code::NotFound,
    }
}

/// Sends what `options` ask for of the log at `path`, until its end, the container's, or the receiver's.
pub async fn read(
    path: &Path,
    options: Options,
    life: &mut impl Life,
    sender: &mpsc::Sender<Bytes>,
) -> std::io::Result<()> {
    // Watched before it is read, so that nothing is written unseen in between.
    let mut watch = match options.follow {
        true => Some(Watch::files([path.to_path_buf()])?),
        false => None,
    };
    let (mut file, length) = opened(path, options.tail).await?;
    let follow = options.follow;
    // Without following, the log is what it was when it was asked for.
    let mut left = if follow { u64::MAX } else { length };
    let mut writer = Writer::new(options);
    let mut line = Vec::new();
    let mut ended = !follow || !life.runs().await;
    loop {
        let (mut chunk, rest) = read_chunk(file, line).await?;
        (file, line) = rest;
        chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= chunk.len() as u64;
        if chunk.is_empty() {
            if follow && rotated(&file, path) {
                file = std::fs::File::open(path)?;
                continue;
            }
            if ended {
                // A last line without its end is still a line.
                let mut out = Vec::new();
                writer.push(&line, &mut out);
                forward(sender, out).await;
                return Ok(());
            }
            tokio::select! {
                () = sender.closed() => return Ok(()),
                grown = changed(&mut watch) => grown?,
                told = life.changed() => {
                    // Once more is read after the end: the last lines may have come just before it.
                    ended = !told || !life.runs().await;
                }
            }
            continue;
        }
        let mut out = Vec::with_capacity(chunk.len());
        for part in chunk.split_inclusive(|b| *b == b'\n') {
            line.extend_from_slice(part);
            if line.last() == Some(&b'\n') {
                line.pop();
                writer.push(&line, &mut out);
                line.clear();
            } else if line.len() > MAX_LINE {
                line.clear();
            }
        }
        if !forward(sender, out).await || writer.full() {
            return Ok(());
        }
    }
}

/// False when the receiver has gone.
async fn forward(sender: &mpsc::Sender<Bytes>, out: Vec<u8>) -> bool {
    out.is_empty() || sender.send(out.into()).await.is_ok()
}

async fn read_chunk(mut file: std::fs::File, line: Vec<u8>) -> std::io::Result<(Vec<u8>, (std::fs::File, Vec<u8>))> {
    let read = tokio::task::spawn_blocking(move || {
        let mut chunk = vec![0; CHUNK];
        let n = file.read(&mut chunk)?;
        chunk.truncate(n);
        Ok::<_, std::io::Error>((chunk, file))
    });
    let (chunk, file) = read.await.map_err(std::io::Error::other)??;
    Ok((chunk, (file, line)))
}

/// To find the last lines may take reading all of it.
async fn opened(path: &Path, tail: Option<usize>) -> std::io::Result<(std::fs::File, u64)> {
    let path = path.to_path_buf();
    let opened = tokio::task::spawn_blocking(move || open(&path, tail));
    opened.await.map_err(std::io::Error::other)?
}

/// Opened at its beginning, or where its last lines begin; with the bytes there are from there on.
fn open(path: &Path, tail: Option<usize>) -> std::io::Result<(std::fs::File, u64)> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    let start = match tail {
        Some(lines) => last_lines(&mut file, length, lines)?,
        None => 0,
    };
    file.seek(SeekFrom::Start(start))?;
    Ok((file, length - start))
}

/// Where the last so many lines begin. Looked for from the end on, a piece at a time, however many are asked for and however long they are.
fn last_lines(file: &mut std::fs::File, length: u64, lines: usize) -> std::io::Result<u64> {
    if lines == 0 {
        return Ok(length);
    }
    let (mut left, mut end, mut piece) = (lines, length, vec![0; CHUNK]);
    while end > 0 {
        let size = usize::try_from(end).unwrap_or(CHUNK).min(CHUNK);
        let start = end - size as u64;
        file.seek(SeekFrom::Start(start))?;
        match file.read_exact(&mut piece[..size]) {
            // It was cut meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(start),
            read => read?,
        }
        for (at, byte) in piece[..size].iter().enumerate().rev() {
            let next = start + at as u64 + 1;
            // With the last line's own end no other begins.
            if *byte == b'\n' && next < length {
                left -= 1;
                if left == 0 {
                    return Ok(next);
                }
            }
        }
        end = start;
    }
    Ok(0)
}

/// Another file has the log's name now.
fn rotated(file: &std::fs::File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(a), Ok(b)) => a.ino() != b.ino() || a.dev() != b.dev(),
        _ => false,
    }
}

/// The log has grown, or another file has its name.
async fn changed(watch: &mut Option<Watch>) -> std::io::Result<()> {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::watch;

    #[test]
    fn a_log_is_opened_where_its_last_lines_begin() {
        let path = std::env::temp_dir().join(format!("keelson-log-{}", std::process::id()));
        let text: String = (0..20_000).map(|i| format!("line {i}\n")).collect();
        std::fs::write(&path, &text).unwrap();
        let mut rest = String::new();
        let (mut file, left) = open(&path, Some(2)).unwrap();
        file.read_to_string(&mut rest).unwrap();
        assert_eq!((rest.as_str(), left), ("line 19998\nline 19999\n", 22));
        // As many as there are, or more; none; and a last line that hasn't ended.
        let from = |tail| text.len() - usize::try_from(open(&path, tail).unwrap().1).unwrap();
        assert_eq!([from(None), from(Some(20_000)), from(Some(usize::MAX))], [0, 0, 0]);
        assert_eq!(from(Some(19_999)), "line 0\n".len());
        assert_eq!(from(Some(0)), text.len());
        // A piece may end between any two bytes.
        for lines in [1, 5_000, 12_345] {
            let expected: usize = text.split_inclusive('\n').rev().take(lines).map(str::len).sum();
            assert_eq!(from(Some(lines)), text.len() - expected, "{lines}");
        }
        std::fs::write(&path, "one\ntwo").unwrap();
        assert_eq!(open(&path, Some(1)).unwrap().1, 3);
        std::fs::remove_file(&path).unwrap();
    }

    /// Runs until told otherwise.
    struct Told(watch::Receiver<bool>);

    impl Life for Told {
        async fn runs(&mut self) -> bool {
            *self.0.borrow()
        }

        async fn changed(&mut self) -> bool {
            self.0.changed().await.is_ok()
        }
    }

    #[tokio::test]
    async fn who_follows_sees_lines_joined_a_rotation_and_the_last_words() {
        use std::io::Write;
        let dir = std::env::temp_dir().join(format!("keelson-follow-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("0.log");
        let line = |tag: &str, text: &str| format!("2026-01-01T00:00:00Z stdout {tag} {text}\n");
        std::fs::write(&path, line("F", "first") + &line("P", "half ")).unwrap();
        let (life, told) = watch::channel(true);
        let (sender, mut receiver) = mpsc::channel(8);
        let options = Options {
            follow: true,
            ..Options::default()
        };
        let log = path.clone();
        let reading = tokio::spawn(async move { read(&log, options, &mut Told(told), &sender).await });
        let mut seen = String::new();
        let mut until = async |text: &str| {
            while !seen.ends_with(text) {
                let wait = std::time::Duration::from_secs(20);
                let come = tokio::time::timeout(wait, receiver.recv()).await.unwrap();
                match come {
                    Some(bytes) => seen += &String::from_utf8_lossy(&bytes),
                    None => break,
                }
            }
            seen.clone()
        };
        assert_eq!(until("half ").await, "first\nhalf ");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(line("F", "whole").as_bytes()).unwrap();
        assert_eq!(until("whole\n").await, "first\nhalf whole\n");
        // As the kubelet rotates: another name for what there is, and a new file.
        std::fs::rename(&path, dir.join("0.log.1")).unwrap();
        std::fs::write(&path, line("F", "anew")).unwrap();
        assert!(until("anew\n").await.ends_with("whole\nanew\n"));
        std::fs::write(
            dir.join("next"),
            line("F", "anew") + "2026-01-01T00:00:01Z stderr F bye",
        )
        .unwrap();
        std::fs::rename(dir.join("next"), &path).unwrap();
        life.send(false).unwrap();
        assert!(until("bye\n").await.ends_with("bye\n"));
        reading.await.unwrap().unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
