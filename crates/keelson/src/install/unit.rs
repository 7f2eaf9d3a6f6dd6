//! The unit for systemd.

use super::given::Role;
use anyhow::ensure;
use std::path::{Path, PathBuf};

/// Where systemd looks first; a package's own is elsewhere.
pub fn place(role: Role) -> PathBuf {
    Path::new("/etc/systemd/system").join(name(role))
}

pub fn name(role: Role) -> String {
    format!("{}.service", role.service())
}

/// Everybody can read it: secrets are in a file that it names.
pub fn text(role: Role, program: &Path, config: &Path, secrets: &Path) -> anyhow::Result<String> {
    let (program, config, secrets) = (plain(program)?, word(&config.to_string_lossy())?, plain(secrets)?);
    let command = role.command();
    Ok(format!(
        "[Unit]
Description=Keelson: Kubernetes as one program ({command})
Documentation=man:keelson-{command}(1)
After=network-online.target
Wants=network-online.target
# Tried again for ever: what it waits for may come.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
EnvironmentFile=-{secrets}
# The program before the last upgrade takes back what nobody has confirmed.
ExecStartPre=-/bin/sh -c 'test ! -x \"$$0\" || exec \"$$0\" upgrade settle --config \"$$1\"' {program}.previous {config}
ExecStart={program} {command} --config {config}
# Pods belong to shims that outlive the {command}: only the main process is stopped.
KillMode=process
Delegate=yes
# Sockets are handed from one process to the next.
FileDescriptorStoreMax=16
Restart=always
RestartSec=1
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
TimeoutStartSec=infinity
TimeoutStopSec=60
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
"
    ))
}

/// The program that a unit runs.
pub fn program(text: &str) -> Option<PathBuf> {
    let command = text.lines().find_map(|line| line.strip_prefix("ExecStart="))?;
    Some(command.split(' ').next()?.into())
}

/// The configuration that a unit's command names.
pub fn config(text: &str) -> Option<PathBuf> {
    let mut commands = text.lines().filter(|line| line.starts_with("ExecStart="));
    let word = commands.find_map(|line| Some(line.split_once(" --config")?.1))?;
    let word = word.trim_start_matches([' ', '=']).trim_end();
    let Some(quoted) = word.strip_prefix('"').and_then(|w| w.strip_suffix('"')) else {
        return Some(word.split(' ').next()?.into());
    };
    let (mut plain, mut rest) = (String::new(), quoted.chars());
    while let Some(c) = rest.next() {
        plain.push(c);
        if matches!(c, '%' | '$' | '\\') {
            let escaped = rest.next()?;
            if c == '\\' {
                plain.pop();
                plain.push(escaped);
            }
        }
    }
    Some(plain.into())
}

/// A path that means itself wherever systemd reads one: where the program is it takes no escapes for everything.
fn plain(path: &Path) -> anyhow::Result<&str> {
    let text = path.to_str().unwrap_or_default();
    let fits = |c: char| c.is_ascii_alphanumeric() || "/._+-".contains(c);
    ensure!(
        text.starts_with('/') && text.chars().all(fits),
        "{}: a service's program needs an absolute path of letters, digits and . _ + - only",
        path.display()
    );
    Ok(text)
}

/// A word of a command, as it is: no specifier (%), no variable ($), no escape.
pub fn word(text: &str) -> anyhow::Result<String> {
    ensure!(
        !text.chars().any(char::is_control),
        "{text:?}: line breaks and other control characters can't stand in a service's command"
    );
    let safe = |c: char| c.is_alphanumeric() || "/._+-=:,@".contains(c);
    if !text.is_empty() && text.chars().all(safe) {
        return Ok(text.to_owned());
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '%' => quoted.push_str("%%"),
            '$' => quoted.push_str("$$"),
            '"' | '\\' => quoted.extend(['\\', c]),
            _ => quoted.push(c),
        }
    }
    quoted.push('"');
    Ok(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(role: Role, config: &str) -> anyhow::Result<String> {
        let secrets = Path::new("/etc/keelson/secrets.env");
        text(role, Path::new("/usr/local/bin/keelson"), Path::new(config), secrets)
    }

    /// What packages ship is what is installed.
    #[test]
    fn the_unit_is_the_golden_one() {
        let golden = include_str!("../../../../tools/packaging/keelson.service");
        assert_eq!(of(Role::Server, "/etc/keelson/config.yaml").unwrap(), golden);
        assert_eq!(program(golden).as_deref(), Some(Path::new("/usr/local/bin/keelson")));
        let agent = of(Role::Agent, "/etc/keelson/config.yaml").unwrap();
        assert!(agent.contains("\nExecStart=/usr/local/bin/keelson agent --config /etc/keelson/config.yaml\n"));
    }

    #[test]
    fn words_mean_themselves() {
        for (given, wanted) in [
            ("/etc/keelson/config.yaml", "/etc/keelson/config.yaml"),
            ("", "\"\""),
            (";", "\";\""),
            ("a b", "\"a b\""),
            ("50%h", "\"50%%h\""),
            ("$HOME ${X}", "\"$$HOME $${X}\""),
            ("it's \"so\" \\n", "\"it's \\\"so\\\" \\\\n\""),
            ("#x", "\"#x\""),
        ] {
            assert_eq!(word(given).unwrap(), wanted, "{given}");
        }
        assert!(word("a\nExecStartPre=/bin/sh").is_err() && word("a\rb").is_err() && word("a\tb").is_err());
        assert!(
            of(Role::Server, "/etc/a b%c.yaml")
                .unwrap()
                .contains("--config \"/etc/a b%%c.yaml\"\n")
        );
        for path in ["/etc/keelson/config.yaml", "/etc/a b%c $x \\n \"q\".yaml"] {
            let text = of(Role::Server, path).unwrap();
            assert_eq!(config(&text).as_deref(), Some(Path::new(path)));
        }
        assert!(of(Role::Server, "/etc/a\nb").is_err());
        for bad in ["/opt/a b/keelson", "keelson", "/opt/$x/keelson", "/opt/%h/keelson"] {
            assert!(
                text(Role::Server, Path::new(bad), Path::new("/c"), Path::new("/s")).is_err(),
                "{bad}"
            );
        }
    }
}
