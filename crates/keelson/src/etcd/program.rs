//! The program itself: found, started with a command line that follows from the place, watched over, stopped.
//!
//! It writes into files only and so outlives a server that is killed: a majority needs its vote. The next server process finds it
//! by its process number and its command line, and goes on with it.

use super::{CLIENT_PORT, Place};
use anyhow::{Context, bail, ensure};
use keelson_sys::process::{pidfd_open, pidfd_send_signal};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Between two starts; doubles up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long it may take to end when it is asked to: it hands its leadership over first.
const END_WITHIN: Duration = Duration::from_secs(10);
/// As the store wants it; older ones are refused there too, but later.
const OLDEST: [u64; 3] = [3, 5, 13];

/// The program that `--etcd-program` names, or the one on PATH.
pub fn find(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(named) = named {
        ensure!(
            named.is_file(),
            "--etcd-program {}: there is no such file",
            named.display()
        );
        return Ok(named.to_path_buf());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join("etcd"))
        .find(|file| file.is_file());
    found.context(
        "no etcd program is on PATH, and several servers keep their objects in one: install etcd 3.6 or newer (package etcd-server, or \
         https://github.com/etcd-io/etcd/releases), or say with --etcd-program where it is",
    )
}

/// Whether it is one, and new enough; says what it is.
pub async fn version(program: &Path) -> anyhow::Result<String> {
    let asked = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let answer = tokio::time::timeout(Duration::from_secs(10), asked).await;
    let answer = answer.context("no answer").and_then(|answer| Ok(answer?));
    let answer = answer.with_context(|| format!("running {} --version", program.display()))?;
    let text = String::from_utf8_lossy(&answer.stdout);
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("etcd Version: "))
        .map(str::trim);
    let version = version.with_context(|| format!("{} is no etcd: it doesn't tell its version", program.display()))?;
    let numbers: Vec<u64> = version.split(['.', '-']).filter_map(|part| part.parse().ok()).collect();
    ensure!(
        numbers.as_slice() >= OLDEST.as_slice(),
        "{} is etcd {version}; {}.{}.{} is the oldest that can be used",
        program.display(),
        OLDEST[0],
        OLDEST[1],
        OLDEST[2]
    );
    Ok(version.to_string())
}

/// With whom a member that has no data yet begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Alone, a new cluster.
    New,
    /// With those that are there: names and addresses for peers, its own included.
    Join(Vec<(String, String)>),
    /// It has data, which says.
    Again,
}

pub fn arguments(place: &Place, begin: &Begin) -> Vec<OsString> {
    let pki = place.pki();
    let file = |name: &str| pki.join(name).into_os_string();
    let mut all: Vec<OsString> = Vec::new();
    let mut option = |name: &str, value: OsString| {
        let mut text = OsString::from(format!("--{name}="));
        text.push(value);
        all.push(text);
    };
    option("name", place.name.clone().into());
    option("data-dir", place.directory().into_os_string());
    let loopback = format!("https://127.0.0.1:{CLIENT_PORT}");
    option(
        "listen-client-urls",
        format!("{},{loopback}", place.client_url()).into(),
    );
    option("advertise-client-urls", place.client_url().into());
    option("listen-peer-urls", place.peer_url().into());
    option("initial-advertise-peer-urls", place.peer_url().into());
    option("client-cert-auth", "true".into());
    option("peer-client-cert-auth", "true".into());
    option("trusted-ca-file", file("ca.crt"));
    option("cert-file", file("server.crt"));
    option("key-file", file("server.key"));
    option("peer-trusted-ca-file", file("ca.crt"));
    option("peer-cert-file", file("peer.crt"));
    option("peer-key-file", file("peer.key"));
    option("tls-min-version", "TLS1.2".into());
    option("logger", "zap".into());
    option("log-outputs", place.data_dir.join("etcd.log").into_os_string());
    option("enable-log-rotation", "true".into());
    let rotation = r#"{"maxsize":32,"maxage":0,"maxbackups":2,"localtime":false,"compress":true}"#;
    option("log-rotation-config-json", rotation.into());
    let with = |members: &[(String, String)]| {
        let each: Vec<String> = members.iter().map(|(name, url)| format!("{name}={url}")).collect();
        each.join(",")
    };
    match begin {
        Begin::New => {
            option(
                "initial-cluster",
                with(&[(place.name.clone(), place.peer_url())]).into(),
            );
            option("initial-cluster-state", "new".into());
        }
        Begin::Join(members) => {
            option("initial-cluster", with(members).into());
            option("initial-cluster-state", "existing".into());
        }
        // Who has lost its data in between is refused by the others. By default it would be the first of a new cluster.
        Begin::Again => option("initial-cluster-state", "existing".into()),
    }
    all
}

/// The program, running.
enum Running {
    Ours(Child),
    /// Of an earlier server process.
    Found(Found),
}

struct Found {
    pid: i32,
    fd: AsyncFd<OwnedFd>,
}

impl Running {
    async fn ended(&mut self) -> String {
        match self {
            Running::Ours(child) => match child.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            },
            Running::Found(found) => match found.fd.readable().await {
                Ok(_) => "it ended".into(),
                Err(error) => error.to_string(),
            },
        }
    }

    /// To this process and no other: ours keeps its number until it is waited for, the other one is held by its descriptor.
    fn signal(&self, signal: Signal) {
        let sent = match self {
            Running::Ours(child) => match child.id().and_then(|id| i32::try_from(id).ok()) {
                Some(pid) => kill(Pid::from_raw(pid), signal).map_err(std::io::Error::from),
                None => Ok(()),
            },
            Running::Found(found) => pidfd_send_signal(found.fd.get_ref().as_fd(), signal as i32),
        };
        // It may just have ended.
        if let Err(error) = sent {
            tracing::debug!(%error, "etcd got no {signal}");
        }
    }

    async fn stop(mut self) {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            self.signal(signal);
            if tokio::time::timeout(END_WITHIN, self.ended()).await.is_ok() {
                return;
            }
        }
    }
}

/// Runs the program until `stop`; restarts it, by what its data says, whenever it ends.
pub async fn run(place: Place, program: PathBuf, begin: Begin, stop: CancellationToken) -> anyhow::Result<()> {
    let mut pause = FIRST_PAUSE;
    let mut begin = begin;
    loop {
        let began = Instant::now();
        let mut running = start(&place, &program, &begin)?;
        let ended = tokio::select! {
            () = stop.cancelled() => {
                running.stop().await;
                let _ = std::fs::remove_file(pid_file(&place.data_dir));
                return Ok(());
            }
            ended = running.ended() => ended,
        };
        tracing::error!(ended, said = last_words(&place), "etcd ended; starting it again");
        if place.has_data().context("etcd's directory")? {
            begin = Begin::Again;
        }
        if began.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn pid_file(data_dir: &Path) -> PathBuf {
    data_dir.join("etcd.pid")
}

/// Whom the program that runs was started to trust: it reads that once.
fn trusts_file(data_dir: &Path) -> PathBuf {
    data_dir.join("etcd.trusts")
}

/// Whom it is to trust: hashes, in their order.
fn to_trust(place: &Place) -> anyhow::Result<String> {
    let ca = keelson_pki::files::read(&place.pki().join("ca.crt"))?.unwrap_or_default();
    let mut all = keelson_pki::authority::fingerprints(&ca);
    all.sort();
    Ok(all.join("\n"))
}

/// Whether it trusts whom it is to trust. Of one that was started by a program of before, which noted nothing, that isn't known.
pub fn trusts(place: &Place) -> anyhow::Result<bool> {
    let noted = keelson_pki::files::read(&trusts_file(&place.data_dir))?;
    let wanted = to_trust(place)?;
    // Before there was a second authority, nobody had to note it.
    Ok(noted.map_or(!wanted.contains('\n'), |noted| noted == wanted))
}

fn errors_file(place: &Place) -> PathBuf {
    place.data_dir.join("etcd.err")
}

fn start(place: &Place, program: &Path, begin: &Begin) -> anyhow::Result<Running> {
    if let Some(found) = found(&place.data_dir)? {
        tracing::info!(pid = found.pid, "etcd runs on from before");
        return Ok(Running::Found(found));
    }
    let directory = place.directory();
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    // etcd wants it for itself.
    std::fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let errors = std::fs::File::create(errors_file(place))?;
    keelson_pki::files::write_public(&trusts_file(&place.data_dir), to_trust(place)?.as_bytes())?;
    let child = Command::new(program)
        .args(arguments(place, begin))
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| matches!(name.to_str(), Some("PATH" | "HOME" | "LANG"))))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        // Signals of a terminal are the server's.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let pid = child.id().context("etcd ended at once")?;
    keelson_pki::files::write_public(&pid_file(&place.data_dir), pid.to_string().as_bytes())?;
    tracing::info!(pid, program = %program.display(), "etcd started");
    Ok(Running::Ours(child))
}

/// One that an earlier server process has left running.
// `AsyncFd::new` is deprecated for types whose descriptor may change; an owned one's does not, and the replacement is `unsafe`.
#[expect(deprecated)]
fn found(data_dir: &Path) -> anyhow::Result<Option<Found>> {
    let Some(text) = keelson_pki::files::read(&pid_file(data_dir))? else {
        return Ok(None);
    };
    let Ok(pid) = text.trim().parse::<i32>() else {
        return Ok(None);
    };
    // First the descriptor, then the look: what it shows can't become another process meanwhile.
    let Ok(fd) = pidfd_open(pid) else { return Ok(None) };
    if !is_ours(data_dir, pid) {
        return Ok(None);
    }
    Ok(Some(Found {
        pid,
        fd: AsyncFd::new(fd)?,
    }))
}

fn is_ours(data_dir: &Path, pid: i32) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let wanted = format!("--data-dir={}", data_dir.join("etcd").display());
    line.split(|b| *b == 0).any(|argument| argument == wanted.as_bytes())
}

/// Ends the one of a data directory whose server doesn't run.
pub async fn end(data_dir: &Path) -> anyhow::Result<()> {
    if let Some(found) = found(data_dir)? {
        let mut running = Running::Found(found);
        running.signal(Signal::SIGTERM);
        if tokio::time::timeout(END_WITHIN, running.ended()).await.is_err() {
            bail!("etcd has not ended within {END_WITHIN:?}");
        }
    }
    Ok(())
}

/// Why it ended, if it said so before its log was open.
fn last_words(place: &Place) -> String {
    let text = std::fs::read(errors_file(place)).unwrap_or_default();
    let from = text.len().saturating_sub(500);
    String::from_utf8_lossy(&text[from..]).trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn place(name: &str) -> Place {
        let data_dir = std::env::temp_dir().join(format!("keelson-etcd-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&data_dir);
        std::fs::create_dir_all(&data_dir).unwrap();
        Place {
            data_dir,
            name: "n1".into(),
            ip: [10, 0, 0, 1].into(),
            program: None,
        }
    }

    fn script(place: &Place, text: &str) -> PathBuf {
        let program = place.data_dir.join("program");
        std::fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        program
    }

    #[test]
    fn a_member_listens_where_others_look_for_it_and_knows_only_those_of_its_authority() {
        let place = place("arguments");
        let text = |begin: Begin| {
            let all = arguments(&place, &begin);
            let all: Vec<String> = all.into_iter().map(|a| a.into_string().unwrap()).collect();
            all
        };
        let new = text(Begin::New);
        for wanted in [
            "--initial-cluster=n1=https://10.0.0.1:2380",
            "--initial-cluster-state=new",
            "--advertise-client-urls=https://10.0.0.1:2379",
            "--client-cert-auth=true",
            "--peer-client-cert-auth=true",
        ] {
            assert!(new.iter().any(|a| a == wanted), "{wanted}: {new:?}");
        }
        assert!(!new.iter().any(|a| a.contains("http://")), "nothing is plain: {new:?}");
        let others = vec![
            ("n0".into(), "https://10.0.0.9:2380".into()),
            ("n1".into(), place.peer_url()),
        ];
        let join = text(Begin::Join(others));
        assert!(join.contains(&"--initial-cluster=n0=https://10.0.0.9:2380,n1=https://10.0.0.1:2380".to_string()));
        assert!(join.contains(&"--initial-cluster-state=existing".to_string()));
        let again = text(Begin::Again);
        assert!(
            again.contains(&"--initial-cluster-state=existing".to_string()),
            "{again:?}"
        );
        assert!(!again.iter().any(|a| a.starts_with("--initial-cluster=")));
    }

    #[test]
    fn a_member_has_data_once_its_log_is_there() {
        let place = place("data");
        assert!(!place.has_data().unwrap());
        // What an etcd leaves that ended before it had asked the others.
        std::fs::create_dir_all(place.directory().join("member/snap")).unwrap();
        std::fs::create_dir_all(place.directory().join("member/wal")).unwrap();
        std::fs::write(place.directory().join("member/wal/0.tmp"), "").unwrap();
        assert!(!place.has_data().unwrap());
        std::fs::write(place.directory().join("member/wal/0-0.wal"), "").unwrap();
        assert!(place.has_data().unwrap());
        std::fs::remove_dir_all(place.directory().join("member/wal")).unwrap();
        std::fs::write(place.directory().join("member/wal"), "").unwrap();
        assert!(place.has_data().is_err(), "what can't be read is not taken for absent");
        std::fs::remove_dir_all(&place.data_dir).unwrap();
    }

    #[tokio::test]
    async fn what_is_missing_or_no_etcd_is_said() {
        let place = place("version");
        let missing = find(Some(Path::new("/nowhere/etcd"))).unwrap_err().to_string();
        assert!(missing.contains("--etcd-program /nowhere/etcd"), "{missing}");
        for (says, why) in [
            ("echo etcd Version: 3.4.9", "3.5.13 is the oldest"),
            ("echo hello", "is no etcd"),
            ("exit 1", "is no etcd"),
        ] {
            let refused = version(&script(&place, says)).await.unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
        assert_eq!(
            version(&script(&place, "echo etcd Version: 3.7.3")).await.unwrap(),
            "3.7.3"
        );
        std::fs::remove_dir_all(&place.data_dir).unwrap();
    }

    #[tokio::test]
    async fn it_is_started_again_found_again_and_stopped() {
        let place = place("supervised");
        let count = place.data_dir.join("count");
        // The first one fails; the second stays.
        let text = format!(
            "echo started >>{0}; [ $(wc -l <{0}) = 1 ] && {{ echo why >&2; exit 3; }}; while :; do sleep 0.05; done",
            count.display()
        );
        let program = script(&place, &text);
        let starts = || std::fs::read_to_string(&count).unwrap_or_default().lines().count();
        let until = async |wanted: &dyn Fn() -> bool| {
            for _ in 0..200 {
                if wanted() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            panic!("not within ten seconds");
        };
        let first = tokio::spawn(run(
            place.clone(),
            program.clone(),
            Begin::New,
            CancellationToken::new(),
        ));
        until(&|| starts() == 2).await;
        // The server is killed, the program isn't; the next server goes on with it.
        first.abort();
        let _ = first.await;
        let pid: i32 = std::fs::read_to_string(pid_file(&place.data_dir))
            .unwrap()
            .parse()
            .unwrap();
        assert!(is_ours(&place.data_dir, pid));
        let stop = CancellationToken::new();
        let second = tokio::spawn(run(place.clone(), program.clone(), Begin::Again, stop.clone()));
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(starts(), 2);
        stop.cancel();
        second.await.unwrap().unwrap();
        until(&|| !is_ours(&place.data_dir, pid)).await;
        assert!(!pid_file(&place.data_dir).exists());
        std::fs::remove_dir_all(&place.data_dir).unwrap();
    }
}
