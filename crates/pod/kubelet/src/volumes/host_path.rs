//! hostPath volumes: the path is used as it is, after its type has been checked.

use crate::host::{FileKind, Host};
use std::path::Path;

/// Checks (or makes) what the type asks for.
pub fn check(host: &dyn Host, path: &str, kind: &str) -> Result<(), String> {
    let at = Path::new(path);
    let found = host
        .kind(at)
        .map_err(|e| format!("hostPath type check failed: {path}: {e}"))?;
    let must = |want: FileKind, what: &str| {
        if found == Some(want) {
            Ok(())
        } else {
            Err(format!("hostPath type check failed: {path} is not {what}"))
        }
    };
    let make = |r: std::io::Result<()>| r.map_err(|e| format!("hostPath {path} can't be made: {e}"));
    match kind {
        "" => Ok(()),
        "DirectoryOrCreate" if found.is_none() => make(host.make_dir(at, 0o755)),
        "DirectoryOrCreate" | "Directory" => must(FileKind::Directory, "a directory"),
        "FileOrCreate" if found.is_none() => make(host.write_in_place(at, b"", 0o644)),
        "FileOrCreate" | "File" => must(FileKind::File, "a file"),
        "Socket" => must(FileKind::Socket, "a socket file"),
        "CharDevice" => must(FileKind::CharDevice, "a character device"),
        "BlockDevice" => must(FileKind::BlockDevice, "a block device"),
        other => Err(format!("{other} is an invalid volume type")),
    }
}
