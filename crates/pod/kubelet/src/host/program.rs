//! Programs of the machine. File systems that only their own programs know how to mount: mount(8) finds the helper, which
//! talks to the server.

use keelson_sys::process::pidfd_open;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// After this long a mount is given up.
const DEADLINE: Duration = Duration::from_secs(120);
/// As much of what a program says goes into an event.
const SAID: usize = 1024;

/// Mounts by mount(8). The error is what people know from upstream's kubelet: the arguments, and what the program said.
pub fn mount(kind: &str, source: &str, target: &Path, options: &[String]) -> io::Result<()> {
    let mut arguments = vec!["-t".to_string(), kind.to_string()];
    if !options.is_empty() {
        arguments.extend(["-o".to_string(), options.join(",")]);
    }
    let place = target.to_string_lossy().into_owned();
    let shown = format!("{} {source} {place}", arguments.join(" "));
    // A source is a stranger's text: it is never an option.
    arguments.extend(["--".to_string(), source.to_string(), place]);
    let failed = |how: String, said: &str| {
        io::Error::other(format!(
            "mount failed: {how}\nMounting command: mount\nMounting arguments: {shown}\nOutput: {said}\n"
        ))
    };
    let mut child = Command::new("mount")
        .args(&arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(e.to_string(), ""))?;
    let Some(status) = end_of(&mut child, DEADLINE)? else {
        return Err(failed(format!("no end after {} s", DEADLINE.as_secs()), ""));
    };
    if status.success() {
        return Ok(());
    }
    let mut said = Vec::new();
    if let Some(output) = child.stderr.take() {
        io::Read::read_to_end(&mut io::Read::take(output, SAID as u64), &mut said)?;
    }
    let how = match status.code() {
        Some(code) => format!("exit status {code}"),
        None => status.to_string(),
    };
    Err(failed(how, String::from_utf8_lossy(&said).trim_end()))
}

/// How a program of ours ended; `None`: not within this time, so that it was ended.
pub(super) fn end_of(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    match ends_within(child, patience) {
        Ok(true) => child.wait().map(Some),
        Ok(false) => {
            child.kill()?;
            child.wait()?;
            Ok(None)
        }
        Err(error) => {
            child.kill()?;
            child.wait()?;
            Err(error)
        }
    }
}

fn ends_within(child: &Child, patience: Duration) -> io::Result<bool> {
    let process = pidfd_open(child.id() as i32)?;
    let end = Instant::now() + patience;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_waited_for_and_not_for_ever() {
        let sleep = |seconds: &str| Command::new("sleep").arg(seconds).spawn().unwrap();
        let ended = end_of(&mut sleep("0.05"), Duration::from_secs(60)).unwrap();
        assert!(ended.is_some_and(|status| status.success()));
        let mut slow = sleep("60");
        assert_eq!(end_of(&mut slow, Duration::from_millis(20)).unwrap(), None);
        assert!(slow.try_wait().unwrap().is_some(), "it was left behind");
    }

    #[test]
    fn a_failure_says_what_was_tried_and_what_came_of_it() {
        let options = ["ro".to_string(), "nolock".to_string()];
        let error = mount("keelson-none", "-obad:/x", Path::new("/nonexistent"), &options).unwrap_err();
        let text = error.to_string();
        let begin = "mount failed: exit status ";
        assert!(text.starts_with(begin), "{text}");
        let shown = "\nMounting command: mount\nMounting arguments: -t keelson-none -o ro,nolock -obad:/x /nonexistent\nOutput: ";
        assert!(text.contains(shown), "{text}");
        assert!(
            !text.contains("invalid option"),
            "a source was read as an option: {text}"
        );
    }
}
