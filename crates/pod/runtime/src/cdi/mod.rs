//! Devices by name (the container device interface, CDI): what a container has to be given for a device stands in a
//! specification that the device's driver leaves in `/etc/cdi` or `/var/run/cdi`; whoever asks for a container says only
//! `vendor/class=device`.
//!
//! Specifications are read when a container asks for a device, and only for it. What can't be honoured ([`format`]) is refused
//! by name. Nothing here mounts or makes anything: the result ([`Edits`]) is put into the container's specification
//! ([`inject`]).

mod format;
mod inject;

pub use inject::Edits;

use format::Spec;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where specifications are; a device of a later directory is meant where two have it.
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// More than any driver writes.
const LONGEST: u64 = 8 << 20;
/// How many specifications a directory may have.
const MOST: usize = 4096;

/// The devices that a container asks for, and by an older way, which device plug-ins have: annotations.
pub fn asked<'a>(
    named: impl Iterator<Item = &'a str>,
    annotations: impl Iterator<Item = (&'a str, &'a str)>,
) -> Vec<String> {
    let mut of_annotations: Vec<(&str, &str)> = annotations.filter(|(key, _)| key.starts_with("cdi.k8s.io/")).collect();
    of_annotations.sort_unstable();
    let more = of_annotations.into_iter().flat_map(|(_, names)| names.split(','));
    let mut all: Vec<String> = Vec::new();
    for name in named.chain(more).map(str::trim) {
        if !name.is_empty() && !all.iter().any(|had| had == name) {
            all.push(name.to_owned());
        }
    }
    all
}

/// What a container is to have for these devices.
pub fn edits(directories: &[&Path], devices: &[String]) -> Result<Edits, String> {
    let failed = |why: String| format!("CDI device injection failed: {why}");
    if devices.is_empty() {
        return Ok(Edits::default());
    }
    for name in devices {
        format::check_name(name).map_err(failed)?;
    }
    let found = find(directories, devices).map_err(failed)?;
    let missing: Vec<&str> = devices
        .iter()
        .filter(|d| !found.contains_key(*d))
        .map(String::as_str)
        .collect();
    if !missing.is_empty() {
        return Err(failed(format!("unresolvable CDI devices {}", missing.join(", "))));
    }
    let (mut all, mut seen) = (Edits::default(), Vec::new());
    for name in devices {
        let Some((path, spec)) = found.get(name) else { continue };
        let told = |e: String| failed(format!("{}: {e}", path.display()));
        // What all devices of a specification have in common comes once, and first.
        if !seen.contains(&path) {
            seen.push(path);
            all.add(&spec.container_edits).map_err(told)?;
        }
        let device = name.split_once('=').map_or("", |(_, device)| device);
        for d in spec.devices.iter().filter(|d| d.name == device) {
            all.add(&d.container_edits).map_err(told)?;
        }
    }
    Ok(all)
}

type Found = BTreeMap<String, (PathBuf, std::sync::Arc<Spec>)>;

/// The specifications of devices.
fn find(directories: &[&Path], devices: &[String]) -> Result<Found, String> {
    let (mut found, mut broken) = (Found::new(), Vec::new());
    for directory in directories {
        let mut here = Found::new();
        for path in list(directory)? {
            let spec = match read(&path) {
                Ok(spec) => std::sync::Arc::new(spec),
                // Of concern only to who asks for its devices.
                Err(e) => {
                    broken.push(format!("{}: {e}", path.display()));
                    continue;
                }
            };
            for d in &spec.devices {
                let name = format!("{}={}", spec.kind, d.name);
                if !devices.contains(&name) {
                    continue;
                }
                if let Some((other, _)) = here.insert(name.clone(), (path.clone(), spec.clone())) {
                    return Err(format!(
                        "conflicting device {name:?} (specs {:?}, {:?})",
                        other.display().to_string(),
                        path.display().to_string()
                    ));
                }
            }
        }
        found.extend(here);
    }
    match devices.iter().all(|d| found.contains_key(d)) || broken.is_empty() {
        true => Ok(found),
        false => {
            let missing: Vec<&str> = devices
                .iter()
                .filter(|d| !found.contains_key(*d))
                .map(String::as_str)
                .collect();
            let (missing, broken) = (missing.join(", "), broken.join("; "));
            Err(format!(
                "unresolvable CDI devices {missing}; specifications that can't be used: {broken}"
            ))
        }
    }
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = match std::fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| format!("{}: {e}", directory.display()))?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| format!("{}: {e}", directory.display()))?.path();
        if path.extension().is_some_and(|e| e == "json" || e == "yaml") {
            all.push(path);
        }
        if all.len() > MOST {
            return Err(format!("{} has more than {MOST} specifications", directory.display()));
        }
    }
    all.sort();
    Ok(all)
}

fn read(path: &Path) -> Result<Spec, String> {
    let mut text = String::new();
    // Anything else could keep us waiting, a pipe already when it is opened.
    let opened = File::options()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path);
    let file = opened.map_err(|e| e.to_string())?;
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return Err("it is no file".into());
    }
    file.take(LONGEST + 1)
        .read_to_string(&mut text)
        .map_err(|e| e.to_string())?;
    if text.len() as u64 > LONGEST {
        return Err(format!("it is longer than {LONGEST} bytes"));
    }
    format::parse(&text, path.extension().is_some_and(|e| e == "json"))
}

#[cfg(test)]
mod tests;
