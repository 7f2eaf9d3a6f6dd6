//! The runtime's answer, put together: containers, and the pods that they are in.

use super::cells;
use anyhow::anyhow;
use keelson_cri::CriClients;
use keelson_cri::v1 as cri;
use keelson_kubelet::rpc_text;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// Labels that every kubelet gives.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Created,
    Running,
    Exited,
    Unknown,
}

impl State {
    fn of(state: i32) -> State {
        match cri::ContainerState::try_from(state) {
            Ok(cri::ContainerState::ContainerCreated) => State::Created,
            Ok(cri::ContainerState::ContainerRunning) => State::Running,
            Ok(cri::ContainerState::ContainerExited) => State::Exited,
            Ok(cri::ContainerState::ContainerUnknown) | Err(_) => State::Unknown,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Created => "Created",
            State::Running => "Running",
            State::Exited => "Exited",
            State::Unknown => "Unknown",
        })
    }
}

/// An instance of a pod on this node: its sandbox.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    pub id: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub attempt: u32,
    pub ready: bool,
    /// In nanoseconds since 1970.
    pub created: i64,
    pub handler: String,
    pub labels: HashMap<String, String>,
}

/// An instance of a container.
#[derive(Clone, Debug)]
pub struct Container {
    pub id: String,
    pub pod_id: String,
    pub namespace: String,
    pub pod: String,
    pub name: String,
    pub attempt: u32,
    pub state: State,
    /// In nanoseconds since 1970.
    pub created: i64,
    pub image: String,
    pub labels: HashMap<String, String>,
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.pod, self.name)
    }
}

/// All that a runtime has, the newest first.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub pods: Vec<Pod>,
    pub containers: Vec<Container>,
}

impl Node {
    pub async fn read(cri: &CriClients) -> anyhow::Result<Node> {
        let (mut pods, mut containers) = (cri.runtime.clone(), cri.runtime.clone());
        let pods = pods.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await;
        let pods = pods.map_err(|error| anyhow!("the runtime's pods: {}", rpc_text(&error)))?;
        let containers = containers.list_containers(cri::ListContainersRequest::default()).await;
        let containers = containers.map_err(|error| anyhow!("the runtime's containers: {}", rpc_text(&error)))?;
        let mut node = Node::of(pods.into_inner().items, containers.into_inner().containers);
        node.name_images(cri).await?;
        Ok(node)
    }

    fn of(pods: Vec<cri::PodSandbox>, containers: Vec<cri::Container>) -> Node {
        let mut pods: Vec<Pod> = pods.into_iter().map(pod).collect();
        pods.sort_by_key(|pod| std::cmp::Reverse(pod.created));
        let by_id: HashMap<&str, &Pod> = pods.iter().map(|pod| (pod.id.as_str(), pod)).collect();
        let mut containers: Vec<Container> = containers
            .into_iter()
            .map(|one| {
                let pod = by_id.get(one.pod_sandbox_id.as_str()).copied();
                container(one, pod)
            })
            .collect();
        containers.sort_by_key(|container| std::cmp::Reverse(container.created));
        Node { pods, containers }
    }

    pub fn pod(&self, id: &str) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.id == id)
    }

    /// Some runtimes tell of a container's image what the kubelet gave them, which is its ID.
    async fn name_images(&mut self, cri: &CriClients) -> anyhow::Result<()> {
        if !self.containers.iter().any(|container| is_digest(&container.image)) {
            return Ok(());
        }
        let images = cri.image.clone().list_images(cri::ListImagesRequest::default()).await;
        let images = images.map_err(|error| anyhow!("the runtime's images: {}", rpc_text(&error)))?;
        let images = images.into_inner().images;
        let names: HashMap<&str, &String> = images
            .iter()
            .filter_map(|image| Some((image.id.as_str(), image.repo_tags.first()?)))
            .collect();
        for container in self.containers.iter_mut().filter(|one| is_digest(&one.image)) {
            container.image = match names.get(container.image.as_str()) {
                Some(name) => (*name).clone(),
                None => cells::short(&container.image),
            };
        }
        Ok(())
    }
}

fn is_digest(image: &str) -> bool {
    image.starts_with("sha256:")
}

fn pod(sandbox: cri::PodSandbox) -> Pod {
    let metadata = sandbox.metadata.unwrap_or_default();
    Pod {
        id: sandbox.id,
        namespace: metadata.namespace,
        name: metadata.name,
        uid: metadata.uid,
        attempt: metadata.attempt,
        ready: sandbox.state == cri::PodSandboxState::SandboxReady as i32,
        created: sandbox.created_at,
        handler: sandbox.runtime_handler,
        labels: sandbox.labels,
    }
}

fn container(one: cri::Container, pod: Option<&Pod>) -> Container {
    let metadata = one.metadata.unwrap_or_default();
    let image = one.image.unwrap_or_default();
    let label = |name: &str| one.labels.get(name).cloned().unwrap_or_default();
    let (namespace, pod_name) = match pod {
        Some(pod) => (pod.namespace.clone(), pod.name.clone()),
        None => (label(POD_NAMESPACE), label(POD_NAME)),
    };
    Container {
        namespace,
        pod: pod_name,
        name: metadata.name,
        attempt: metadata.attempt,
        state: State::of(one.state),
        created: one.created_at,
        image: match image.user_specified_image.is_empty() || !is_digest(&image.image) {
            true => image.image,
            false => image.user_specified_image,
        },
        id: one.id,
        pod_id: one.pod_sandbox_id,
        labels: one.labels,
    }
}

/// What is known of one container beyond the list.
#[derive(Clone, Debug, Default)]
pub struct Detail {
    pub pid: Option<i64>,
    pub exit_code: Option<i32>,
    pub reason: String,
    pub log: String,
}

impl Detail {
    /// `None`: it has gone meanwhile, or the runtime can't tell.
    pub async fn read(cri: &CriClients, id: &str) -> Option<Detail> {
        let request = cri::ContainerStatusRequest {
            container_id: id.to_string(),
            verbose: true,
        };
        let answer = cri.runtime.clone().container_status(request).await;
        let answer = answer.ok()?.into_inner();
        let status = answer.status?;
        let ended = State::of(status.state) == State::Exited;
        Some(Detail {
            pid: pid(&answer.info).filter(|_| !ended),
            exit_code: ended.then_some(status.exit_code),
            reason: status.reason,
            log: status.log_path,
        })
    }

    pub async fn of_all(cri: &CriClients, containers: &[&Container]) -> BTreeMap<String, Detail> {
        let mut details = BTreeMap::new();
        for container in containers {
            if let Some(detail) = Detail::read(cri, &container.id).await {
                details.insert(container.id.clone(), detail);
            }
        }
        details
    }
}

/// What runtimes tell beside the protocol is JSON under the key `info`; all have the first process's number in it.
fn pid(info: &HashMap<String, String>) -> Option<i64> {
    let told: serde_json::Value = serde_json::from_str(info.get("info")?).ok()?;
    told["pid"].as_i64().filter(|pid| *pid > 0)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A node of these containers: namespace, pod, container, attempt, state. Each is a second younger than the one before; IDs are `id-0`, …
    pub fn node(containers: &[(&str, &str, &str, u32, State)]) -> Node {
        let mut node = Node::default();
        for (at, (namespace, pod, name, attempt, state)) in containers.iter().enumerate() {
            let pod_id = format!("pod-{namespace}-{pod}");
            if node.pod(&pod_id).is_none() {
                node.pods.insert(
                    0,
                    Pod {
                        id: pod_id.clone(),
                        namespace: namespace.to_string(),
                        name: pod.to_string(),
                        ready: true,
                        ..Pod::default()
                    },
                );
            }
            let container = Container {
                id: format!("id-{at}"),
                pod_id,
                namespace: namespace.to_string(),
                pod: pod.to_string(),
                name: name.to_string(),
                attempt: *attempt,
                state: *state,
                created: at as i64 * 1_000_000_000,
                image: "image:1".to_string(),
                labels: HashMap::new(),
            };
            node.containers.insert(0, container);
        }
        node
    }

    #[test]
    fn containers_find_their_pods_and_the_newest_come_first() {
        let sandbox = cri::PodSandbox {
            id: "s".to_string(),
            metadata: Some(cri::PodSandboxMetadata {
                name: "web-0".to_string(),
                namespace: "shop".to_string(),
                uid: "u".to_string(),
                attempt: 1,
            }),
            ..cri::PodSandbox::default()
        };
        let container = |id: &str, sandbox: &str, created_at: i64, image: [&str; 2]| cri::Container {
            id: id.to_string(),
            pod_sandbox_id: sandbox.to_string(),
            created_at,
            state: cri::ContainerState::ContainerRunning as i32,
            image: Some(cri::ImageSpec {
                image: image[0].to_string(),
                user_specified_image: image[1].to_string(),
                ..cri::ImageSpec::default()
            }),
            labels: [(POD_NAME.to_string(), "by-label".to_string())].into(),
            ..cri::Container::default()
        };
        let node = Node::of(
            vec![sandbox],
            vec![
                container("old", "s", 1, ["sha256:abc", "web:1"]),
                container("new", "gone", 2, ["web:2", "other"]),
            ],
        );
        let shown: Vec<_> = node
            .containers
            .iter()
            .map(|c| (c.id.as_str(), c.pod.as_str(), c.image.as_str(), c.state))
            .collect();
        assert_eq!(
            shown,
            [
                ("new", "by-label", "web:2", State::Running),
                ("old", "web-0", "web:1", State::Running)
            ]
        );
        assert_eq!((node.pods[0].ready, node.pods[0].attempt), (true, 1));
    }

    #[test]
    fn the_first_process_is_read_of_what_runtimes_tell() {
        let info = |text: &str| HashMap::from([("info".to_string(), text.to_string())]);
        assert_eq!(
            pid(&info(r#"{"sandboxID":"s","pid":4711,"removing":false}"#)),
            Some(4711)
        );
        for none in [r#"{"pid":0}"#, "{}", "no JSON"] {
            assert_eq!(pid(&info(none)), None, "{none}");
        }
    }
}
