//! The kernel's settings of networks that this crate changes, and forwarding, which is put back at the end.

use anyhow::Context;
use keelson_sys::nft::Family;
use std::fs;
use std::path::{Path, PathBuf};

/// Sets a value below `/proc/sys`, of the network namespace of the calling thread, unless it has it.
pub fn set(key: &str, value: &str) -> anyhow::Result<()> {
    let path = format!("/proc/sys/{key}");
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).with_context(|| format!("cannot set {path} to {value}"))
}

fn get(key: &str) -> anyhow::Result<String> {
    let path = format!("/proc/sys/{key}");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.trim().to_string())
}

const LINKS: &str = "/proc/sys/net/ipv6/conf";

fn forwarding(family: Family) -> &'static str {
    match family {
        Family::Ip6 => "net/ipv6/conf/all/forwarding",
        _ => "net/ipv4/ip_forward",
    }
}

/// The file that says that forwarding was off when the network came; of IPv6 it has the links that then were told to go
/// on listening to routers.
fn note(state_dir: &Path, family: Family) -> PathBuf {
    state_dir.join(match family {
        Family::Ip6 => "forwarding6-was-off",
        _ => "forwarding-was-off",
    })
}

/// Has the host forward packets. A host that forwards IPv6 no longer listens to routers, and would lose its own default route:
/// the links that did are told to go on.
pub fn switch_forwarding_on(state_dir: &Path, family: Family) -> anyhow::Result<()> {
    let key = forwarding(family);
    if get(key).context("is forwarding on?")? == "0" {
        let listening = match family {
            Family::Ip6 => listening()?,
            _ => Vec::new(),
        };
        // Noted before it is so: a crash between the two leaves a note that is still true.
        fs::write(note(state_dir, family), listening.join("\n"))?;
        for link in listening {
            set(&format!("net/ipv6/conf/{link}/accept_ra"), "2")?;
        }
    }
    set(key, "1")
}

/// Links that take what routers say as long as the host doesn't forward.
fn listening() -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(LINKS).with_context(|| format!("cannot read {LINKS}"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let own = name.starts_with(crate::LINK_PREFIX) || ["all", "default", "lo"].contains(&name.as_str());
        // A link may go meanwhile.
        if !own && get(&format!("net/ipv6/conf/{name}/accept_ra")).is_ok_and(|now| now == "1") {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

pub fn restore_forwarding(state_dir: &Path) -> anyhow::Result<()> {
    for family in [Family::Ip, Family::Ip6] {
        let note = note(state_dir, family);
        let Ok(links) = fs::read_to_string(&note) else { continue };
        set(forwarding(family), "0")?;
        for link in links.lines().filter(|link| Path::new(LINKS).join(link).exists()) {
            set(&format!("net/ipv6/conf/{link}/accept_ra"), "1")?;
        }
        fs::remove_file(&note)?;
    }
    Ok(())
}

/// The host's end of a pod's link: what comes by IPv6 (a router advertisement would become the host's default route) is for
/// this host only if pods have such addresses, and never tells it of routes.
pub fn host_link(link: &str, ipv6: bool) -> anyhow::Result<()> {
    let dir = format!("net/ipv6/conf/{link}");
    if !ipv6 && !Path::new("/proc/sys").join(&dir).exists() {
        return Ok(());
    }
    set(&format!("{dir}/accept_ra"), "0")?;
    set(&format!("{dir}/accept_redirects"), "0")?;
    // Nobody else is on it: without an address of its own at once it couldn't ask for the pod's, for a second or two.
    set(&format!("{dir}/accept_dad"), "0")?;
    set(&format!("{dir}/disable_ipv6"), if ipv6 { "0" } else { "1" })
}
