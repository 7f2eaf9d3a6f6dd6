//! What getsubids(1) tells of a user. The program knows where they are kept, on this machine or in a directory service.

use super::program::end_of;
use nix::errno::Errno;
use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::time::Duration;

/// After this long it is given up: a directory service may be away.
const DEADLINE: Duration = Duration::from_secs(30);
/// More than one line ever is.
const MOST: u64 = 4096;

/// What it says of users and of groups; `None` where there is no such user, or no such program.
pub fn of(user: &str) -> io::Result<Option<(String, String)>> {
    match nix::unistd::User::from_name(user) {
        Ok(Some(_)) => {}
        // What getpwnam(3) says where there is nobody of that name, or no list of users at all.
        Ok(None) | Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM) => return Ok(None),
        Err(e) => return Err(e.into()),
    }
    let Some(uids) = said("getsubids", &[user])? else {
        return Ok(None);
    };
    let gids = said("getsubids", &["-g", user])?;
    Ok(gids.map(|gids| (uids, gids)))
}

fn said(program: &str, arguments: &[&str]) -> io::Result<Option<String>> {
    let shown = format!("{program} {}", arguments.join(" "));
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = match command.spawn() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io::Error::new(e.kind(), format!("{shown}: {e}"))),
        Ok(child) => child,
    };
    let Some(status) = end_of(&mut child, DEADLINE)? else {
        return Err(io::Error::other(format!(
            "{shown}: no end after {} s",
            DEADLINE.as_secs()
        )));
    };
    if !status.success() {
        return Err(io::Error::other(format!("{shown}: {status}")));
    }
    let mut text = String::new();
    if let Some(output) = child.stdout.take() {
        output.take(MOST).read_to_string(&mut text)?;
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_doesnt_exist_has_none_and_failures_are_told() {
        assert_eq!(of("keelson-nobody-of-this-name").unwrap(), None);
        assert_eq!(said("keelson-no-program", &[]).unwrap(), None);
        assert_eq!(said("echo", &["0: kubelet 1 2"]).unwrap().unwrap(), "0: kubelet 1 2\n");
        assert!(said("false", &[]).unwrap_err().to_string().starts_with("false"));
    }
}
