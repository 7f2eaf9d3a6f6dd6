//! What is kept from containers on each node of memory: `reservedMemory`, which has to be as much as the node keeps in all.

use super::policy::{Amounts, HUGE, MEMORY};
use crate::config::Config;
use crate::eviction::threshold::Signal;
use crate::managers::machine::Nodes;
use crate::node::status;
use crate::resources::quantity;
use keelson_api::quantity::Quantity;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// By node of memory and resource; as the API writes amounts.
pub type Reserved = BTreeMap<u32, BTreeMap<String, String>>;

/// Reads the setting's own form. What can't be is refused in upstream's words.
pub fn parse(value: &Value) -> Result<Reserved, String> {
    let mut all = Reserved::new();
    for entry in value.as_array().into_iter().flatten() {
        let fields = entry
            .as_object()
            .ok_or("an entry has to be an object with numaNode and limits")?;
        if let Some(other) = fields.keys().find(|k| !matches!(k.as_str(), "numaNode" | "limits")) {
            return Err(format!("unknown field {other:?}"));
        }
        let node = fields.get("numaNode").unwrap_or(&Value::Null);
        let id = node.as_u64().and_then(|n| u32::try_from(n).ok());
        let id = id.ok_or_else(|| format!("numaNode has to be the number of a NUMA node, not {node}"))?;
        let of_node = all.entry(id).or_default();
        let limits = fields.get("limits").and_then(Value::as_object);
        for (name, text) in limits.into_iter().flatten() {
            let text = text.as_str().map_or_else(|| text.to_string(), str::to_owned);
            if name != MEMORY && !name.starts_with(HUGE) {
                return Err(format!(
                    "invalid configuration: the limit type {name:?} for NUMA node {id} is not supported, only [memory \
                     hugepages-<HugePageSize>] is accepted"
                ));
            }
            let amount = Quantity::parse(&text)
                .map_err(|e| format!("{text:?} for NUMA node {id} and resource {name:?}: {e}"))?;
            match amount.milli_value() {
                0 => {
                    return Err(format!(
                        "invalid configuration: reserved memory may not be zero for NUMA node {id} and resource {name:?}"
                    ));
                }
                milli if milli < 0 => {
                    return Err(format!("{text:?} for NUMA node {id} and resource {name:?} is negative"));
                }
                _ => {}
            }
            if of_node.insert(name.clone(), text).is_some() {
                return Err(format!(
                    "invalid configuration: the reserved memory has a duplicate value for NUMA node {id} and resource {name:?}"
                ));
            }
        }
    }
    Ok(all)
}

/// The flag's form: `0:memory=1Gi,hugepages-1M=2Gi;1:memory=2Gi`.
pub fn read(text: &str) -> Result<Value, String> {
    let mut all = Vec::new();
    for entry in text.split(';').filter(|e| !e.is_empty()) {
        let wrong = || {
            format!(
                "the reserved memory has incorrect format, expected numaNodeID:type=quantity[,type=quantity...], got {entry}"
            )
        };
        let (node, limits) = entry.split_once(':').ok_or_else(wrong)?;
        if limits.contains(':') {
            return Err(wrong());
        }
        let node: u32 = node
            .parse()
            .map_err(|_| format!("failed to convert the NUMA node ID, expected integer, got {node}"))?;
        let mut of_node = Map::new();
        for limit in limits.split(',') {
            let pair = limit.split_once('=').filter(|(_, amount)| !amount.contains('='));
            let (name, amount) = pair.ok_or_else(|| {
                format!("the reserved limit has incorrect value, expected type=quantity, got {limit}")
            })?;
            of_node.insert(name.to_owned(), amount.into());
        }
        all.push(json!({"numaNode": node, "limits": of_node}));
    }
    Ok(all.into())
}

/// The setting's own form again.
pub fn show(all: &Reserved) -> Value {
    all.iter()
        .map(|(node, limits)| json!({"numaNode": node, "limits": limits}))
        .collect()
}

/// In bytes, if it is of this machine, and in sum what the node keeps from pods.
pub fn of(nodes: &Nodes, cfg: &Config) -> Result<BTreeMap<u32, Amounts>, String> {
    let mut sums = Amounts::new();
    let mut all = BTreeMap::new();
    for (id, limits) in &cfg.reserved_memory {
        if !nodes.0.iter().any(|n| n.id == *id) {
            return Err(format!(
                "the reserved memory configuration references a NUMA node {id} that does not exist on this machine"
            ));
        }
        let mut of_node = Amounts::new();
        for (name, text) in limits {
            let bytes = Quantity::parse(text)
                .map_err(|e| format!("{text:?}: {e}"))?
                .milli_value()
                / 1000;
            let bytes = u64::try_from(bytes).unwrap_or(0);
            *sums.entry(name.clone()).or_default() += bytes;
            of_node.insert(name.clone(), bytes);
        }
        all.insert(*id, of_node);
    }
    let total: u64 = nodes.0.iter().map(|n| n.memory).sum();
    let mut kinds: BTreeSet<&str> = sums.keys().map(String::as_str).collect();
    kinds.insert(MEMORY);
    for kind in kinds {
        let kept = match kind {
            MEMORY => {
                u64::try_from(status::reserved(cfg, MEMORY) / 1000).unwrap_or(0)
                    + cfg.eviction.hard_amount(Signal::Memory, total)
            }
            _ => 0,
        };
        let said = sums.get(kind).copied().unwrap_or(0);
        if said != kept {
            let shown = |bytes: u64| quantity::bytes(i64::try_from(bytes).unwrap_or(i64::MAX)).0;
            return Err(format!(
                "the total amount {:?} of type {kind:?} is not equal to the value {:?} determined by Node Allocatable feature",
                shown(said),
                shown(kept)
            ));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_and_file_say_the_same() {
        let value = read("0:memory=1Gi,hugepages-2Mi=4Mi;1:memory=512Mi").unwrap();
        let all = parse(&value).unwrap();
        assert_eq!(all[&0]["hugepages-2Mi"], "4Mi");
        assert_eq!(show(&all), value);
        for (text, why) in [
            (
                "memory=1Gi",
                "the reserved memory has incorrect format, expected numaNodeID:type=quantity[,type=quantity...], got memory=1Gi",
            ),
            (
                "a:memory=1Gi",
                "failed to convert the NUMA node ID, expected integer, got a",
            ),
            (
                "0:memory",
                "the reserved limit has incorrect value, expected type=quantity, got memory",
            ),
        ] {
            assert_eq!(read(text), Err(why.into()));
        }
        for (text, why) in [
            (
                "0:cpu=1",
                "invalid configuration: the limit type \"cpu\" for NUMA node 0 is not supported, only [memory hugepages-<HugePageSize>] is accepted",
            ),
            (
                "0:memory=0",
                "invalid configuration: reserved memory may not be zero for NUMA node 0 and resource \"memory\"",
            ),
            (
                "0:memory=1Gi;0:memory=1Gi",
                "invalid configuration: the reserved memory has a duplicate value for NUMA node 0 and resource \"memory\"",
            ),
        ] {
            assert_eq!(parse(&read(text).unwrap()), Err(why.into()));
        }
    }

    #[test]
    fn it_is_as_much_as_the_node_keeps() {
        let nodes = Nodes::plain(2, 8 << 30);
        let mut cfg = Config {
            system_reserved: BTreeMap::from([(MEMORY.to_owned(), "1Gi".to_owned())]),
            ..Config::default()
        };
        let margin = cfg.eviction.hard_amount(Signal::Memory, 8 << 30);
        cfg.reserved_memory = parse(&read("0:memory=1Gi").unwrap()).unwrap();
        assert!(
            margin > 0
                && of(&nodes, &cfg)
                    .unwrap_err()
                    .starts_with("the total amount \"1Gi\" of type \"memory\"")
        );
        let all = (1 << 30) + margin;
        cfg.reserved_memory = parse(&read(&format!("0:memory={all}")).unwrap()).unwrap();
        assert_eq!(of(&nodes, &cfg).unwrap()[&0][MEMORY], all);
        cfg.reserved_memory = parse(&read(&format!("1:memory={all}")).unwrap()).unwrap();
        assert!(
            of(&nodes, &cfg)
                .unwrap_err()
                .contains("NUMA node 1 that does not exist")
        );
    }
}
