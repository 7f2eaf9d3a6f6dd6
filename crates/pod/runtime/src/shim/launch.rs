//! The last steps of a process that becomes a program in a container: finding the program, and exec.

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;

use keelson_sys::process;
use serde::{Deserialize, Serialize};

/// Open files a process of a container may have, and may raise that to: what systemd gives services, and so containerd
/// its containers. Whoever started the server has no say in it.
pub const FILES: (u64, u64) = (1024, 524_288);

/// What the processes between the shim and a program report, on one socket that exec closes: the pid, or an error,
/// and then its end.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Longest report.
pub const MAX_OUTCOME: usize = 8 << 10;

pub fn report_pid(to: BorrowedFd<'_>, pid: i32) -> io::Result<()> {
    report(
        to,
        &Outcome {
            pid: Some(pid),
            error: None,
        },
    )
}

pub fn report_error(to: BorrowedFd<'_>, mut error: String) {
    let mut end = error.len().min(MAX_OUTCOME / 4);
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    error.truncate(end);
    // When the shim is gone there is nobody to tell.
    let _ = report(
        to,
        &Outcome {
            pid: None,
            error: Some(error),
        },
    );
}

fn report(to: BorrowedFd<'_>, outcome: &Outcome) -> io::Result<()> {
    process::send_with_fds(to, &serde_json::to_vec(outcome)?, &[]).map(drop)
}

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where the program is, looked for as `execvp` would with the container's own PATH. The error is worded as runc's,
/// which people search for.
pub fn find_program(name: &str, env: &[String]) -> Result<CString, String> {
    let failed = |why: &str| format!("exec: {name:?}: {why}");
    let c_string = |path: &str| CString::new(path).map_err(|_| failed("invalid argument"));
    if name.contains('/') {
        return match check(name) {
            Ok(()) => c_string(name),
            Err(e) => Err(failed(&format!("stat {name}: {e}"))),
        };
    }
    let path = env
        .iter()
        .rev()
        .find_map(|e| e.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    let mut found = Err(failed("executable file not found in $PATH"));
    for dir in path.split(':').filter(|d| !name.is_empty() && !d.is_empty()) {
        let candidate = format!("{}/{name}", dir.trim_end_matches('/'));
        match check(&candidate) {
            Ok(()) => return c_string(&candidate),
            Err("permission denied") => found = Err(failed("permission denied")),
            Err(_) => {}
        }
    }
    found
}

fn check(path: &str) -> Result<(), &'static str> {
    match std::fs::metadata(path) {
        Ok(m) if m.is_dir() => Err("is a directory"),
        Ok(m) if m.mode() & 0o111 == 0 => Err("permission denied"),
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err("permission denied"),
        Err(_) => Err("no such file or directory"),
    }
}

/// Becomes the program. Returns only the reason why that failed.
pub fn exec(program: &CString, args: &[String], env: &[String]) -> String {
    let list = |strings: &[String]| -> Result<Vec<CString>, String> {
        strings
            .iter()
            .map(|s| CString::new(s.as_str()).map_err(|_| "exec: a string contains NUL".to_owned()))
            .collect()
    };
    let (args, env) = match (list(args), list(env)) {
        (Ok(args), Ok(env)) => (args, env),
        (Err(e), _) | (_, Err(e)) => return e,
    };
    // The shim does without huge pages; its containers need not.
    if let Err(error) = process::reset_signals().and_then(|()| process::allow_huge_pages(true)) {
        return format!("cannot give up the shim's settings: {error}");
    }
    let error = process::execve(program, &args, &env);
    format!("exec {}: {}", program.to_string_lossy(), lower(&error))
}

/// The kernel's words for an error without Rust's "(os error 8)".
pub fn lower(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}
