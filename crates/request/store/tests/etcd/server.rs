//! An etcd program on loopback with a directory of its own. Ended, and its directory removed, when it is dropped.

use keelson_store::etcd::{Cluster, Options};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Server {
    program: Option<Child>,
    directory: tempfile::TempDir,
    client: u16,
    peer: u16,
    arguments: Vec<String>,
}

/// A port that was free a moment ago.
pub fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    pub async fn start(arguments: &[&str]) -> Server {
        let mut server = Server::prepared(arguments);
        server.run().await;
        server
    }

    fn prepared(arguments: &[&str]) -> Server {
        Server {
            program: None,
            directory: tempfile::tempdir().unwrap(),
            client: port(),
            peer: port(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
        }
    }

    /// Another member of its cluster, which follows and has no vote.
    pub async fn learner(&self) -> (Server, u64) {
        let mut learner = Server::prepared(&["--name", "two", "--initial-cluster-state", "existing"]);
        let cluster = Cluster::new(Options::new(vec![self.url()])).unwrap();
        let (added, _) = cluster.add_learner(&learner.peer_url()).await.unwrap();
        let all = format!("one={},two={}", self.peer_url(), learner.peer_url());
        learner.arguments.extend(["--initial-cluster".into(), all]);
        learner.run().await;
        (learner, added.id)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }
    fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer)
    }
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client)
    }

    /// Until it listens; whether it is well is for the client to find out.
    pub async fn run(&mut self) {
        let program = std::env::var("KEELSON_ETCD").unwrap_or_else(|_| "etcd".into());
        let (client, peer) = (self.url(), self.peer_url());
        let child = Command::new(&program)
            .args(["--name", "one", "--log-level", "error", "--unsafe-no-fsync"])
            .arg("--data-dir")
            .arg(self.directory.path())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("one={peer}")])
            .args(&self.arguments)
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{program} can't be run: {e}; tools/test-etcd.sh says how to get it"));
        self.program = Some(child);
        let begun = Instant::now();
        while std::net::TcpStream::connect(self.address()).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "etcd doesn't listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// As if the machine had lost its power.
    pub fn kill(&mut self) {
        if let Some(mut program) = self.program.take() {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
