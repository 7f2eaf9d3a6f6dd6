//! The script for OpenRC, where there is no systemd.

use super::given::Role;
use crate::upgrade;
use anyhow::ensure;
use std::path::{Path, PathBuf};

pub fn place(role: Role) -> PathBuf {
    Path::new("/etc/init.d").join(role.service())
}

pub fn log(role: Role) -> PathBuf {
    Path::new("/var/log").join(format!("{}.log", role.service()))
}

/// OpenRC keeps no logs: this keeps one from growing without end, where there is a logrotate.
pub fn rotation(role: Role) -> (PathBuf, String) {
    let log = log(role);
    let text = format!(
        "{} {{\n\tmissingok\n\tnotifempty\n\tcopytruncate\n\tcompress\n\tsize 50M\n\trotate 3\n}}\n",
        log.display()
    );
    (Path::new("/etc/logrotate.d").join(role.service()), text)
}

pub fn text(role: Role, program: &Path, config: &Path, secrets: &Path) -> anyhow::Result<String> {
    let (command, service, log) = (role.command(), role.service(), log(role));
    let previous = word(&upgrade::beside(program, upgrade::PREVIOUS).to_string_lossy())?;
    let program = word(&program.to_string_lossy())?;
    let named = word(&config.to_string_lossy())?;
    // The list of arguments is evaluated once more.
    let arguments = word(&format!("{command} --config {}", word(&config.to_string_lossy())?))?;
    let (secrets, log) = (word(&secrets.to_string_lossy())?, log.display());
    Ok(format!(
        "#!/sbin/openrc-run
description='Keelson: Kubernetes as one program ({command})'
supervisor=supervise-daemon
command={program}
command_args={arguments}
pidfile=/run/{service}.pid
output_log={log}
error_log={log}
respawn_delay=1
respawn_max=0
rc_ulimit='-n 1048576 -c unlimited'
# Pods belong to shims that outlive the {command}: only the main process is stopped.
rc_cgroup_cleanup=no
retry='TERM/60/KILL/5'

depend() {{
	need localmount
	want cgroups
	use dns logger
	after net firewall dbus elogind
}}

# The program before the last upgrade takes back what nobody has confirmed.
start_pre() {{
	if [ -x {previous} ]; then {previous} upgrade settle --config {named}; fi
	return 0
}}

if [ -f {secrets} ]; then
	set -o allexport
	. {secrets}
	set +o allexport
fi
"
    ))
}

/// The program that a script runs.
pub fn program(text: &str) -> Option<PathBuf> {
    Some(plain(text.lines().find_map(|line| line.strip_prefix("command="))?).into())
}

/// The configuration that a script's command names.
pub fn config(text: &str) -> Option<PathBuf> {
    let arguments = text.lines().find_map(|line| line.strip_prefix("command_args="))?;
    let arguments = plain(arguments);
    Some(plain(arguments.split_once(" --config ")?.1).into())
}

/// What a shell makes of such a word.
fn plain(word: &str) -> String {
    let (mut plain, mut rest, mut quoted) = (String::new(), word.chars(), false);
    while let Some(c) = rest.next() {
        match c {
            '\'' => quoted = !quoted,
            '\\' if !quoted => plain.extend(rest.next()),
            c => plain.push(c),
        }
    }
    plain
}

/// A word for a shell, as it is.
pub fn word(text: &str) -> anyhow::Result<String> {
    ensure!(
        !text.chars().any(char::is_control),
        "{text:?}: line breaks and other control characters can't stand in a service's command"
    );
    let safe = |c: char| c.is_ascii_alphanumeric() || "/._+-=:,@%".contains(c);
    Ok(match !text.is_empty() && text.chars().all(safe) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_the_golden_one_and_a_shell_reads_its_words() {
        let of = |config: &str| {
            let (program, secrets) = (
                Path::new("/usr/local/bin/keelson"),
                Path::new("/etc/keelson/secrets.env"),
            );
            text(Role::Server, program, Path::new(config), secrets)
        };
        let golden = include_str!("../../../../tools/packaging/keelson.openrc");
        assert_eq!(of("/etc/keelson/config.yaml").unwrap(), golden);
        assert!(of("/etc/a\nb").is_err());
        // As OpenRC has it: the script is read, then `eval` of the arguments.
        let odd = "/etc/it's \"so\" $HOME `id` 50%\\n;.yaml";
        let script = of(odd).unwrap() + "eval \"set -- $command_args\"; printf '%s\\n' \"$#\" \"$3\"\n";
        let ran = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&ran.stdout), format!("3\n{odd}\n"));
        for path in ["/etc/keelson/config.yaml", odd] {
            assert_eq!(config(&of(path).unwrap()).as_deref(), Some(Path::new(path)));
            assert_eq!(
                program(&of(path).unwrap()).as_deref(),
                Some(Path::new("/usr/local/bin/keelson"))
            );
        }
    }
}
