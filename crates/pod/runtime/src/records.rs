//! What the runtime remembers of sandboxes and containers, on disk before anything on the host is changed for them:
//! whoever finds a record knows what may have to be undone.
//!
//! Records outlive versions: one that an older or a newer server wrote is read, with defaults for what it lacks and
//! without what is not known. So fields are added and never change their meaning.

use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use keelson_cri::v1::{ContainerConfig, LinuxContainerResources, PodSandboxConfig};
use prost::Message;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::containers::User;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxRecord {
    pub id: String,
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub config: PodSandboxConfig,
    #[serde(default)]
    pub handler: String,
    /// The program of an external handler.
    #[serde(default)]
    pub external: Option<String>,
    #[serde(default)]
    pub created_at: i64,
    pub state: SandboxState,
    pub own_network: bool,
    #[serde(default)]
    pub ips: Vec<String>,
    #[serde(default)]
    pub hostname: String,
    /// The label of the pod's processes, where SELinux is in force.
    #[serde(default)]
    pub selinux: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// Being made; after a restart, half made.
    Creating,
    NotReady,
    /// Also what a newer server calls otherwise: alive until its shim proves the contrary.
    #[serde(other)]
    Ready,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub id: String,
    pub sandbox: String,
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub config: ContainerConfig,
    /// With updates applied.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub resources: LinuxContainerResources,
    /// ID of the image.
    #[serde(default)]
    pub image: String,
    /// Layers that the container needs, also when its image is gone.
    pub chains: Vec<String>,
    pub cgroup: String,
    pub user: User,
    #[serde(default = "default_stop_signal")]
    pub stop_signal: i32,
    #[serde(default)]
    pub log: Option<String>,
    pub state: ContainerState,
    #[serde(default)]
    pub created_at: i64,
    #[serde(default)]
    pub started_at: i64,
    #[serde(default)]
    pub finished_at: i64,
    #[serde(default)]
    pub pid: i32,
    #[serde(default)]
    pub exit_code: i32,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub message: String,
}

fn default_stop_signal() -> i32 {
    nix::libc::SIGTERM
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    Created,
    Exited,
    /// Also what a newer server calls otherwise: its shim says how it is.
    #[serde(other)]
    Running,
}

pub trait Record: Serialize + for<'a> Deserialize<'a> {
    /// The directory below the root, and the file in a record's own directory.
    const DIRECTORY: &'static str;
    const FILE: &'static str;
    fn id(&self) -> &str;
}

impl Record for SandboxRecord {
    const DIRECTORY: &'static str = "sandboxes";
    const FILE: &'static str = "sandbox.json";
    fn id(&self) -> &str {
        &self.id
    }
}

impl Record for ContainerRecord {
    const DIRECTORY: &'static str = "containers";
    const FILE: &'static str = "container.json";
    fn id(&self) -> &str {
        &self.id
    }
}

/// A record's own directory, which also holds its files.
pub fn directory<R: Record>(root: &Path, id: &str) -> PathBuf {
    root.join(R::DIRECTORY).join(id)
}

/// Writes a record. A crash of the program leaves the old one or the new one; after a crash of the machine nothing of
/// what it describes exists any more, so nothing waits for the disk.
pub fn save<R: Record>(root: &Path, record: &R) -> io::Result<()> {
    let dir = directory::<R>(root, record.id());
    std::fs::create_dir_all(&dir)?;
    let new = dir.join("new");
    std::fs::write(&new, serde_json::to_vec(record)?)?;
    std::fs::rename(new, dir.join(R::FILE))
}

/// All records. A directory whose record cannot be read is returned by name, to be cleared away.
pub fn load<R: Record>(root: &Path) -> io::Result<(Vec<R>, Vec<String>)> {
    let dir = root.join(R::DIRECTORY);
    std::fs::create_dir_all(&dir)?;
    let (mut records, mut broken) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        match std::fs::read(entry.path().join(R::FILE))
            .ok()
            .and_then(|b| serde_json::from_slice::<R>(&b).ok())
        {
            Some(record) => records.push(record),
            None => broken.push(entry.file_name().to_string_lossy().into_owned()),
        }
    }
    Ok((records, broken))
}

/// Records that this program can't read, by path; nothing is changed.
pub fn unreadable(root: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    look::<SandboxRecord>(root, &mut found)?;
    look::<ContainerRecord>(root, &mut found)?;
    Ok(found)
}

fn look<R: Record>(root: &Path, unreadable: &mut Vec<String>) -> io::Result<()> {
    let entries = match std::fs::read_dir(root.join(R::DIRECTORY)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path().join(R::FILE);
        match std::fs::read(&path) {
            // One that is being made or removed.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Ok(bytes) if serde_json::from_slice::<R>(&bytes).is_ok() => {}
            _ => unreadable.push(path.display().to_string()),
        }
    }
    Ok(())
}

fn to_base64<S: Serializer, M: Message>(message: &M, serializer: S) -> Result<S::Ok, S::Error> {
    base64::engine::general_purpose::STANDARD
        .encode(message.encode_to_vec())
        .serialize(serializer)
}

fn from_base64<'de, D: Deserializer<'de>, M: Message + Default>(deserializer: D) -> Result<M, D::Error> {
    use serde::de::Error;
    let text = String::deserialize(deserializer)?;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(D::Error::custom)?;
    M::decode(&bytes[..]).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SANDBOX: &str = include_str!("golden/sandbox.json");
    const CONTAINER: &str = include_str!("golden/container.json");

    /// The first release's own files.
    #[test]
    fn records_of_the_first_release_are_read() {
        let sandbox: SandboxRecord = serde_json::from_str(SANDBOX).unwrap();
        assert_eq!((sandbox.state, sandbox.own_network), (SandboxState::Ready, true));
        assert_eq!(sandbox.config.metadata.unwrap().name, "web");
        let container: ContainerRecord = serde_json::from_str(CONTAINER).unwrap();
        assert_eq!(
            (container.state, container.user.home.as_deref()),
            (ContainerState::Running, Some("/root"))
        );
        assert_eq!(container.config.metadata.unwrap().name, "web");
        assert_eq!(container.resources.cpu_shares, 2);
        let image: crate::images::Image = serde_json::from_str(include_str!("golden/image.json")).unwrap();
        assert_eq!(image.chains.len(), 1);
        let shim: crate::shim::protocol::ShimConfig = serde_json::from_str(include_str!("golden/shim.json")).unwrap();
        assert!(shim.own_network && !shim.shared_pid);
    }

    #[test]
    fn what_is_unknown_is_not_dead() {
        let newer = |text: &str| text.replacen('{', r#"{"of_a_later_version": {"any": ["thing"]}, "#, 1);
        let sandbox = newer(SANDBOX).replace(r#""state":"ready""#, r#""state":"frozen""#);
        assert_eq!(
            serde_json::from_str::<SandboxRecord>(&sandbox).unwrap().state,
            SandboxState::Ready
        );
        let container = newer(CONTAINER).replace(r#""state":"running""#, r#""state":"paused""#);
        assert_eq!(
            serde_json::from_str::<ContainerRecord>(&container).unwrap().state,
            ContainerState::Running
        );
        // Known ones mean themselves, both ways.
        for (state, text) in [
            (ContainerState::Created, "created"),
            (ContainerState::Running, "running"),
            (ContainerState::Exited, "exited"),
        ] {
            assert_eq!(serde_json::to_value(state).unwrap(), text);
            assert_eq!(serde_json::from_value::<ContainerState>(text.into()).unwrap(), state);
        }
        for (state, text) in [
            (SandboxState::Creating, "creating"),
            (SandboxState::Ready, "ready"),
            (SandboxState::NotReady, "not_ready"),
        ] {
            assert_eq!(serde_json::to_value(state).unwrap(), text);
            assert_eq!(serde_json::from_value::<SandboxState>(text.into()).unwrap(), state);
        }
    }

    #[test]
    fn what_can_not_be_read_is_told_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            unreadable(dir.path()).unwrap(),
            Vec::<String>::new(),
            "nothing is there yet"
        );
        assert!(!dir.path().join("containers").exists());
        for (id, text) in [("good", CONTAINER), ("torn", "{\"id\": "), ("making", "")] {
            let of = dir.path().join("containers").join(id);
            std::fs::create_dir_all(&of).unwrap();
            if !text.is_empty() {
                std::fs::write(of.join("container.json"), text).unwrap();
            }
        }
        let found = unreadable(dir.path()).unwrap();
        assert!(
            found.len() == 1 && found[0].ends_with("torn/container.json"),
            "{found:?}"
        );
        assert!(dir.path().join("containers/torn/container.json").exists());
    }
}
