//! What is to be there, beside what is there: decided as a whole, then shown or done.

use super::files::{Content, File, Kind, Standing, difference};
use super::given::{self, Given, Role};
use super::host::{Host, Manager};
use super::ready::Service;
use super::record::{self, Record};
use super::{config_file, openrc, shells, unit};
use crate::version::VERSION;
use crate::{agent, config, doctor, families};
use anyhow::{Context, bail, ensure};
use keelson_pki::JoinToken;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

const CONFIG: &str = "/etc/keelson/config.yaml";
const SECRETS: &str = "/etc/keelson/secrets.env";
/// What a service that runs knows from its start.
const IN_FORCE: [Kind; 4] = [Kind::Program, Kind::Service, Kind::Config, Kind::Secret];

pub struct Plan {
    manager: Manager,
    role: Role,
    /// In the order in which they are written: the service last.
    files: Vec<(File, Standing)>,
    before: Record,
    /// Where the program is, or will be.
    place: PathBuf,
    data_dir: PathBuf,
    settings: Map<String, Value>,
    token: Option<String>,
    /// Those that go into the file of secrets.
    variables: BTreeSet<String>,
}

impl Plan {
    pub fn make(
        host: &Host,
        manager: Manager,
        role: Role,
        given: &Given,
        program: &Path,
        bin: &Path,
    ) -> anyhow::Result<Plan> {
        let config = given.config.clone().unwrap_or_else(|| CONFIG.into());
        let there = read(host, &config)?;
        ensure!(
            given.config.is_none() || there.is_some(),
            "--config {}: there is no such file",
            config.display()
        );
        let text =
            config_file::with(there.as_deref(), &given.settings).with_context(|| config.display().to_string())?;
        let settings = config_file::read(&text)?;
        let data_dir = record::data_dir(&settings)?;
        let before = Record::read(&host.path(&data_dir))?.unwrap_or_default();

        let mut files = Vec::new();
        // A program that has its place stays there: a package's, or one that was put there by hand.
        let placed = |dir: &&str| host.is_this_machine() && program.parent() == Some(Path::new(dir));
        let place = match ["/usr/bin", "/usr/local/bin"].iter().find(|dir| placed(dir)) {
            Some(_) => program.to_owned(),
            None => config::absolute(bin.join("keelson"))?,
        };
        if place != program {
            files.push(File {
                path: place.clone(),
                mode: 0o755,
                kind: Kind::Program,
                content: Content::CopyOf(program.to_owned()),
            });
        }
        if !place.starts_with("/usr/bin") {
            files.extend(shells::files(Path::new("/usr/local")));
        }
        if !given.secrets.is_empty() {
            let before = read(host, Path::new(SECRETS))?.unwrap_or_default();
            let secrets = given::secrets_file(&before, &given.secrets);
            files.push(File::text(SECRETS, 0o600, Kind::Secret, secrets));
        }
        files.push(File::text(&config, 0o600, Kind::Config, text));
        let secrets = Path::new(SECRETS);
        match manager {
            Manager::Systemd => {
                let text = unit::text(role, &place, &config, secrets)?;
                files.push(File::text(unit::place(role), 0o644, Kind::Service, text));
            }
            Manager::Openrc => {
                let (path, text) = openrc::rotation(role);
                files.push(File::text(path, 0o644, Kind::Help, text));
                let text = openrc::text(role, &place, &config, secrets)?;
                files.push(File::text(openrc::place(role), 0o755, Kind::Service, text));
            }
        }
        let mut judged = Vec::new();
        for file in files {
            let standing = file.standing(host, &before)?;
            judged.push((file, standing));
        }
        Ok(Plan {
            manager,
            role,
            files: judged,
            before,
            place,
            data_dir,
            settings,
            token: given.secrets.get("KEELSON_TOKEN").cloned(),
            variables: given.secrets.keys().cloned().collect(),
        })
    }

    /// Refuses what the program would refuse when it starts.
    pub fn judge(&self, host: &Host) -> anyhow::Result<()> {
        self.role
            .reads(&self.settings)
            .with_context(|| format!("these are no options of {}", self.role.phrase()))?;
        if self.role == Role::Server {
            return Ok(());
        }
        let has = |name: &str| host.path(&self.data_dir).join(name).exists();
        ensure!(
            !has("pki/ca.key"),
            "{} is the data directory of a server, whose machine is a node already",
            self.data_dir.display()
        );
        let knows_servers = self.settings.contains_key("server") || has("servers.json");
        let token = self.token.as_deref().or_else(|| self.settings.get("token")?.as_str());
        if !knows_servers || (token.is_none() && !has("pki/ca.crt") && !host.path(Path::new(SECRETS)).exists()) {
            bail!(
                "an agent has to be told a server and a token once: run `keelson token create --print-join-command` on a server, and \
                 give what it prints behind `keelson install agent --`"
            );
        }
        if let Some(token) = token {
            token
                .parse::<JoinToken>()
                .map_err(anyhow::Error::msg)
                .context("--token")?;
        }
        Ok(())
    }

    /// Whether this machine can run it; for one that doesn't yet.
    pub fn judge_machine(&self, runs: bool) -> anyhow::Result<()> {
        let settings = self.settings.clone();
        let config = match self.role {
            Role::Server => config::Options::of(settings)?.resolve()?,
            Role::Agent => agent::Options::of(settings)?.resolve(None)?,
        };
        // Who joins others, or goes on, has the ranges that there are.
        let has = |name: &str| config.data_dir.join(name).exists();
        let told = |name: &str| self.settings.contains_key(name);
        let others = told("server") || told("etcd-servers") || has("store") || has("datastore.json");
        if self.role == Role::Server && !others {
            families::apart(&config.cluster_cidrs, &config.service_cidrs, &config.node_ips)?;
        }
        let ports = match self.role {
            _ if runs => vec![],
            Role::Server => vec![config.api_port, config.kubelet_port],
            Role::Agent => vec![config.kubelet_port],
        };
        if self.role == Role::Server && !config.runs(config::Component::Agent) {
            return Ok(());
        }
        doctor::judge(&config.data_dir, &ports)
    }

    /// What wants `--force`.
    pub fn differences(&self) -> Option<String> {
        let mut shown = String::new();
        if newer(&self.before.version, VERSION) {
            let _ = writeln!(
                shown,
                "keelson {} is installed, and this is {VERSION}",
                self.before.version
            );
        }
        for (file, standing) in &self.files {
            if let (Standing::Theirs(there), Content::Text(text)) = (standing, &file.content) {
                let _ = write!(shown, "{}\n{}", file.path.display(), difference(there, text));
            }
        }
        Some(shown).filter(|s| !s.is_empty())
    }

    /// Brings the files there, and the record before them, so that what was begun can be taken back. Tells what changed.
    pub fn apply(&self, host: &Host) -> anyhow::Result<Vec<&Path>> {
        let mut record = Record {
            version: VERSION.into(),
            role: Some(self.role),
            openrc: self.manager == Manager::Openrc,
            pending: self.before.pending || self.changes(&IN_FORCE),
            ..self.before.clone()
        };
        let mut changed = Vec::new();
        for (file, standing) in &self.files {
            let path = file.path.clone();
            let ours = match (file.kind, standing) {
                (_, Standing::Absent) => true,
                // Theirs who put it there, whatever was completed in it.
                (Kind::Config | Kind::Secret | Kind::Program, _) => self.before.has(&path),
                _ => true,
            };
            match file.kind {
                Kind::Secret if !ours => record.variables.entry(path).or_default().extend(self.variables.clone()),
                _ if !ours => {}
                Kind::Program => record.program = Some(path),
                Kind::Service => drop(record.files.insert(path, file.content.text())),
                _ => drop(record.files.insert(path, None)),
            }
            if *standing != Standing::Same {
                changed.push(file.path.as_path());
            }
        }
        if record.openrc {
            record.files.insert(openrc::log(self.role), None);
        }
        let data_dir = host.path(&self.data_dir);
        if record != self.before {
            record.write(&data_dir)?;
        }
        for (file, _) in self.files.iter().filter(|(_, standing)| *standing != Standing::Same) {
            let made = file.write(host)?;
            if !made.is_empty() {
                let below = made.iter().filter_map(|d| d.strip_prefix(host.root()).ok());
                record.directories.extend(below.map(|d| Path::new("/").join(d)));
                record.write(&data_dir)?;
            }
        }
        Ok(changed)
    }

    /// The service runs as the files have it, or will when it is started.
    pub fn settled(&self, host: &Host) -> anyhow::Result<()> {
        let data_dir = host.path(&self.data_dir);
        match Record::read(&data_dir)? {
            Some(record) if record.pending => Record {
                pending: false,
                ..record
            }
            .write(&data_dir),
            _ => Ok(()),
        }
    }

    fn changes(&self, kinds: &[Kind]) -> bool {
        let mut files = self.files.iter();
        files.any(|(file, standing)| kinds.contains(&file.kind) && *standing != Standing::Same)
    }

    /// What the service's manager is asked for, so that it runs, and as the files have it.
    pub fn verb(&self, no_start: bool, service: &Service, host: &Host) -> Option<&'static str> {
        if no_start || !host.is_live() {
            return None;
        }
        match service.runs() {
            false => Some("start"),
            true if self.before.pending || self.changes(&IN_FORCE) || service.is_another(&self.place) => {
                Some("restart")
            }
            true => None,
        }
    }

    pub fn commands(&self, verb: Option<&str>, host: &Host) -> Vec<Vec<String>> {
        let (service, unit, root) = (
            self.role.service(),
            unit::name(self.role),
            host.root().to_string_lossy(),
        );
        let mut all: Vec<Vec<&str>> = Vec::new();
        let in_root = format!("--root={root}");
        match self.manager {
            Manager::Systemd if !host.is_live() => all.push(vec!["systemctl", &in_root, "enable", &unit]),
            Manager::Systemd => {
                if self.changes(&[Kind::Service]) {
                    all.push(vec!["systemctl", "daemon-reload"]);
                }
                all.push(vec!["systemctl", "enable", &unit]);
                // How it goes is looked at, and told.
                all.extend(verb.map(|verb| vec!["systemctl", verb, "--no-block", &unit]));
            }
            Manager::Openrc if !host.is_live() => {
                all.push(vec!["chroot", &root, "rc-update", "add", service, "default"])
            }
            Manager::Openrc => {
                all.push(vec!["rc-update", "add", service, "default"]);
                all.extend(verb.map(|verb| vec!["rc-service", service, verb]));
            }
        }
        all.into_iter()
            .map(|words| words.into_iter().map(String::from).collect())
            .collect()
    }

    /// Every file and command, for a dry run.
    pub fn shown(&self, verb: Option<&str>, host: &Host) -> String {
        let mut shown = String::new();
        for (file, standing) in &self.files {
            let verb = match standing {
                Standing::Absent => "write",
                Standing::Same => "keep",
                Standing::Older => "replace",
                Standing::Theirs(_) => "replace, if --force is given,",
            };
            let from = match &file.content {
                Content::CopyOf(from) => format!(", a copy of {}", from.display()),
                Content::Text(_) => String::new(),
            };
            let path = host.path(&file.path);
            let _ = writeln!(shown, "{verb} {} (mode {:o}{from})", path.display(), file.mode);
            if let (Kind::Service | Kind::Config, Content::Text(text)) = (file.kind, &file.content) {
                let before = match standing {
                    Standing::Theirs(there) => there.clone(),
                    Standing::Same => text.clone(),
                    Standing::Older => read(host, &file.path).ok().flatten().unwrap_or_default(),
                    Standing::Absent => String::new(),
                };
                let lines = difference(&before, text);
                shown.extend(lines.lines().map(|line| format!("    {line}\n")));
            }
        }
        for words in self.commands(verb, host) {
            let _ = writeln!(shown, "run {}", words.join(" "));
        }
        shown
    }

    pub fn kubeconfig(&self) -> PathBuf {
        let said = self.settings.get("kubeconfig").and_then(Value::as_str);
        said.map_or_else(|| self.data_dir.join("admin.kubeconfig"), PathBuf::from)
    }

    /// What was done, in a sentence.
    pub fn told(&self, changed: &[&Path], started: bool) -> String {
        let service = self.role.service();
        let state = match started {
            true => "it runs",
            false => "it starts with the machine",
        };
        match (changed.len(), self.before.version.as_str()) {
            (0, _) => format!(
                "nothing to change: {service} is installed as {}, version {VERSION}; {state}",
                self.role.phrase()
            ),
            (_, "") => format!("installed {service} {VERSION} as {}; {state}", self.role.phrase()),
            (n, before) => format!("{service} {before} is {VERSION} now, with {n} files changed; {state}"),
        }
    }
}

fn read(host: &Host, path: &Path) -> anyhow::Result<Option<String>> {
    keelson_pki::files::read(&host.path(path))
}

/// Whether the first of two versions is newer.
pub fn newer(one: &str, other: &str) -> bool {
    let parts = |text: &str| {
        text.split(['.', '-'])
            .map(|p| p.parse().unwrap_or(0))
            .collect::<Vec<u32>>()
    };
    parts(one) > parts(other)
}
