//! What is known of a cluster between two commands.

use super::*;
use crate::lock::Lock;
use ipnet::Ipv4Net;
use keelson_network::Bridge;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

pub const MOST_NODES: u8 = 50;
const MOST_CLUSTERS: u8 = 200;
const RECORD: &str = "cluster.json";
/// The first address of a node in its range; this machine has the first of all.
const FIRST: u32 = 10;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cluster {
    pub name: String,
    /// Which of the ranges is its.
    pub number: u8,
    pub nodes: u8,
    pub servers: u8,
    #[serde(skip)]
    pub dir: PathBuf,
}

impl Cluster {
    /// The cluster of a name, new or there; what was given has to fit what there is.
    pub fn open(dir: &Path, name: &str, nodes: Option<u8>, servers: Option<u8>) -> anyhow::Result<Cluster> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            (1..=40).contains(&name.len()) && name.chars().all(fits) && !name.starts_with('-') && !name.ends_with('-'),
            "the name {name:?} is not made of lower case letters, digits and '-' (40 at most)"
        );
        let own = dir.join(name);
        let before = own
            .join(RECORD)
            .exists()
            .then(|| Cluster::read(dir, name))
            .transpose()?;
        let servers = servers.or(before.as_ref().map(|c| c.servers)).unwrap_or(1);
        let nodes = nodes.or(before.as_ref().map(|c| c.nodes)).unwrap_or(servers);
        ensure!(matches!(servers, 1 | 3 | 5), "--servers {servers}: 1, 3 or 5");
        ensure!(
            (servers..=MOST_NODES).contains(&nodes),
            "--nodes {nodes}: from {servers} (the servers are among them) to {MOST_NODES}"
        );
        let number = match before {
            Some(before) => {
                ensure!(
                    servers == before.servers,
                    "{name} has {} servers: its number of servers can't change",
                    before.servers
                );
                ensure!(
                    nodes >= before.nodes,
                    "{name} has {} nodes: none is taken away",
                    before.nodes
                );
                before.number
            }
            None => free(dir)?,
        };
        let cluster = Cluster {
            name: name.into(),
            number,
            nodes,
            servers,
            dir: own,
        };
        cluster.write()?;
        Ok(cluster)
    }

    fn write(&self) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.dir).with_context(|| format!("making {}", self.dir.display()))?;
        let text = serde_json::to_vec_pretty(self)?;
        keelson_pki::files::write_secret(&self.dir.join(RECORD), &text).context("the cluster's record")
    }

    pub fn read(dir: &Path, name: &str) -> anyhow::Result<Cluster> {
        let dir = dir.join(name);
        let path = dir.join(RECORD);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                bail!("there is no cluster {name:?} (keelson dev ls)")
            }
            Err(e) => return Err(e).with_context(|| format!("reading {}", path.display())),
        };
        let read: Cluster = serde_json::from_slice(&text).with_context(|| format!("{}", path.display()))?;
        ensure!(
            read.nodes <= MOST_NODES && read.number < MOST_CLUSTERS,
            "{} was damaged",
            path.display()
        );
        Ok(Cluster { dir, ..read })
    }

    /// All there are, by name.
    pub fn all(dir: &Path) -> anyhow::Result<Vec<Cluster>> {
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e).with_context(|| format!("reading {}", dir.display())),
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            if let Some(name) = name.to_str().filter(|name| dir.join(name).join(RECORD).exists()) {
                found.push(Cluster::read(dir, name)?);
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    pub fn bridge(&self) -> Bridge {
        bridge(self.number, &self.dir)
    }

    pub fn node(&self, n: u8) -> String {
        format!("{}-{n}", self.name)
    }

    pub fn address(&self, n: u8) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.bridge().range.network().to_bits() + FIRST + u32::from(n))
    }

    pub fn api(&self, server: u8) -> String {
        format!("https://{}:6443", self.address(server))
    }

    pub fn data_dir(&self, n: u8) -> PathBuf {
        self.dir.join(format!("node-{n}"))
    }

    pub fn log(&self, n: u8) -> PathBuf {
        self.dir.join(format!("node-{n}.log"))
    }

    /// As `ip netns` would name it. Clusters of other directories may have this one's name, but none its bridge.
    pub fn netns(&self, n: u8) -> PathBuf {
        Path::new("/run/netns").join(format!("{}-{n}", self.bridge().name))
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    pub fn context(&self) -> String {
        format!("keelson-{}", self.name)
    }

    pub fn runs(&self, n: u8) -> bool {
        matches!(Lock::is_held(&self.data_dir(n)), Ok(true))
    }
}

fn range(number: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 213, number, 0), 24)
}

fn bridge(number: u8, dir: &Path) -> Bridge {
    Bridge {
        name: format!("kldev{number}"),
        range: range(number),
        owner: dir.display().to_string(),
    }
}

/// The first range that neither a cluster here has nor, by the bridge of that name, one of another directory, nor anybody this
/// machine has a route to.
fn free(dir: &Path) -> anyhow::Result<u8> {
    let mut taken: Vec<u8> = Cluster::all(dir)?.into_iter().map(|c| c.number).collect();
    let routes = block_on(async {
        for number in 0..MOST_CLUSTERS {
            if bridge(number, dir).is_there().await? {
                taken.push(number);
            }
        }
        Bridge::routes().await
    })?;
    first(&taken, &routes).context(
        "there are as many clusters on this machine as there can be, or it has routes to all of 10.213.0.0/16 already",
    )
}

/// A way to a network around it is the last choice: what is behind that stays reachable but for the range.
fn first(taken: &[u8], routes: &[Ipv4Net]) -> Option<u8> {
    let mut free = (0..MOST_CLUSTERS).filter(|number| !taken.contains(number));
    let within = |number: u8| routes.iter().any(|route| range(number).contains(route));
    let around = |number: u8| routes.iter().any(|route| route.contains(&range(number)));
    free.clone()
        .find(|number| !within(*number) && !around(*number))
        .or_else(|| free.find(|number| !within(*number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name, nodes, servers| Cluster::open(dir.path(), name, nodes, servers);
        let first = open("dev", None, None).unwrap();
        assert_eq!((first.nodes, first.servers), (1, 1));
        assert_eq!(open("dev", Some(3), None).unwrap().nodes, 3);
        assert_eq!(open("dev", None, None).unwrap().nodes, 3);
        assert_eq!(open("ha", None, Some(3)).unwrap().nodes, 3);
        for (name, nodes, servers, why) in [
            ("dev", Some(2), None, "none is taken away"),
            ("dev", None, Some(3), "can't change"),
            ("ha2", Some(2), Some(3), "from 3"),
            ("ha2", None, Some(2), "1, 3 or 5"),
            ("ha2", Some(51), None, "to 50"),
            ("../up", None, None, "lower case"),
            ("", None, None, "lower case"),
            ("-a", None, None, "lower case"),
        ] {
            let error = open(name, nodes, servers).unwrap_err().to_string();
            assert!(error.contains(why), "{name} {nodes:?} {servers:?}: {error}");
        }
        let all = Cluster::all(dir.path()).unwrap();
        assert_eq!(all.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["dev", "ha"]);
        assert_ne!(all[0].number, all[1].number);
        assert!(
            Cluster::read(dir.path(), "none")
                .unwrap_err()
                .to_string()
                .contains("no cluster")
        );
        // 15 bytes are the most that a link's name has.
        assert!(format!("{}p{MOST_NODES}", bridge(MOST_CLUSTERS, dir.path()).name).len() <= 15);
        assert_eq!(all[0].address(2).to_string(), format!("10.213.{}.12", all[0].number));
    }

    #[test]
    fn a_range_is_nobody_elses() {
        let routes = |list: &[&str]| list.iter().map(|r| r.parse().unwrap()).collect::<Vec<Ipv4Net>>();
        assert_eq!(first(&[0], &routes(&["192.0.2.0/24"])), Some(1));
        assert_eq!(first(&[], &routes(&["10.213.0.0/23", "10.213.2.77/32"])), Some(3));
        // Somebody's private network.
        assert_eq!(first(&[0], &routes(&["10.0.0.0/8"])), Some(1));
        assert_eq!(first(&[0], &routes(&["10.0.0.0/8", "10.213.1.0/24"])), Some(2));
        let all: Vec<Ipv4Net> = (0..=u8::MAX).map(range).collect();
        assert_eq!(first(&[], &all), None);
    }

    #[test]
    fn clusters_of_one_name_share_no_namespace() {
        let [one, other] = ["/a", "/b"].map(|dir| Cluster {
            name: "dev".into(),
            number: u8::from(dir == "/b"),
            nodes: 1,
            servers: 1,
            dir: Path::new(dir).join("dev"),
        });
        assert_eq!(one.netns(0), Path::new("/run/netns/kldev0-0"));
        assert_ne!(one.netns(0), other.netns(0));
        assert_eq!(other.bridge().owner, "/b/dev");
    }
}
