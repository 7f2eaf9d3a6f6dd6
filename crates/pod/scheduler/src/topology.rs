//! Where nodes are, by one label: its values are numbers here, so that counts for each are plain vectors.
//!
//! A number stays a value's as long as a node has it; then it is given to another value. Whoever counts by numbers must have
//! taken a node's part away before the node leaves.

use crate::node::NodeInfo;
use std::collections::HashMap;

/// What tells domains apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// Every node is one of its own.
    Node,
    Label(String),
}

impl Key {
    fn value<'a>(&self, node: &'a NodeInfo) -> Option<&'a str> {
        match self {
            Key::Node => None,
            Key::Label(key) => node.label(key),
        }
    }
}

const NOWHERE: u32 = u32::MAX;

#[derive(Clone, Debug)]
pub struct Topology {
    key: Key,
    /// By a node's index.
    of_node: Vec<u32>,
    values: HashMap<String, u32>,
    /// How many nodes have the value of this number.
    nodes: Vec<u32>,
    free: Vec<u32>,
    /// How many counts go by it.
    pub users: usize,
}

impl Topology {
    pub fn new(key: Key) -> Topology {
        Topology {
            key,
            of_node: Vec::new(),
            values: HashMap::new(),
            nodes: Vec::new(),
            free: Vec::new(),
            users: 0,
        }
    }

    pub fn key(&self) -> &Key {
        &self.key
    }
    /// What the node's domain is called.
    pub fn value_of<'a>(&self, node: &'a NodeInfo) -> Option<&'a str> {
        self.key.value(node)
    }

    /// The domain of the node.
    pub fn place(&self, node: &NodeInfo) -> Option<usize> {
        match self.key {
            Key::Node => Some(node.index as usize),
            Key::Label(_) => {
                let place = self.of_node.get(node.index as usize).copied();
                place.filter(|p| *p != NOWHERE).map(|p| p as usize)
            }
        }
    }

    pub fn enter(&mut self, node: &NodeInfo) {
        let Some(value) = self.key.value(node) else { return };
        let number = match self.values.get(value) {
            Some(number) => *number,
            None => {
                let number = self.free.pop().unwrap_or(self.nodes.len() as u32);
                if number as usize == self.nodes.len() {
                    self.nodes.push(0);
                }
                self.values.insert(value.to_owned(), number);
                number
            }
        };
        self.nodes[number as usize] += 1;
        let index = node.index as usize;
        if self.of_node.len() <= index {
            self.of_node.resize(index + 1, NOWHERE);
        }
        self.of_node[index] = number;
    }

    /// The node as it was when it entered.
    pub fn leave(&mut self, node: &NodeInfo) {
        let Some(place) = self.of_node.get_mut(node.index as usize) else {
            return;
        };
        let number = std::mem::replace(place, NOWHERE);
        let Some(nodes) = self.nodes.get_mut(number as usize) else {
            return;
        };
        *nodes -= 1;
        if *nodes == 0
            && let Some(value) = self.key.value(node)
        {
            self.values.remove(value);
            self.free.push(number);
        }
    }

    /// One more than the largest number.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}
