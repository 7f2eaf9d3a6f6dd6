//! How the static policy is carried out, as a node is told. Upstream's names, stability and words.

use super::layout::Layout;
use crate::managers::topology::{Policy, truth};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Only whole cores are given.
    pub full_cores: bool,
    /// What takes several nodes of memory is taken evenly from them.
    pub across_numa: bool,
    /// Nodes of memory of one socket are as good as one node.
    pub by_socket: bool,
    /// From as many cores as can be.
    pub across_cores: bool,
    /// What is reserved isn't shared either.
    pub strict: bool,
    /// From as few caches as can be.
    pub by_cache: bool,
}

const FULL: &str = "full-pcpus-only";
const NUMA: &str = "distribute-cpus-across-numa";
const SOCKET: &str = "align-by-socket";
const CORES: &str = "distribute-cpus-across-cores";
const STRICT: &str = "strict-cpu-reservation";
const CACHE: &str = "prefer-align-cpus-by-uncorecache";

impl Options {
    /// `alpha`: whether the gate of options that are alpha is on.
    pub fn parse(said: &BTreeMap<String, String>, alpha: bool) -> Result<Options, String> {
        let mut o = Options::default();
        for (name, text) in said {
            if matches!(name.as_str(), SOCKET | CORES) && !alpha {
                return Err(format!(
                    "CPU Manager Policy Alpha-level Options not enabled, but option {name:?} provided"
                ));
            }
            let place = match name.as_str() {
                FULL => &mut o.full_cores,
                NUMA => &mut o.across_numa,
                SOCKET => &mut o.by_socket,
                CORES => &mut o.across_cores,
                STRICT => &mut o.strict,
                CACHE => &mut o.by_cache,
                _ => return Err(format!("unknown CPU Manager Policy option: {name:?}")),
            };
            *place = truth(name, text)?;
        }
        for (one, other, both) in [
            (FULL, CORES, o.full_cores && o.across_cores),
            (NUMA, CORES, o.across_numa && o.across_cores),
            (CACHE, CORES, o.by_cache && o.across_cores),
            (CACHE, NUMA, o.by_cache && o.across_numa),
        ] {
            if both {
                return Err(format!(
                    "static policy options {one} and {other} can not be used at the same time"
                ));
            }
        }
        Ok(o)
    }

    /// Whether this machine and the other managers are such that it can be done.
    pub fn fit(self, layout: &Layout, topology: Policy) -> Result<(), String> {
        if self.by_socket && topology == Policy::SingleNode {
            return Err(format!(
                "Topolgy manager {} policy is incompatible with CPUManager {SOCKET} policy option",
                topology.name()
            ));
        }
        if self.by_socket && layout.sockets > layout.numa {
            return Err(
                "Align by socket is not compatible with hardware where number of sockets are more than number of NUMA"
                    .into(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_refused() {
        let parse = |names: &[&str], alpha| {
            let said = names.iter().map(|n| ((*n).to_owned(), "true".to_owned())).collect();
            Options::parse(&said, alpha)
        };
        assert!(parse(&[FULL, NUMA, STRICT], false).is_ok_and(|o| o.full_cores && o.across_numa && o.strict));
        assert!(parse(&[SOCKET], true).is_ok_and(|o| o.by_socket));
        for (names, alpha, why) in [
            (
                &[SOCKET] as &[&str],
                false,
                "Alpha-level Options not enabled, but option \"align-by-socket\"",
            ),
            (&["nope"], true, "unknown CPU Manager Policy option: \"nope\""),
            (&[FULL, CORES], true, "can not be used at the same time"),
            (&[NUMA, CORES], true, "can not be used at the same time"),
            (&[CACHE, CORES], true, "can not be used at the same time"),
            (&[CACHE, NUMA], false, "can not be used at the same time"),
        ] {
            assert!(parse(names, alpha).is_err_and(|e| e.contains(why)), "{names:?}");
        }
        assert!(Options::parse(&[(FULL.into(), "yes".into())].into(), false).is_err());
    }

    #[test]
    fn sockets_have_to_be_made_of_nodes() {
        let by_socket = Options {
            by_socket: true,
            ..Options::default()
        };
        let layout = |sockets, numa| Layout {
            sockets,
            numa,
            ..Layout::default()
        };
        assert!(by_socket.fit(&layout(1, 2), Policy::Restricted).is_ok());
        assert!(by_socket.fit(&layout(1, 2), Policy::SingleNode).is_err());
        assert!(by_socket.fit(&layout(4, 2), Policy::Restricted).is_err());
    }
}
