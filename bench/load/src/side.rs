//! An API server with its store, started for a measurement, on loopback: ours, or upstream's kube-apiserver over etcd.
//!
//! Both begin with nothing, write to the same disk, wait until it has what they write, and know the same users.

use crate::cpu;
use crate::greedy::{GREEDY, POLITE, Users};
use crate::target::{Head, Target};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use keelson_pki::{Authority, CertSpec, Kubeconfig, San, ServiceAccountKeys, files};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How long it may take until it is ready, on a machine that does other things too.
const START: Duration = Duration::from_secs(180);
/// What a whole server has beside the API and its store.
const LEFT_OUT: &str =
    "addons,agent,controllers,dns,ingress,load-balancer,local-storage,metrics,policy,proxy,scheduler,snapshots";

/// `NAME=keelson:PROGRAM` or `NAME=upstream:DIRECTORY`.
#[derive(Clone, Debug)]
pub struct Side {
    pub name: String,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Keelson(PathBuf),
    /// Where etcd and kube-apiserver are.
    Upstream(PathBuf),
}

impl FromStr for Side {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Side> {
        let parts = text
            .split_once('=')
            .and_then(|(name, what)| Some((name, what.split_once(':')?)));
        let (name, what) = match parts {
            Some((name, ("keelson", program))) => (name, What::Keelson(program.into())),
            Some((name, ("upstream", dir))) => (name, What::Upstream(dir.into())),
            _ => bail!("{text}: NAME=keelson:PROGRAM or NAME=upstream:DIRECTORY"),
        };
        Ok(Side {
            name: name.into(),
            what,
        })
    }
}

impl Side {
    /// The program whose figures are measured.
    pub fn program(&self) -> PathBuf {
        match &self.what {
            What::Keelson(program) => program.clone(),
            What::Upstream(dir) => dir.join("kube-apiserver"),
        }
    }
}

/// A side that runs, until it is dropped.
pub struct Running {
    processes: Vec<Child>,
    dir: PathBuf,
    pub admin: PathBuf,
    pub users: Users,
}

impl Running {
    /// `dir` is made, and removed at the end.
    pub async fn start(side: &Side, dir: &Path, cores: &[usize]) -> Result<Running> {
        fs::create_dir_all(dir)?;
        let dir = dir.canonicalize()?;
        let mut running = Running {
            processes: Vec::new(),
            admin: dir.join("admin.kubeconfig"),
            users: Users {
                polite: dir.join("polite.kubeconfig"),
                greedy: dir.join("greedy.kubeconfig"),
                program: std::env::current_exe()?,
            },
            dir,
        };
        let tokens = [POLITE, GREEDY]
            .map(|name| format!("{name}-token,{name},{name}-uid\n"))
            .concat();
        files::write_secret(&running.dir.join("tokens.csv"), tokens.as_bytes())?;
        let port = free_port()?;
        match &side.what {
            What::Keelson(program) => running.keelson(program, port, cores)?,
            What::Upstream(bin) => running.upstream(bin, port, cores)?,
        }
        running.ready().await?;
        let admin = Kubeconfig::read(&running.admin)?;
        for (name, path) in [(POLITE, &running.users.polite), (GREEDY, &running.users.greedy)] {
            Kubeconfig::with_token(&admin.server, &admin.ca_pem, name, &format!("{name}-token")).write(path)?;
        }
        Ok(running)
    }

    pub fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Child::id).collect()
    }

    /// While another side is measured this one does nothing.
    pub fn rest(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    pub async fn go_on(&mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)?;
        self.ready().await
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        for pid in self.pids() {
            kill(Pid::from_raw(pid as i32), signal)?;
        }
        Ok(())
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn keelson(&mut self, program: &Path, port: u16, cores: &[usize]) -> Result<()> {
        let options = [
            ("data-dir", self.path("data")),
            ("disable", LEFT_OUT.into()),
            ("bind-address", "127.0.0.1".into()),
            ("node-ip", "127.0.0.1".into()),
            ("api-port", port.to_string()),
            ("token-auth-file", self.path("tokens.csv")),
            // Which upstream's don't have unless they are told.
            ("audit-log-path", "none".into()),
            ("history-age", "0".into()),
        ];
        self.admin = self.dir.join("data/admin.kubeconfig");
        self.run(program, Some("server"), &options, cores)
    }

    fn upstream(&mut self, bin: &Path, port: u16, cores: &[usize]) -> Result<()> {
        let [client, peers] = [free_port()?, free_port()?].map(|port| format!("http://127.0.0.1:{port}"));
        let options = [
            ("data-dir", self.path("etcd")),
            ("listen-client-urls", client.clone()),
            ("advertise-client-urls", client.clone()),
            ("listen-peer-urls", peers.clone()),
            ("initial-advertise-peer-urls", peers.clone()),
            ("initial-cluster", format!("default={peers}")),
            ("log-level", "warn".into()),
        ];
        self.run(&bin.join("etcd"), None, &options, cores)?;
        let ca = Authority::generate("kubernetes")?;
        let serving = ca.issue(&CertSpec::server("kube-apiserver", vec![San::parse("127.0.0.1")]))?;
        let admin = ca.issue(&CertSpec::client("admin", Some("system:masters")))?;
        let server = format!("https://127.0.0.1:{port}");
        Kubeconfig::with_certificate(&server, ca.cert_pem(), "admin", &admin.cert_pem, &admin.key_pem)
            .write(&self.admin)?;
        files::write_public(&self.dir.join("ca.crt"), ca.cert_pem().as_bytes())?;
        files::write_public(&self.dir.join("serving.crt"), serving.cert_pem.as_bytes())?;
        files::write_secret(&self.dir.join("serving.key"), serving.key_pem.as_bytes())?;
        ServiceAccountKeys::open(&self.dir)?;
        let options = [
            ("etcd-servers", client),
            ("bind-address", "127.0.0.1".into()),
            ("secure-port", port.to_string()),
            ("service-cluster-ip-range", "10.96.0.0/16".into()),
            ("endpoint-reconciler-type", "none".into()),
            ("authorization-mode", "Node,RBAC".into()),
            ("allow-privileged", "true".into()),
            ("enable-admission-plugins", "NodeRestriction".into()),
            ("client-ca-file", self.path("ca.crt")),
            ("tls-cert-file", self.path("serving.crt")),
            ("tls-private-key-file", self.path("serving.key")),
            ("token-auth-file", self.path("tokens.csv")),
            (
                "service-account-issuer",
                "https://kubernetes.default.svc.cluster.local".into(),
            ),
            ("service-account-key-file", self.path("sa.pub")),
            ("service-account-signing-key-file", self.path("sa.key")),
        ];
        self.run(&bin.join("kube-apiserver"), None, &options, cores)
    }

    /// Starts a program on these cores, which this thread stays on until its caller says otherwise.
    fn run(
        &mut self,
        program: &Path,
        command: Option<&str>,
        options: &[(&str, String)],
        cores: &[usize],
    ) -> Result<()> {
        cpu::stay_on(cores)?;
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let log = fs::File::create(self.dir.join(format!("{name}.log")))?;
        let child = Command::new(program)
            .args(command)
            .args(options.iter().map(|(k, v)| format!("--{k}={v}")))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        self.processes.push(child);
        Ok(())
    }

    async fn ready(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            for child in &mut self.processes {
                if let Some(status) = child.try_wait()? {
                    bail!("a program ended with {status}: {}", self.logs());
                }
            }
            match tokio::time::timeout(Duration::from_secs(10), is_ready(&self.admin)).await {
                Ok(Ok(())) => return Ok(()),
                _ if begun.elapsed() < START => tokio::time::sleep(Duration::from_millis(100)).await,
                why => bail!("not ready within {START:?}: {why:?}; {}", self.logs()),
            }
        }
    }

    /// The last lines of each log.
    fn logs(&self) -> String {
        let logs = fs::read_dir(&self.dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        let tails = logs
            .filter(|path| path.extension().is_some_and(|e| e == "log"))
            .map(|path| {
                let text = fs::read_to_string(&path).unwrap_or_default();
                let lines: Vec<&str> = text.lines().rev().take(5).collect();
                format!(
                    "{}: {}",
                    path.display(),
                    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
                )
            });
        tails.collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in self.processes.iter_mut().rev() {
            // Its data is thrown away; there is nothing to be ended in order.
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

async fn is_ready(admin: &Path) -> Result<()> {
    let mut connection = Target::read(admin, false)?.connect().await?;
    let answer = connection.ask(&Head::get("*/*"), "/readyz", Bytes::new()).await?;
    ensure!(answer.code == 200, "/readyz: {}", answer.text());
    Ok(())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_has_a_name_and_a_program() {
        let ours: Side = "now=keelson:/a/b:c".parse().unwrap();
        assert_eq!((ours.name.as_str(), ours.program()), ("now", PathBuf::from("/a/b:c")));
        let other: Side = "upstream=upstream:/bin".parse().unwrap();
        assert_eq!(other.program(), Path::new("/bin/kube-apiserver"));
        for wrong in ["keelson:/a", "a=/b", "a=other:/b"] {
            assert!(wrong.parse::<Side>().is_err(), "{wrong}");
        }
    }
}
