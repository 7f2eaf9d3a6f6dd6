//! Where services' logs come from: journalctl for those that the journal knows, files for the others.

use super::query::{Asked, Options};
use crate::host::Host;
use bytes::Bytes;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::sync::mpsc;

/// Upstream's time for one query.
pub(super) const LONGEST: Duration = Duration::from_secs(30);
/// Bytes read at once.
pub(super) const PIECE: usize = 64 << 10;
/// Bytes of one answer.
const MOST: usize = 256 << 20;
/// Bytes of all units' names.
const NAMES: u64 = 8 << 20;

pub(super) struct Logs {
    /// journalctl, where there is one.
    pub program: Option<PathBuf>,
    /// Where files are.
    pub base: PathBuf,
    pub host: Arc<dyn Host>,
}

/// What goes to the client, up to the bound.
#[derive(Clone)]
pub(super) struct Out {
    sender: mpsc::Sender<Bytes>,
    left: usize,
}

/// Nobody wants more: the client has gone, or has as much as it gets.
#[derive(Debug)]
pub(super) struct Enough;

impl Out {
    pub fn new(sender: mpsc::Sender<Bytes>) -> Out {
        Out { sender, left: MOST }
    }

    async fn send(&mut self, mut piece: Bytes) -> Result<(), Enough> {
        let cut = piece.len() > self.left;
        piece.truncate(self.left);
        self.left -= piece.len();
        self.sender.send(piece).await.map_err(|_| Enough)?;
        if cut {
            self.say(&format!(
                "\nthe rest is left out: an answer has {} MiB at most\n",
                MOST >> 20
            ))
            .await;
            return Err(Enough);
        }
        Ok(())
    }

    /// Something about the logs.
    pub async fn say(&mut self, what: &str) {
        // Whether the client is still there, the next piece shows.
        let _ = self.sender.send(Bytes::copy_from_slice(what.as_bytes())).await;
    }

    async fn copy(&mut self, mut from: impl AsyncRead + Unpin) -> Result<io::Result<()>, Enough> {
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            match from.read_buf(&mut piece).await {
                Ok(0) => return Ok(Ok(())),
                Ok(_) => self.send(piece.into()).await?,
                Err(e) => return Ok(Err(e)),
            }
        }
    }
}

impl Logs {
    pub async fn copy(&self, asked: &Asked, out: &mut Out) -> Result<(), Enough> {
        let units = self.units().await;
        let is_known = |service: &&String| {
            let unit = format!("{service}.service");
            units.lines().any(|known| known == unit || known == **service)
        };
        let (native, files): (Vec<&String>, Vec<&String>) = asked.services.iter().partition(is_known);
        if let Some(program) = self.program.as_ref().filter(|_| !native.is_empty()) {
            let services: Vec<String> = native.into_iter().cloned().collect();
            let arguments = asked.options.arguments(&services);
            if let Err(e) = journal(program, &arguments, out).await? {
                tracing::warn!("{} can't be run: {e}", program.display());
                out.say("\nerror: journal output not available\n").await;
            }
        }
        if !files.is_empty() && asked.options != Options::default() {
            let names: Vec<&str> = files.iter().map(|f| f.as_str()).collect();
            let names = names.join(" ");
            out.say(&format!(
                "\noptions present and query resolved to log files for [{names}]\ntry without specifying options\n"
            ))
            .await;
            return Ok(());
        }
        for service in files {
            self.file(service, out).await?;
        }
        Ok(())
    }

    /// The units that have logged something, one a line; none where the journal can't be asked.
    async fn units(&self) -> String {
        let Some(program) = &self.program else {
            return String::new();
        };
        let mut command = Command::new(program);
        command.args(["--field", "_SYSTEMD_UNIT"]).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(e) => {
                tracing::warn!("{} can't be run: {e}", program.display());
                return String::new();
            }
        };
        let mut names = Vec::new();
        if let Some(output) = child.stdout.take() {
            // Half of them are as good as none.
            let read = output.take(NAMES).read_to_end(&mut names).await;
            names.truncate(read.unwrap_or(0));
        }
        match child.wait().await {
            Ok(status) if status.success() => String::from_utf8_lossy(&names).into_owned(),
            _ => String::new(),
        }
    }

    /// The first file that is called as a service is.
    async fn file(&self, service: &str, out: &mut Out) -> Result<(), Enough> {
        for name in [
            service.to_owned(),
            format!("{service}.log"),
            format!("{service}/{service}.log"),
        ] {
            let (host, base) = (self.host.clone(), self.base.clone());
            let opened = tokio::task::spawn_blocking(move || {
                let file = host.open_inside(&base, &name)?;
                match file.metadata()?.is_file() {
                    true => Ok(file),
                    false => Err(io::ErrorKind::NotFound.into()),
                }
            });
            let done = match opened.await.map_err(io::Error::other).flatten() {
                Ok(file) => out.copy(tokio::fs::File::from_std(file)).await?,
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
                Err(e) => Err(e),
            };
            if let Err(e) = done {
                out.say(&format!("\nerror getting log for {service}: {e}\n")).await;
            }
            return Ok(());
        }
        out.say(&format!("\nlog not found for {service}\n")).await;
        Ok(())
    }
}

/// What the journal says, and what its program says about it.
async fn journal(program: &Path, arguments: &[String], out: &mut Out) -> Result<io::Result<()>, Enough> {
    let run = || {
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        command.stdout(writer.try_clone()?).stderr(writer);
        let child = command.spawn()?;
        Ok((child, pipe::Receiver::from_owned_fd(reader.into())?))
    };
    let (mut child, output) = match run() {
        Ok(run) => run,
        Err(e) => return Ok(Err(e)),
    };
    let read = out.copy(output).await?;
    // It has closed its output, so it ends; how it ended, its output tells.
    Ok(read.and(child.wait().await.map(|_| ())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::real::RealHost;
    use std::os::unix::fs::{PermissionsExt, symlink};

    struct Machine {
        dir: PathBuf,
        logs: Logs,
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.dir).unwrap();
        }
    }

    /// A machine whose journal knows two units and repeats what it is asked for.
    fn machine(name: &str, with_journal: bool) -> Machine {
        let dir = std::env::temp_dir().join(format!("keelson-journal-{name}-{}", std::process::id()));
        let base = dir.join("log");
        std::fs::create_dir_all(base.join("d")).unwrap();
        std::fs::write(base.join("plain"), "plain\n").unwrap();
        std::fs::write(base.join("named.log"), "named\n").unwrap();
        std::fs::write(base.join("d/d.log"), "in a directory\n").unwrap();
        std::fs::write(dir.join("secret"), "secret\n").unwrap();
        symlink("../secret", base.join("up")).unwrap();
        symlink(dir.join("secret"), base.join("out.log")).unwrap();
        let program = dir.join("journalctl");
        let script = "#!/bin/sh\nif [ \"$1\" = --field ]; then echo kubelet.service; echo d@1.service; exit; fi\n\
                      echo asked: \"$@\"; echo and said >&2; exit 1\n";
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let logs = Logs {
            program: with_journal.then_some(program),
            base,
            host: Arc::new(RealHost::new()),
        };
        Machine { dir, logs }
    }

    async fn answer(machine: &Machine, query: &str) -> String {
        let uri = format!("/logs/?{query}").parse().unwrap();
        let asked = Asked::read(&crate::server::routes::query(&uri)).unwrap().unwrap();
        let (sender, mut receiver) = mpsc::channel(64);
        let mut out = Out::new(sender);
        let _ = machine.logs.copy(&asked, &mut out).await;
        drop(out);
        let mut all = Vec::new();
        while let Some(piece) = receiver.recv().await {
            all.extend_from_slice(&piece);
        }
        String::from_utf8(all).unwrap()
    }

    #[tokio::test]
    async fn a_service_is_found_where_it_logs() {
        let m = machine("where", true);
        let native = "asked: --utc --no-pager --output=short-precise --lines=5 --unit=kubelet\nand said\n";
        let got = answer(&m, "query=kubelet&tailLines=5").await;
        assert_eq!(got.replace("--pager-end ", ""), native);
        for (query, want) in [
            ("query=plain", "plain\n"),
            ("query=named", "named\n"),
            ("query=d", "in a directory\n"),
            (
                "query=d@1",
                "asked: --utc --no-pager --output=short-precise --unit=d@1\nand said\n",
            ),
            ("query=none&query=plain", "\nlog not found for none\nplain\n"),
            // Names that end alike are others.
            ("query=let", "\nlog not found for let\n"),
            (
                "query=plain&query=none&boot=0",
                "\noptions present and query resolved to log files for [plain none]\ntry without specifying options\n",
            ),
        ] {
            assert_eq!(answer(&m, query).await, want, "{query}");
        }
    }

    #[tokio::test]
    async fn nothing_outside_the_directory_is_read() {
        let m = machine("outside", false);
        for query in ["query=up", "query=out", "query=..", "query=out.log"] {
            let got = answer(&m, query).await;
            assert!(got.starts_with("\nlog not found for "), "{query}: {got}");
        }
        assert!(Path::new(&m.dir.join("secret")).exists());
        assert_eq!(
            answer(&m, "query=kubelet").await,
            "\nlog not found for kubelet\n",
            "without a journal"
        );
    }

    #[tokio::test]
    async fn an_answer_is_bounded_and_says_so() {
        let m = machine("bounded", false);
        let (sender, mut receiver) = mpsc::channel(8);
        let mut out = Out { sender, left: 3 };
        assert!(m.logs.file("plain", &mut out).await.is_err());
        assert_eq!(receiver.recv().await.unwrap(), "pla");
        let said = receiver.recv().await.unwrap();
        assert_eq!(said, "\nthe rest is left out: an answer has 256 MiB at most\n");
    }
}
