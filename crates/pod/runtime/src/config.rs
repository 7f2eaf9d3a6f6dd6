//! How the runtime is set up.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::images::archives::Peers;

/// Where the program that is running can be started again, whatever its file is called by now.
pub const SELF: &str = "/proc/self/exe";

#[derive(Clone, Debug)]
pub struct Config {
    /// What survives a reboot: images, layers, the writable layers of containers, records. Must be on a file system
    /// that can be the upper layer of an overlay.
    pub root: PathBuf,
    /// What does not: sockets, namespaces, bundles.
    pub state: PathBuf,
    /// Parent control group of pods whose configuration names none.
    pub cgroup_root: String,
    /// Mirrors and credentials; see [`crate::images::registries`].
    pub registries: Option<PathBuf>,
    /// Registries that have mirrors are not asked themselves.
    pub mirrors_only: bool,
    /// A directory of archives to import at start.
    pub images: Option<PathBuf>,
    /// Bytes of layers' archives to keep for other nodes; `None`: none are.
    pub keep_archives: Option<u64>,
    /// Other nodes, asked for layers before registries are.
    pub peers: Option<Arc<dyn Peers>>,
    /// Images that must not be collected, by name.
    pub pinned_images: Vec<String>,
    /// Runtime handlers beside "" and "keelson", which are built in.
    pub handlers: BTreeMap<String, Handler>,
    /// Where drivers leave what devices by name are (CDI); a later directory wins.
    pub cdi: Vec<PathBuf>,
    /// Where exec, attach and port-forward are served; loopback only.
    pub streaming: SocketAddr,
    /// The program whose first argument `shim` leads to [`crate::shim::main`], and `cell` to [`crate::cell::main`].
    pub program: PathBuf,
    /// Pods' labels of SELinux are in force on this machine; `None`: they are ignored.
    pub selinux: Option<Arc<dyn crate::selinux::Machine>>,
    /// Tells the steps of calls that are parts of traces.
    pub tracer: keelson_trace::Tracer,
}

/// What runs the containers of a runtime handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handler {
    BuiltIn,
    /// An OCI runtime such as runc or runsc.
    External(PathBuf),
}

impl Default for Config {
    fn default() -> Self {
        Config {
            root: PathBuf::from("/var/lib/keelson/runtime"),
            state: PathBuf::from("/run/keelson/runtime"),
            cgroup_root: "/keelson".to_owned(),
            registries: None,
            mirrors_only: false,
            images: None,
            keep_archives: None,
            peers: None,
            pinned_images: Vec::new(),
            handlers: BTreeMap::new(),
            cdi: crate::cdi::DIRECTORIES.map(PathBuf::from).into(),
            streaming: SocketAddr::from(([127, 0, 0, 1], 0)),
            program: PathBuf::from(SELF),
            selinux: None,
            tracer: keelson_trace::Tracer::none(),
        }
    }
}

impl Config {
    /// What a handler's name stands for.
    pub fn handler(&self, name: &str) -> Option<Handler> {
        match name {
            "" | "keelson" => Some(Handler::BuiltIn),
            name => self.handlers.get(name).cloned(),
        }
    }

    /// All handlers' names.
    pub fn handler_names(&self) -> impl Iterator<Item = &str> {
        ["", "keelson"]
            .into_iter()
            .chain(self.handlers.keys().map(String::as_str))
    }
}
