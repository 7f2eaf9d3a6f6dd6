//! What a server and a shim say to each other: JSON messages behind a length, with descriptors alongside.
//!
//! A connection carries one request and its replies. `Subscribe` and `Exec` have replies that come later.
//!
//! Shims outlive servers, so either side may be older. What is said only grows: fields that one side does not know are
//! passed over, those it misses have defaults that mean what was so before there were any, messages it does not
//! know are refused or passed over. Nothing is renamed, removed or given another meaning.

use std::io;

use serde::{Deserialize, Serialize};

/// Raised with each addition. Told by a shim, for whoever reads logs: nothing is decided by it.
pub const VERSION: u32 = 2;

/// The shim's socket, in the sandbox's state directory.
pub const SOCKET: &str = "s";
/// What the shim is started with.
pub const CONFIG: &str = "shim.json";
/// Where the shim notes how containers ended, for a server that was not listening.
pub const EXITS: &str = "exits";

/// Longest message either side accepts.
pub const MAX_MESSAGE: usize = 1 << 20;

/// How a sandbox's shim is to be set up.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ShimConfig {
    pub sandbox_id: String,
    pub hostname: String,
    pub own_network: bool,
    pub own_ipc: bool,
    pub own_uts: bool,
    /// One process namespace for all containers, with the shim's helper as its first process.
    pub shared_pid: bool,
    pub sysctls: Vec<(String, String)>,
    pub uid_mappings: Vec<IdMapping>,
    pub gid_mappings: Vec<IdMapping>,
    /// How likely the kernel picks the shim when memory runs out; -998 as pause containers have.
    pub oom_score_adj: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    pub container: u32,
    pub host: u32,
    pub length: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// The state now, then an event for every exit.
    Subscribe,
    Start(Start),
    Exec(Exec),
    /// On the connection of a running `Exec` only: signals that process and its process group.
    KillExec {
        signal: i32,
    },
    Signal {
        container: String,
        signal: i32,
        /// Every process of the container, not just its first.
        all: bool,
    },
    ReopenLog {
        container: String,
    },
    /// With descriptors to copy output to: stdout, then stderr if `stderr`.
    Attach {
        container: String,
        stdout: bool,
        stderr: bool,
        stdin: bool,
    },
    CloseStdin {
        container: String,
    },
    /// Forgets an ended container.
    Delete {
        container: String,
    },
    /// Kills what still runs and ends the shim.
    Shutdown,
    /// Of a newer server.
    #[serde(other)]
    Unknown,
}

/// Starts a container from its bundle.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Start {
    pub container: String,
    pub bundle: String,
    pub cgroup: String,
    pub terminal: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    pub log: Option<String>,
    /// Owner of the standard streams.
    pub uid: u32,
    pub gid: u32,
    pub oom_score_adj: Option<i32>,
    /// Whether the container's processes end with its first one by themselves.
    pub own_pid_namespace: bool,
    /// Whose process namespace it joins; the specification names it too.
    pub joins: Option<Joins>,
    /// Mount targets in the container and how mounts below them spread.
    pub propagation: Vec<(String, MountPropagation)>,
    /// Labels for SELinux of files in the container.
    pub labels: Vec<(String, String)>,
    /// An OCI runtime to use instead of the built-in one.
    pub external: Option<String>,
}

/// A process namespace that exists before the container does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Joins {
    /// The one that all containers of the pod share.
    Pods,
    /// That of another container.
    Container(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountPropagation {
    Private,
    Slave,
    Shared,
}

/// Runs a process in a container, with the container's identity and restrictions.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Exec {
    pub container: String,
    pub args: Vec<String>,
    pub terminal: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    Done,
    State {
        version: u32,
        pid: i32,
        containers: Vec<ContainerState>,
    },
    /// For `Exec` with a terminal, its master comes along.
    Started {
        pid: i32,
    },
    /// For `Attach`: the container's input comes along if it has one; a terminal's master serves for both ways.
    Attached {
        terminal: bool,
    },
    /// The process of an `Exec` ended.
    ExecEnded {
        code: i32,
    },
    Exited(Exited),
    Failed {
        error: String,
    },
    /// Of a newer shim.
    #[serde(other)]
    Unknown,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    pub container: String,
    /// 0 while it is being created.
    pub pid: i32,
    pub started_at: i64,
    pub exited: Option<Exited>,
}

/// How a container ended; also the content of the notes in [`EXITS`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exited {
    pub container: String,
    pub pid: i32,
    pub code: i32,
    /// Nanoseconds since 1970.
    pub at: i64,
    pub started_at: i64,
    pub oom_killed: bool,
}

/// A message as it goes over the socket.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message).map_err(io::Error::other)?;
    let length = bytes.len() - 4;
    if length > MAX_MESSAGE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "message to the shim is too long",
        ));
    }
    bytes[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(bytes)
}

/// Takes the first whole message off `buffer`, if one has arrived.
pub fn decode<T: for<'a> Deserialize<'a>>(buffer: &mut Vec<u8>) -> io::Result<Option<T>> {
    let Some(header) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*header) as usize;
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message is too long"));
    }
    let Some(body) = buffer.get(4..4 + length) else {
        return Ok(None);
    };
    let message = serde_json::from_slice(body).map_err(io::Error::other)?;
    buffer.drain(..4 + length);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from<T: for<'a> Deserialize<'a>>(text: &str) -> T {
        let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
        bytes.extend(text.as_bytes());
        decode(&mut bytes).unwrap().unwrap()
    }

    /// What a server of the first version sent, and what one of a later version might.
    #[test]
    fn older_and_newer_sides_are_understood() {
        let start = r#"{"do": "start", "container": "c", "bundle": "/b", "cgroup": "/g", "terminal": false,
            "stdin": false, "stdin_once": false, "log": null, "uid": 0, "gid": 0, "oom_score_adj": 5,
            "own_pid_namespace": true, "propagation": [["/v", "slave"]], "external": null}"#;
        let Request::Start(start) = from(start) else { panic!() };
        assert_eq!((start.container.as_str(), start.joins), ("c", None));
        assert!(matches!(
            from(r#"{"do": "freeze", "container": "c"}"#),
            Request::Unknown
        ));
        assert!(matches!(from(r#"{"reply": "frozen", "for": 1}"#), Reply::Unknown));
        let state = r#"{"reply": "state", "version": 99, "pid": 4, "mood": "good",
            "containers": [{"container": "c", "pid": 5, "cgroup": "/g"}]}"#;
        let Reply::State {
            version, containers, ..
        } = from(state)
        else {
            panic!()
        };
        assert_eq!((version, containers[0].pid, &containers[0].exited), (99, 5, &None));
    }

    #[test]
    fn messages_survive_being_cut() {
        let bytes = encode(&Request::Signal {
            container: "c".into(),
            signal: 15,
            all: false,
        })
        .unwrap();
        let mut buffer = Vec::new();
        for b in &bytes[..bytes.len() - 1] {
            buffer.push(*b);
            assert!(decode::<Request>(&mut buffer).unwrap().is_none());
        }
        buffer.push(bytes[bytes.len() - 1]);
        assert!(matches!(
            decode(&mut buffer).unwrap(),
            Some(Request::Signal { signal: 15, .. })
        ));
        assert!(buffer.is_empty());
        assert!(decode::<Request>(&mut u32::MAX.to_be_bytes().to_vec()).is_err());
    }
}
