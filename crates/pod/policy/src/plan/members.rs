//! Sets whose elements come and go with pods and nodes.

use super::Planner;
use crate::cluster::Node;
use crate::facts::{Pod, Scope};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use keelson_client::labels;
use keelson_sys::nft::names::name;
use keelson_sys::nft::{Datum, Element, KeyType, Set};
use std::collections::BTreeMap;

/// Who is in a set.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Whose {
    Pods(Scope),
    Nodes(LabelSelector),
}

/// What a set says about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    Addresses,
    /// Address, protocol and number of a port by its name.
    Named {
        protocol: u8,
        name: String,
    },
}

pub(super) struct Members {
    pub whose: Whose,
    what: What,
    /// What its name stands for.
    text: String,
    /// How many rules look here.
    uses: usize,
    /// How many pods give each element: two may have one address for a moment.
    counts: BTreeMap<Element, usize>,
}

impl Planner {
    /// The set of these pods or nodes, made when the first rule asks for it.
    pub(super) fn members(&mut self, whose: Whose, what: What, sets: &mut Vec<String>) -> String {
        let (kind, text) = match &whose {
            Whose::Pods(scope) => ("pods", scope.text()),
            Whose::Nodes(selector) => ("nodes", labels::format(selector)),
        };
        let (kind, text, key) = match &what {
            What::Addresses => (kind, text, vec![self.family.address()]),
            What::Named { protocol, name } => (
                "named",
                format!("{name}/{protocol}@{text}"),
                vec![self.family.address(), KeyType::Proto, KeyType::Port],
            ),
        };
        let (mut set, mut tries) = (name(kind, &text), 0);
        // Policies can be written so that their hashes are equal: nobody's peers are another's for that.
        while self.members.get(&set).is_some_and(|there| there.text != text) {
            tries += 1;
            set = name(kind, &format!("{tries} {text}"));
        }
        sets.push(set.clone());
        if let Some(members) = self.members.get_mut(&set) {
            members.uses += 1;
            return set;
        }
        let mut members = Members {
            whose,
            what,
            text,
            uses: 1,
            counts: BTreeMap::new(),
        };
        let of_pods = self.pods.values().flat_map(|pod| self.elements(&members, pod));
        let of_nodes = self.nodes.values().flat_map(|node| self.node_elements(&members, node));
        let all: Vec<Element> = of_pods.chain(of_nodes).collect();
        for element in all {
            *members.counts.entry(element).or_default() += 1;
        }
        let definition = Set {
            name: set.clone(),
            key,
            data: None,
            intervals: false,
            dynamic_timeout_ms: None,
        };
        self.table.add_set(definition, members.counts.keys().cloned().collect());
        self.members.insert(set.clone(), members);
        set
    }

    pub(super) fn release(&mut self, set: &str) {
        let uses = match self.members.get_mut(set) {
            Some(members) => &mut members.uses,
            None => self.constants.entry(set.into()).or_insert(1),
        };
        *uses -= 1;
        if *uses == 0 {
            self.members.remove(set);
            self.constants.remove(set);
            self.table.remove_set(set);
        }
    }

    /// What a pod gives a set.
    fn elements(&self, members: &Members, pod: &Pod) -> Vec<Element> {
        let (Whose::Pods(scope), Some(pod_labels)) = (&members.whose, &pod.labels) else {
            return Vec::new();
        };
        if !scope.has_namespace(&pod.namespace, self.namespaces.get(&pod.namespace))
            || !labels::matches(Some(&scope.pods), Some(pod_labels))
        {
            return Vec::new();
        }
        let addresses = pod.addresses.iter().filter(|ip| self.ours(ip));
        let mut found = Vec::new();
        for ip in addresses {
            match &members.what {
                What::Addresses => found.push(Element::of(vec![Datum::Addr(*ip)])),
                What::Named { protocol, name } => {
                    let same = pod.ports.iter().filter(|p| p.protocol == *protocol && p.name == *name);
                    found.extend(
                        same.map(|p| {
                            Element::of(vec![Datum::Addr(*ip), Datum::Proto(p.protocol), Datum::Port(p.number)])
                        }),
                    );
                }
            }
        }
        found
    }

    fn node_elements(&self, members: &Members, node: &Node) -> Vec<Element> {
        let Whose::Nodes(selector) = &members.whose else {
            return Vec::new();
        };
        let own = node.addresses.iter().filter(|ip| self.ours(ip));
        let is_one = labels::matches(Some(selector), Some(&node.labels));
        own.filter(|_| is_one)
            .map(|ip| Element::of(vec![Datum::Addr(*ip)]))
            .collect()
    }

    /// A pod that was so and is so now, in all sets.
    pub(super) fn recount_pod(&mut self, was: Option<&Pod>, is: Option<&Pod>) {
        let of = |members: &Members, pod: Option<&Pod>| pod.map(|p| self.elements(members, p)).unwrap_or_default();
        let all = self.members.iter().map(|(set, m)| (set, of(m, was), of(m, is)));
        let changed: Vec<(String, Vec<Element>, Vec<Element>)> = all
            .filter(|(_, gone, come)| gone != come)
            .map(|(set, gone, come)| (set.clone(), gone, come))
            .collect();
        for (set, gone, come) in changed {
            self.count(&set, gone, false);
            self.count(&set, come, true);
        }
    }

    /// A pod comes to the set that its labels are for, or goes.
    pub(super) fn count_pod(&mut self, set: &str, pod: Option<&Pod>, comes: bool) {
        let found = pod.and_then(|pod| Some(self.elements(self.members.get(set)?, pod)));
        self.count(set, found.unwrap_or_default(), comes);
    }

    pub(super) fn count_node(&mut self, set: &str, node: Option<&Node>, comes: bool) {
        let found = node.and_then(|node| Some(self.node_elements(self.members.get(set)?, node)));
        self.count(set, found.unwrap_or_default(), comes);
    }

    fn count(&mut self, set: &str, elements: Vec<Element>, comes: bool) {
        let Some(members) = self.members.get_mut(set) else {
            return;
        };
        for element in elements {
            let count = members.counts.entry(element.clone()).or_default();
            if comes {
                *count += 1;
                if *count == 1 {
                    self.table.add_element(set, element);
                }
            } else {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    members.counts.remove(&element);
                    self.table.remove_element(set, &element);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Namespaces;
    use keelson_sys::nft::Family;

    #[test]
    fn a_name_that_another_has_is_not_shared() {
        let mut planner = Planner::new(Family::Ip);
        let whose = |namespace: &str| {
            Whose::Pods(Scope {
                namespaces: Namespaces::One(namespace.into()),
                pods: LabelSelector::default(),
            })
        };
        let mut sets = Vec::new();
        let own = planner.members(whose("own"), What::Addresses, &mut sets);
        assert_eq!(planner.members(whose("own"), What::Addresses, &mut sets), own);
        assert_eq!(planner.members[&own].uses, 2);
        // As if the texts of both had one hash and one beginning.
        let other = name("pods", "other/");
        let taken = planner.members.remove(&own).unwrap();
        planner.members.insert(other.clone(), taken);
        let found = planner.members(whose("other"), What::Addresses, &mut sets);
        assert_ne!(found, other);
        assert_eq!(planner.members(whose("other"), What::Addresses, &mut sets), found);
        assert_eq!(planner.members[&other].uses, 2);
    }
}
