//! AppArmor: which profile a container is confined by, and the default one.
//!
//! A profile that was asked for is in force or the container is not made; nothing falls back to no confinement. Where
//! the kernel has no AppArmor, a profile of the machine's is refused, and the default is what the machine has: none, as
//! with upstream's runtimes.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use keelson_cri::v1::SecurityProfile;
use keelson_cri::v1::security_profile::ProfileType;

/// What `RuntimeDefault` stands for.
pub const DEFAULT: &str = "keelson-default";

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// What other runtimes' default confines to: everything of the container's own, without mounts, without writing to what
/// of /proc and /sys is the machine's, and without tracing or signalling who is confined otherwise.
const TEXT: &str = r#"
@{PROC}=/proc/

profile keelson-default flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,

  # Those outside may signal and trace; those inside, one another.
  signal (receive) peer=unconfined,
  signal (send,receive) peer=keelson-default,
  ptrace (trace,tracedby,read,readby) peer=keelson-default,

  deny @{PROC}/* w,
  deny @{PROC}/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9/]*}/** w,
  deny @{PROC}/sys/[^k]** w,
  deny @{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/mem rwklx,
  deny @{PROC}/kmem rwklx,
  deny @{PROC}/kcore rwklx,

  deny mount,

  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
"#;

/// The machine's AppArmor.
pub trait AppArmor {
    fn enabled(&self) -> bool;
    fn is_loaded(&self, profile: &str) -> Result<bool, String>;
    fn load(&self, text: &str) -> Result<(), String>;
}

/// The profile to confine a container by, which is loaded then; `None` for no confinement.
pub fn profile(
    wanted: Option<&SecurityProfile>,
    privileged: bool,
    machine: &dyn AppArmor,
) -> Result<Option<String>, String> {
    let Some(wanted) = wanted else { return Ok(None) };
    match (wanted.profile_type(), machine.enabled()) {
        (ProfileType::Unconfined, _) => Ok(None),
        (ProfileType::Localhost, false) => Err("apparmor is not supported".into()),
        (ProfileType::Localhost, true) => {
            let reference = wanted.localhost_ref.as_str();
            let name = reference.strip_prefix("localhost/").unwrap_or(reference);
            if name.is_empty() || !machine.is_loaded(name)? {
                return Err(format!("apparmor profile not found {name}"));
            }
            Ok(Some(name.to_owned()))
        }
        (ProfileType::RuntimeDefault, false) => Ok(None),
        (ProfileType::RuntimeDefault, true) if privileged => Ok(None),
        (ProfileType::RuntimeDefault, true) => {
            if !machine.is_loaded(DEFAULT)? {
                machine.load(TEXT)?;
            }
            Ok(Some(DEFAULT.to_owned()))
        }
    }
}

/// The kernel this runs on.
pub struct Kernel;

impl AppArmor for Kernel {
    fn enabled(&self) -> bool {
        std::fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y'))
    }

    fn is_loaded(&self, profile: &str) -> Result<bool, String> {
        let loaded = std::fs::read_to_string(LOADED).map_err(|e| format!("cannot read {LOADED}: {e}"))?;
        Ok(listed(&loaded, profile))
    }

    fn load(&self, text: &str) -> Result<(), String> {
        let failed = |e: std::io::Error| format!("cannot load the default apparmor profile: apparmor_parser: {e}");
        let path = ["/sbin/apparmor_parser", "/usr/sbin/apparmor_parser"];
        let parser = path.iter().find(|p| Path::new(p).exists()).unwrap_or(&path[0]);
        let mut child = Command::new(parser)
            .args(["--skip-cache", "--replace"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let written = child.stdin.take().map(|mut stdin| stdin.write_all(text.as_bytes()));
        let output = child.wait_with_output().map_err(failed)?;
        written.transpose().map_err(failed)?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(std::io::Error::other(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )))
    }
}

/// Lines such as `docker-default (enforce)`; a name may have spaces.
fn listed(profiles: &str, name: &str) -> bool {
    profiles
        .lines()
        .any(|line| line.rsplit_once(" (").is_some_and(|(n, _)| n == name))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    struct Fake {
        enabled: bool,
        loaded: RefCell<Vec<String>>,
    }

    impl AppArmor for Fake {
        fn enabled(&self) -> bool {
            self.enabled
        }
        fn is_loaded(&self, profile: &str) -> Result<bool, String> {
            Ok(self.loaded.borrow().iter().any(|p| p == profile))
        }
        fn load(&self, text: &str) -> Result<(), String> {
            assert!(text.contains(&format!("profile {DEFAULT} ")));
            self.loaded.borrow_mut().push(DEFAULT.to_owned());
            Ok(())
        }
    }

    fn on(enabled: bool, kind: ProfileType, reference: &str, privileged: bool) -> Result<Option<String>, String> {
        let machine = Fake {
            enabled,
            loaded: RefCell::new(vec!["own".to_owned()]),
        };
        let wanted = SecurityProfile {
            profile_type: kind as i32,
            localhost_ref: reference.to_owned(),
        };
        profile(Some(&wanted), privileged, &machine)
    }

    #[test]
    fn a_profile_is_in_force_or_refused() {
        use ProfileType::{Localhost, RuntimeDefault, Unconfined};
        assert_eq!(on(true, Localhost, "localhost/own", false), Ok(Some("own".into())));
        assert_eq!(on(true, Localhost, "own", true), Ok(Some("own".into())));
        assert_eq!(
            on(true, Localhost, "other", false),
            Err("apparmor profile not found other".into())
        );
        assert_eq!(
            on(true, Localhost, "", false),
            Err("apparmor profile not found ".into())
        );
        assert_eq!(
            on(false, Localhost, "own", false),
            Err("apparmor is not supported".into())
        );
        assert_eq!(on(true, RuntimeDefault, "", false), Ok(Some(DEFAULT.into())));
        assert_eq!(on(true, RuntimeDefault, "", true), Ok(None));
        assert_eq!(on(false, RuntimeDefault, "", false), Ok(None));
        assert_eq!(on(true, Unconfined, "", false), Ok(None));
    }

    #[test]
    fn profiles_are_found_by_their_whole_name() {
        let list = "docker-default (enforce)\n/usr/bin/man (complain)\nmy own (enforce)\n";
        assert!(listed(list, "docker-default") && listed(list, "my own"));
        assert!(!listed(list, "docker") && !listed(list, ""));
    }
}
