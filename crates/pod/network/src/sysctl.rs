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

/// The file that says that forwarding was off when the network came.
fn note(state_dir: &Path, family: Family) -> PathBuf {
    state_dir.join(match family {
        Family::Ip6 => "forwarding6-was-off",
        _ => "forwarding-was-off",
    })
}

/// What it says. A line with a blank in it is no link's name: one of an earlier version has links only.
#[derive(Debug, Default, PartialEq, Eq)]
struct Note {
    /// Which start of the machine that was.
    boot: Option<String>,
    /// Links with addresses that were there, and needed no forwarding.
    had: Vec<String>,
    /// Links that were told to go on listening to routers.
    listening: Vec<String>,
}

impl Note {
    fn read(text: &str) -> Note {
        let mut note = Note::default();
        for line in text.lines() {
            match line.split_once(' ') {
                Some(("boot", id)) => note.boot = Some(id.into()),
                Some(("had", links)) => note.had = links.split(' ').map(String::from).collect(),
                Some(_) => {}
                None => note.listening.push(line.into()),
            }
        }
        note
    }

    fn text(&self) -> String {
        let boot = self.boot.iter().map(|id| format!("boot {id}\n"));
        let had = (!self.had.is_empty()).then(|| format!("had {}\n", self.had.join(" ")));
        let listening = self.listening.iter().map(|link| format!("{link}\n"));
        boot.chain(had).chain(listening).collect()
    }

    /// Whether forwarding is only on because of who wrote this: since the machine was started nobody came who needs it, too.
    fn holds(&self, boot: &str, links: &[String]) -> bool {
        self.boot.as_ref().is_none_or(|id| id == boot) && links.iter().all(|link| self.had.contains(link))
    }
}

fn boot() -> anyhow::Result<String> {
    get("kernel/random/boot_id")
}

/// Bridges and cables with an address, by which others have their way: of the network namespace of the calling thread.
fn links() -> anyhow::Result<Vec<String>> {
    let look = || -> anyhow::Result<Vec<String>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let (handle, driver) = crate::link::here()?;
            let found = crate::link::plugged(&handle).await;
            driver.abort();
            found
        })
    };
    // The caller may run in a runtime.
    std::thread::scope(|scope| scope.spawn(look).join())
        .map_err(|_| anyhow::anyhow!("the thread that looked at the links died"))?
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
        let own = Note {
            boot: Some(boot()?),
            had: links()?,
            listening,
        };
        // Noted before it is so: a crash between the two leaves a note that is still true.
        fs::write(note(state_dir, family), own.text())?;
        for link in own.listening {
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

/// Puts forwarding back, unless others have come to need it.
pub fn restore_forwarding(state_dir: &Path) -> anyhow::Result<()> {
    for family in [Family::Ip, Family::Ip6] {
        let path = note(state_dir, family);
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let note = Note::read(&text);
        if note.holds(&boot()?, &links()?) {
            set(forwarding(family), "0")?;
            let there = |link: &&String| Path::new(LINKS).join(link).exists();
            for link in note.listening.iter().filter(there) {
                set(&format!("net/ipv6/conf/{link}/accept_ra"), "1")?;
            }
        }
        fs::remove_file(&path)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarding_goes_only_if_nobody_else_came_to_need_it() {
        let links = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
        let note = Note {
            boot: Some("one".into()),
            had: links("eth0 br0"),
            listening: links("eth0"),
        };
        assert_eq!(note.text(), "boot one\nhad eth0 br0\neth0\n");
        assert_eq!(Note::read(&note.text()), note);
        for (boot, there, holds) in [
            ("one", "eth0", true),
            ("one", "", true),
            ("one", "eth0 docker0", false),
            ("two", "eth0", false),
        ] {
            assert_eq!(note.holds(boot, &links(there)), holds, "{boot} {there}");
        }
        // An earlier version's.
        let before = Note::read("eth0\neth1");
        assert_eq!(before.listening, ["eth0", "eth1"]);
        assert!(before.holds("one", &[]) && Note::read("").holds("one", &[]));
        assert!(super::links().is_ok() && !boot().unwrap().is_empty());
    }
}
