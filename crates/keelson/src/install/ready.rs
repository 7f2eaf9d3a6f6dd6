//! Whether the service came up: as its manager tells it, and what it said itself if it didn't.

use super::given::Role;
use super::host::{Host, Manager};
use super::{openrc, unit};
use crate::client::block_on;
use anyhow::bail;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(200);
/// Starts that end by themselves before it is said that none will do.
const ATTEMPTS: u32 = 3;
const LINES: usize = 12;

/// The service as it was before anything was done.
pub struct Service<'a> {
    host: &'a Host,
    manager: Manager,
    role: Role,
    runs: bool,
    /// Which start of it that was.
    start: String,
    /// Its main process, as far as its manager tells.
    pid: Option<u32>,
    ends: Ends,
}

/// How often the service ended by itself since it was asked to start. Its manager counts from the last time that it did as it was
/// asked: what a program before it had ended until then is not held against this one.
#[derive(Clone, Copy, Debug, Default)]
struct Ends(u32);

impl Ends {
    /// Whether the count says by now that no start will do.
    fn are_enough(&mut self, count: u32) -> bool {
        if count < self.0 {
            self.0 = 0;
        }
        count - self.0 >= ATTEMPTS
    }
}

fn restarts(state: &BTreeMap<String, String>) -> u32 {
    state["NRestarts"].parse().unwrap_or(0)
}

impl<'a> Service<'a> {
    pub fn look(host: &'a Host, manager: Manager, role: Role) -> anyhow::Result<Service<'a>> {
        let mut service = Service {
            host,
            manager,
            role,
            runs: false,
            start: String::new(),
            pid: None,
            ends: Ends::default(),
        };
        match manager {
            _ if !host.is_live() => {}
            Manager::Systemd => {
                let mut state = service.state()?;
                service.runs = matches!(state["ActiveState"].as_str(), "active" | "activating" | "reloading");
                service.start = state.remove("InvocationID").unwrap_or_default();
                service.ends = Ends(restarts(&state));
                service.pid = state["MainPID"].parse().ok().filter(|pid| *pid > 0);
            }
            Manager::Openrc => service.runs = service.is_started()?,
        }
        Ok(service)
    }

    pub fn runs(&self) -> bool {
        self.runs
    }

    /// How its manager is asked for it.
    pub fn command(&self, verb: &str) -> Vec<String> {
        let unit = unit::name(self.role);
        let words = match (self.manager, verb) {
            (Manager::Systemd, "stop") => vec!["systemctl", "stop", &unit],
            // How it goes is looked at, and told.
            (Manager::Systemd, verb) => vec!["systemctl", verb, "--no-block", &unit],
            (Manager::Openrc, verb) => vec!["rc-service", self.role.service(), verb],
        };
        words.into_iter().map(String::from).collect()
    }

    /// Whether it runs another program than the file at a place: one that was there before.
    pub fn is_another(&self, place: &Path) -> bool {
        let file = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
        let runs = self
            .pid
            .and_then(|pid| file(&self.host.path(Path::new(&format!("/proc/{pid}/exe")))));
        runs.is_some_and(|runs| file(&self.host.path(place)) != Some(runs))
    }

    fn state(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let words = [
            "systemctl",
            "show",
            "--property=ActiveState,InvocationID,MainPID,NRestarts",
            &unit::name(self.role),
        ];
        let said = self.host.ask(&words)?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let empty =
            ["ActiveState", "InvocationID", "MainPID", "NRestarts"].map(|name| (name.to_owned(), String::new()));
        let pairs = said.lines().filter_map(|line| line.split_once('='));
        Ok(empty
            .into_iter()
            .chain(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())))
            .collect())
    }

    fn is_started(&self) -> anyhow::Result<bool> {
        Ok(self
            .host
            .ask(&["rc-service", self.role.service(), "status"])?
            .status
            .success())
    }

    /// Until it says that it is ready, in a start after the one that was.
    pub fn wait(&self, kubeconfig: &Path, patience: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + patience;
        let mut ends = self.ends;
        loop {
            let (ready, ended) = match self.manager {
                Manager::Systemd => {
                    let state = self.state()?;
                    let enough = ends.are_enough(restarts(&state));
                    let anew = state["InvocationID"] != self.start;
                    (
                        anew && state["ActiveState"] == "active",
                        anew && (enough || state["ActiveState"] == "failed"),
                    )
                }
                // It tells nothing but that the process is there: the rest is asked of the API.
                Manager::Openrc => {
                    let started = self.is_started()?;
                    let answers = self.role == Role::Agent || block_on(crate::wait::look(kubeconfig)).is_ok();
                    (started && answers, false)
                }
            };
            if ready {
                return Ok(());
            }
            let service = self.role.service();
            if ended {
                bail!(
                    "{service} ends as soon as it starts, and is started again; it said last:\n{}",
                    self.last_lines()
                );
            }
            if Instant::now() > until {
                bail!(
                    "{service} is installed, and not ready after {}s; it goes on trying. It said last:\n{}",
                    patience.as_secs(),
                    self.last_lines()
                );
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn last_lines(&self) -> String {
        let text = match self.manager {
            Manager::Systemd => {
                let (unit, lines) = (format!("--unit={}", unit::name(self.role)), format!("--lines={LINES}"));
                let said = self
                    .host
                    .ask(&["journalctl", "--no-pager", "--output=cat", &unit, &lines]);
                said.map(|said| said.stdout).unwrap_or_default()
            }
            Manager::Openrc => std::fs::read(self.host.path(&openrc::log(self.role))).unwrap_or_default(),
        };
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.iter().skip(lines.len().saturating_sub(LINES));
        last.map(|line| format!("  {line}\n"))
            .collect::<String>()
            .trim_end()
            .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_program_ended_is_not_held_against_the_one_that_comes() {
        let judge = |before: u32, counts: &[u32]| {
            let mut ends = Ends(before);
            counts.iter().map(|count| ends.are_enough(*count)).collect::<Vec<_>>()
        };
        assert_eq!(judge(0, &[0, 1, 2, 3]), [false, false, false, true]);
        // The ill one is started once more before the order arrives, which begins the count anew.
        assert_eq!(judge(3, &[3, 4, 0, 1, 3]), [false, false, false, false, true]);
        // It never arrives.
        assert_eq!(judge(3, &[4, 5, 6]), [false, false, true]);
    }
}
