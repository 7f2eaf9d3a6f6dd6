//! File systems that only their own programs know how to mount: mount(8) finds the helper, which talks to the server.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
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
    let end = Instant::now() + DEADLINE;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() >= end => {
                child.kill()?;
                child.wait()?;
                return Err(failed(format!("no end after {} s", DEADLINE.as_secs()), ""));
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

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
