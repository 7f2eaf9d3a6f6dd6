//! What a machine has of SELinux: the kernel's part, and the policy's files.

use keelson_sys::tree::Handle;
use nix::sys::statfs::{SELINUX_MAGIC, statfs};
use nix::sys::statvfs::{FsFlags, statvfs};
use std::ffi::OsStr;
use std::fmt::Debug;
use std::io;
use std::path::Path;

/// Where a label is kept.
pub const ATTRIBUTE: &str = "security.selinux";
const MOUNTED: &str = "/sys/fs/selinux";
/// Where contexts of containers stand; the second below the policy that is in force.
const CONTEXTS: &str = "/usr/share/containers/selinux/contexts";
const CONFIG: &str = "/etc/selinux/config";

/// The machine, or one that a test plays.
pub trait Machine: Send + Sync + Debug {
    fn read(&self, path: &Path) -> io::Result<String>;
    fn write(&self, path: &Path, text: &str) -> io::Result<()>;
    /// Whether the kernel's interface is mounted there, and can be written.
    fn has_interface(&self, path: &Path) -> bool;
    fn label(&self, file: &Handle) -> io::Result<Option<Vec<u8>>>;
    fn set_label(&self, file: &Handle, label: &str) -> io::Result<()>;
}

#[derive(Debug)]
pub struct Real;

impl Machine for Real {
    fn read(&self, path: &Path) -> io::Result<String> {
        std::fs::read_to_string(path)
    }

    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        // In one call: it is a question to the kernel, not a file.
        let mut file = std::fs::File::options().write(true).open(path)?;
        io::Write::write_all(&mut file, text.as_bytes())
    }

    fn has_interface(&self, path: &Path) -> bool {
        let is_it = statfs(path).is_ok_and(|fs| fs.filesystem_type() == SELINUX_MAGIC);
        is_it && statvfs(path).is_ok_and(|fs| !fs.flags().contains(FsFlags::ST_RDONLY))
    }

    fn label(&self, file: &Handle) -> io::Result<Option<Vec<u8>>> {
        file.xattr(OsStr::new(ATTRIBUTE))
    }

    fn set_label(&self, file: &Handle, label: &str) -> io::Result<()> {
        file.set_xattr(OsStr::new(ATTRIBUTE), label.as_bytes())
    }
}

/// Why pods' labels can't be applied on a machine; `None`: they can be.
pub fn lacks(machine: &dyn Machine) -> Option<&'static str> {
    let kinds = machine.read(Path::new("/proc/filesystems")).unwrap_or_default();
    if !kinds.lines().any(|line| line.trim_end().ends_with("\tselinuxfs")) {
        return Some("the kernel has no SELinux, or it was switched off when the machine started");
    }
    if !machine.has_interface(Path::new(MOUNTED)) {
        return Some("the kernel's interface isn't mounted at /sys/fs/selinux, or can't be written there");
    }
    let own = machine
        .read(Path::new("/proc/thread-self/attr/current"))
        .unwrap_or_default();
    match own.trim_end_matches(['\0', '\n']) {
        "" | "kernel" => Some("no policy is loaded"),
        _ => None,
    }
}

/// The policy's contexts of a container's process and of its files.
pub fn contexts(machine: &dyn Machine) -> Result<(String, String), String> {
    let config = machine.read(Path::new(CONFIG)).unwrap_or_default();
    let policy = value(&config, "SELINUXTYPE").unwrap_or_default();
    let of_policy = format!("/etc/selinux/{policy}/contexts/lxc_contexts");
    let text = machine
        .read(Path::new(CONTEXTS))
        .or_else(|_| machine.read(Path::new(&of_policy)));
    let text = text.map_err(|e| format!("neither {CONTEXTS} nor {of_policy} can be read ({e})"))?;
    match (value(&text, "process"), value(&text, "file")) {
        (Some(process), Some(file)) => Ok((process, file)),
        _ => Err("the policy's contexts of containers name no process and file".into()),
    }
}

fn value(text: &str, key: &str) -> Option<String> {
    let lines = text.lines().map(str::trim).filter(|l| !l.starts_with([';', '#']));
    let mut pairs = lines.filter_map(|line| line.split_once('='));
    let (_, value) = pairs.find(|(k, _)| k.trim() == key)?;
    Some(value.trim().trim_matches('"').to_owned()).filter(|v| !v.is_empty())
}

/// Whether the policy knows a context.
pub fn check(machine: &dyn Machine, context: &str) -> Result<(), String> {
    let asked = machine.write(&Path::new(MOUNTED).join("context"), context);
    asked.map_err(|e| format!("the policy has no context {context}: {e}"))
}
