//! A plug-in's call: a request on its input, an answer on its output, within a minute and within bounds. Blocks.

use super::trusted;
use keelson_sys::process::pidfd_open;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A plug-in that takes longer is ended.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// More than any answer has: logins by registry.
const MOST_ANSWERED: usize = 1 << 20;
/// As much of what it says goes into the log.
const MOST_SAID: usize = 1024;
/// What stands for a secret there.
const TOKEN: &str = "[token]";

#[derive(Clone)]
pub struct Program {
    pub path: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
}

impl Program {
    /// Calls it. What it says on its error output is part of an error, but for this secret.
    pub fn call(&self, request: &[u8], secret: &str, patience: Duration) -> Result<Vec<u8>, String> {
        trusted::program(&self.path).map_err(|e| format!("{e:#}"))?;
        let mut said = Vec::new();
        let called = self.run(request, &mut said, patience);
        called.map_err(|e| match shown(&said, secret) {
            text if text.is_empty() => e.to_string(),
            text => format!("{e}: {text}"),
        })
    }

    fn run(&self, request: &[u8], said: &mut Vec<u8>, patience: Duration) -> io::Result<Vec<u8>> {
        let end = Instant::now() + patience;
        // A file rather than a pipe: nobody has to read it for us to go on.
        let mut input = File::from(memfd_create(c"request", MFdFlags::MFD_CLOEXEC)?);
        input.write_all(request)?;
        input.rewind()?;
        // The program's own options may be secrets, and are nothing to a plug-in.
        let env = std::env::vars_os().filter(|(name, _)| !name.to_string_lossy().starts_with("KEELSON_"));
        let mut child = Command::new(&self.path)
            .args(&self.args)
            .env_clear()
            .envs(env)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let read = read(&mut child, said, end).map_err(|e| match e.kind() {
            io::ErrorKind::TimedOut => io::Error::other(format!("it didn't end in time, within {patience:?}")),
            _ => e,
        });
        if read.is_err() {
            // With whatever it has started.
            let group = Pid::from_raw(child.id() as i32);
            if let Err(error) = killpg(group, Signal::SIGKILL) {
                tracing::debug!(%error, "a plug-in that has to end has no processes");
            }
        }
        let status = child.wait()?;
        let answer = read?;
        match status.success() {
            true => Ok(answer),
            false => Err(io::Error::other(status.to_string())),
        }
    }
}

/// What comes until the process ends. Whoever holds its outputs then isn't waited for.
fn read(child: &mut Child, said: &mut Vec<u8>, end: Instant) -> io::Result<Vec<u8>> {
    let process = pidfd_open(child.id() as i32)?;
    let (Some(mut output), Some(mut errors)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::other("it has no outputs"));
    };
    for fd in [output.as_fd(), errors.as_fd()] {
        fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let mut answer = Vec::new();
    let (mut output_ends, mut errors_end) = (false, false);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let wanted = |ended: bool| match ended {
            true => PollFlags::empty(),
            false => PollFlags::POLLIN,
        };
        let mut fds = [
            PollFd::new(process.as_fd(), PollFlags::POLLIN),
            PollFd::new(output.as_fd(), wanted(output_ends)),
            PollFd::new(errors.as_fd(), wanted(errors_end)),
        ];
        // An output at its end would wake us for ever.
        let watched = match (output_ends, errors_end) {
            (true, true) => &mut fds[..1],
            (true, false) => {
                fds.swap(1, 2);
                &mut fds[..2]
            }
            (false, true) => &mut fds[..2],
            (false, false) => &mut fds[..],
        };
        match poll(watched, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let has_ended = fds[0].any().unwrap_or(false);
        output_ends = output_ends || drain(&mut output, &mut answer, MOST_ANSWERED + 1)?;
        errors_end = errors_end || drain(&mut errors, said, MOST_SAID)?;
        if answer.len() > MOST_ANSWERED {
            return Err(io::Error::other(format!(
                "its answer has more than {} MiB",
                MOST_ANSWERED >> 20
            )));
        }
        if has_ended {
            return Ok(answer);
        }
    }
}

/// Reads what is there; says whether that was the end. What is beyond the bound is let go.
fn drain(from: &mut impl Read, into: &mut Vec<u8>, most: usize) -> io::Result<bool> {
    let mut piece = [0; 16 << 10];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(true),
            Ok(n) => {
                let room = most.saturating_sub(into.len()).min(n);
                into.extend_from_slice(&piece[..room]);
                if room < n {
                    return Ok(false);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// One line without anything that a terminal would obey.
fn shown(said: &[u8], secret: &str) -> String {
    let text = String::from_utf8_lossy(said);
    let mut text = text.trim().to_owned();
    if !secret.is_empty() {
        // The end of a token may be cut off.
        let begin = &secret[..secret.floor_char_boundary(24)];
        let mut from = 0;
        while let Some(at) = text[from..].find(begin).map(|at| from + at) {
            let rest = &text[at + begin.len()..];
            let length = rest
                .find(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c))
                .unwrap_or(rest.len());
            text.replace_range(at..at + begin.len() + length, TOKEN);
            from = at + TOKEN.len();
        }
    }
    text.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn with<T>(script: &str, then: impl FnOnce(Program) -> T) -> T {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("keelson-plugin-{}-{n}", std::process::id()));
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let done = then(Program {
            path: path.clone(),
            args: vec!["one".into(), "two words".into()],
            env: vec![("A".into(), "from the settings".into())],
        });
        std::fs::remove_file(path).unwrap();
        done
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_plugin_gets_its_request_and_gives_its_answer() {
        let script = "read line; echo \"$line $1 $2 $A ${PATH:+path}\"";
        let answer = with(script, |p| p.call(b"hello\n", "", LONG)).unwrap();
        assert_eq!(answer, b"hello one two words from the settings path\n");
        // One that reads nothing, and one whose child holds the outputs.
        let large = vec![b'x'; 1 << 20];
        assert_eq!(with("echo ok", |p| p.call(&large, "", LONG)).unwrap(), b"ok\n");
        let began = Instant::now();
        assert_eq!(with("sleep 20 & echo ok", |p| p.call(b"", "", LONG)).unwrap(), b"ok\n");
        assert!(began.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn a_failure_says_what_it_said_but_no_token() {
        let token = format!("eyJhbGciOiJSUzI1NiIsImtpZCI6Ing{}", "a".repeat(2000));
        let error = with("cat >&2; exit 3", |p| {
            p.call(format!("bad\x1b[2J {token}").as_bytes(), &token, LONG)
        });
        let error = error.unwrap_err();
        assert!(error.contains("exit status: 3: bad\\u{1b}[2J [token]"), "{error}");
        assert!(!error.contains("eyJ"), "{error}");
        // However odd the token is.
        assert_eq!(shown(b"a token, tokens", "token"), "a [token], [token]");
        assert_eq!(shown(b"[x] t", "t"), "[x] [token]");
    }

    #[test]
    fn a_plugin_is_bounded() {
        let began = Instant::now();
        let slow = with("sleep 30; echo late", |p| p.call(b"", "", Duration::from_millis(300))).unwrap_err();
        assert!(
            slow.contains("didn't end in time, within 300ms") && began.elapsed() < Duration::from_secs(20),
            "{slow}"
        );
        let error = with("yes hunter2", |p| p.call(b"", "", LONG)).unwrap_err();
        assert_eq!(error, "its answer has more than 1 MiB");
        let error = with("yes hunter2 >&2 & sleep 0.3; kill $!; exit 1", |p| {
            p.call(b"", "", LONG)
        })
        .unwrap_err();
        assert!(error.len() < 2 * MOST_SAID, "{}", error.len());
        let missing = Program {
            path: "/nonexistent/plugin".into(),
            args: Vec::new(),
            env: Vec::new(),
        };
        assert!(missing.call(b"", "", LONG).unwrap_err().contains("can't be found"));
        let open = with("echo ok", |p| {
            std::fs::set_permissions(&p.path, PermissionsExt::from_mode(0o777)).unwrap();
            p.call(b"", "", LONG)
        });
        assert!(open.unwrap_err().contains("can be written by others"));
    }
}
