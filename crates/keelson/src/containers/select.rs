//! Which container a word on the command line means. What it doesn't say has to be clear from what there is; if not, what could be meant is said.

use super::node::{Container, Node, State};
use anyhow::{Context, bail, ensure};
use clap::Args;
use std::collections::BTreeSet;

/// A container by its pod, or by ID.
#[derive(Args)]
pub struct Wanted {
    /// POD, NAMESPACE/POD, NAMESPACE/POD/CONTAINER, or the ID of a container or a pod, or how one begins
    #[arg(value_name = "POD|ID")]
    target: String,
    /// Which container of the pod [default: its only one, or its only one that runs]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
}

/// Of several instances of a container, which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instance {
    Running,
    Last,
    BeforeLast,
}

/// The word, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Meant<'a> {
    namespace: Option<&'a str>,
    /// A pod's name, or an ID.
    word: &'a str,
    container: Option<&'a str>,
}

impl Wanted {
    #[cfg(test)]
    fn new(target: &str, container: Option<&str>) -> Wanted {
        Wanted {
            target: target.to_string(),
            container: container.map(str::to_string),
        }
    }

    /// A name of a pod alone, where nothing else can be meant.
    pub fn pod(&self) -> anyhow::Result<&str> {
        ensure!(!self.target.contains('/'), "{}: a pod's name", self.target);
        Ok(&self.target)
    }

    pub fn container(&self) -> Option<&str> {
        self.container.as_deref()
    }

    /// `namespace`: as an option says it.
    pub fn meant<'a>(&'a self, namespace: Option<&'a str>) -> anyhow::Result<Meant<'a>> {
        let target = self.target.as_str();
        let parts: Vec<&str> = target.split('/').collect();
        ensure!(
            parts.len() <= 3 && parts.iter().all(|part| !part.is_empty()),
            "{target}: a container is meant by POD, NAMESPACE/POD, NAMESPACE/POD/CONTAINER, or its ID"
        );
        let (own, word) = match parts[..] {
            [word] => (None, word),
            [namespace, pod, ..] => (Some(namespace), pod),
            [] => (None, target),
        };
        if let (Some(own), Some(other)) = (own, namespace) {
            ensure!(
                own == other,
                "{target} names another namespace than --namespace {other}"
            );
        }
        let third = parts.get(2).copied();
        if let (Some(third), Some(other)) = (third, self.container()) {
            ensure!(
                third == other,
                "{target} names another container than --container {other}"
            );
        }
        Ok(Meant {
            namespace: own.or(namespace),
            word,
            container: third.or(self.container()),
        })
    }
}

/// The container that is meant, of what a node has.
pub fn one<'a>(node: &'a Node, meant: &Meant<'_>, instance: Instance) -> anyhow::Result<&'a Container> {
    let candidates = candidates(node, meant, instance)?;
    let pods: BTreeSet<String> = candidates
        .iter()
        .map(|one| format!("{}/{}", one.namespace, one.pod))
        .collect();
    ensure!(
        pods.len() == 1,
        "{} may be one of several pods: {}",
        meant.word,
        listed(pods)
    );
    let found: Vec<&Container> = match meant.container {
        Some(name) => candidates.iter().copied().filter(|one| one.name == name).collect(),
        None => only(candidates.clone())?,
    };
    let Some(last) = found.first().copied() else {
        let name = meant.container.unwrap_or_default();
        bail!(
            "{} has no container {name} here, but {}",
            meant.word,
            listed(names(&candidates))
        );
    };
    let chosen = match instance {
        Instance::Last => Some(last),
        Instance::Running => found.iter().copied().find(|one| one.state == State::Running),
        Instance::BeforeLast => found.get(1).copied(),
    };
    chosen.with_context(|| match instance {
        Instance::BeforeLast => format!("{last} has no instance before its last one, or not any more"),
        Instance::Running | Instance::Last => format!("{last} doesn't run: its state is {}", last.state),
    })
}

/// Containers of the pod of that name, or with such an ID.
fn candidates<'a>(node: &'a Node, meant: &Meant<'_>, instance: Instance) -> anyhow::Result<Vec<&'a Container>> {
    let those = |is: &dyn Fn(&Container) -> bool| -> Vec<&'a Container> {
        let all = node.containers.iter();
        let inside = all.filter(|one| meant.namespace.is_none_or(|namespace| one.namespace == namespace));
        inside.filter(|&one| is(one)).collect()
    };
    let named = those(&|one| one.pod == meant.word);
    let by_id = those(&|one| one.id.starts_with(meant.word));
    if let Some(of_name) = named.first() {
        // Whoever may create pods may name one as another's ID begins.
        let of_id = those(&|one| one.pod != meant.word && has_id(one, meant.word));
        if let Some(of_id) = of_id.first().filter(|_| meant.namespace.is_none()) {
            bail!(
                "{} is the name of a pod, {}/{}, and how an ID of {of_id} begins: NAMESPACE/POD says which pod",
                meant.word,
                of_name.namespace,
                of_name.pod,
            );
        }
        return Ok(named);
    }
    if by_id.is_empty() {
        let of_pod = those(&|one| one.pod_id.starts_with(meant.word));
        ensure!(
            !of_pod.is_empty(),
            "no pod with containers and no ID {:?} is on this node{}: `keelson ps -a` says what is there, kubectl asks the whole cluster",
            meant.word,
            meant
                .namespace
                .map(|namespace| format!(" in namespace {namespace}"))
                .unwrap_or_default()
        );
        return Ok(of_pod);
    }
    ensure!(
        by_id.len() == 1,
        "IDs of several containers begin with {}: {}",
        meant.word,
        listed(by_id.iter().map(|one| format!("{} ({one})", one.id)))
    );
    ensure!(
        instance != Instance::BeforeLast,
        "{}: an ID is that of one instance; the one before is found by the pod's name",
        meant.word
    );
    Ok(by_id)
}

/// Fewer letters are nobody's way to mean an ID, and often a name (`db`).
const SHORTEST_ID: usize = 4;

fn has_id(one: &Container, word: &str) -> bool {
    word.len() >= SHORTEST_ID && (one.id.starts_with(word) || one.pod_id.starts_with(word))
}

/// Instances of the pod's only container, or of the only one that runs.
fn only(candidates: Vec<&Container>) -> anyhow::Result<Vec<&Container>> {
    let running = candidates.iter().copied().filter(|one| one.state == State::Running);
    let running = names(&running.collect::<Vec<_>>());
    let all = names(&candidates);
    let chosen = match (all.len(), running.len()) {
        (1, _) => all.first(),
        (_, 1) => running.first(),
        _ => None,
    };
    let Some(chosen) = chosen else {
        bail!("there are several containers: {}; --container says which", listed(all));
    };
    Ok(candidates
        .into_iter()
        .filter(|one| one.to_string() == *chosen)
        .collect())
}

fn names(found: &[&Container]) -> BTreeSet<String> {
    found.iter().map(|container| container.to_string()).collect()
}

fn listed(names: impl IntoIterator<Item = String>) -> String {
    names.into_iter().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::node::tests::node;
    use super::*;

    fn ask(target: &str, container: Option<&str>, instance: Instance) -> Result<String, String> {
        use State::{Exited, Running};
        let node = node(&[
            ("shop", "web", "init", 0, Exited),
            ("shop", "web", "app", 0, Exited),
            ("shop", "web", "app", 1, Running),
            ("shop", "two", "a", 0, Running),
            ("shop", "two", "b", 0, Running),
            ("other", "web", "app", 0, Exited),
            ("shop", "done", "job", 0, Exited),
        ]);
        let wanted = Wanted::new(target, container);
        let meant = wanted.meant(None).map_err(|error| error.to_string())?;
        let found = one(&node, &meant, instance).map_err(|error| error.to_string())?;
        Ok(format!("{found} {}", found.attempt))
    }

    #[test]
    fn a_pod_means_its_only_container_that_runs() {
        assert_eq!(ask("shop/web", None, Instance::Last).unwrap(), "shop/web/app 1");
        assert_eq!(ask("shop/web", None, Instance::BeforeLast).unwrap(), "shop/web/app 0");
        assert_eq!(ask("done", None, Instance::Last).unwrap(), "shop/done/job 0");
        assert_eq!(ask("shop/web/init", None, Instance::Last).unwrap(), "shop/web/init 0");
        assert_eq!(ask("two", Some("b"), Instance::Running).unwrap(), "shop/two/b 0");
    }

    #[test]
    fn ids_and_how_they_begin_mean_one_instance() {
        assert_eq!(ask("id-1", None, Instance::Last).unwrap(), "shop/web/app 0");
        assert_eq!(ask("pod-other", None, Instance::Last).unwrap(), "other/web/app 0");
        assert!(
            ask("id-", None, Instance::Last)
                .unwrap_err()
                .contains("id-6 (shop/done/job)")
        );
        assert!(
            ask("id-1", None, Instance::BeforeLast)
                .unwrap_err()
                .contains("one instance")
        );
    }

    #[test]
    fn what_isnt_clear_is_said() {
        let said = |target, container, instance| ask(target, container, instance).unwrap_err();
        let several = said("web", None, Instance::Last);
        assert!(several.ends_with("several pods: other/web, shop/web"), "{several}");
        let several = said("two", None, Instance::Last);
        assert!(several.contains("shop/two/a, shop/two/b"), "{several}");
        let unknown = said("shop/two/c", None, Instance::Last);
        assert!(unknown.contains("no container c here, but shop/two/a"), "{unknown}");
        assert!(said("nowhere", None, Instance::Last).contains("keelson ps -a"));
        assert!(said("done", None, Instance::Running).contains("its state is Exited"));
        assert!(said("two", Some("a"), Instance::BeforeLast).contains("before its last one"));
    }

    #[test]
    fn a_pod_named_as_anothers_id_begins_isnt_taken_for_it() {
        let node = node(&[
            ("shop", "web", "app", 0, State::Running),
            ("evil", "id-0", "app", 0, State::Running),
            ("evil", "id-", "app", 0, State::Running),
            ("evil", "id-2", "app", 0, State::Running),
        ]);
        let ask = |target: &str| {
            let wanted = Wanted::new(target, None);
            let found = wanted
                .meant(None)
                .and_then(|meant| one(&node, &meant, Instance::Running));
            found.map(ToString::to_string).map_err(|error| error.to_string())
        };
        let said = ask("id-0").unwrap_err();
        assert!(said.contains("evil/id-0") && said.contains("shop/web/app"), "{said}");
        assert_eq!(ask("evil/id-0").unwrap(), "evil/id-0/app");
        assert_eq!(ask("shop/web").unwrap(), "shop/web/app");
        assert_eq!(ask("id-").unwrap(), "evil/id-/app", "too short for an ID");
        assert!(
            ask("id-2").unwrap_err().contains("evil/id-/app"),
            "its own would be id-3"
        );
    }

    #[test]
    fn a_word_that_contradicts_itself_is_refused() {
        let refused = |target: &str, container, namespace| Wanted::new(target, container).meant(namespace).is_err();
        assert!(refused("a/b/c/d", None, None) && refused("a//c", None, None) && refused("", None, None));
        assert!(refused("a/b", None, Some("other")) && refused("a/b/c", Some("d"), None));
        let wanted = Wanted::new("b", Some("c"));
        let meant = Meant {
            namespace: Some("a"),
            word: "b",
            container: Some("c"),
        };
        assert_eq!(wanted.meant(Some("a")).unwrap(), meant);
    }
}
