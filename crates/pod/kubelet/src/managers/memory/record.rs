//! What has been given, on disk: upstream's file `memory_manager_state`, its forms and its sums, so that a node can go from one
//! kubelet to the other. A file that can't be read, or is of another policy, is refused in upstream's words.

use super::policy::{Account, Block, Blocks, Given, Node, Nodes};
use crate::managers::sum;
use serde::{Deserialize, Serialize};

pub const FILE: &str = "memory_manager_state";

/// What counts: a text within the file, with a sum of its own.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    policy_name: String,
    #[serde(default)]
    machine_state: Option<Nodes>,
    #[serde(default, skip_serializing_if = "Blocks::is_empty")]
    entries: Blocks,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    policy_name: String,
    #[serde(default)]
    machine_state: Option<Nodes>,
    #[serde(default, skip_serializing_if = "Blocks::is_empty")]
    entries: Blocks,
    #[serde(default)]
    checksum: u64,
    #[serde(default)]
    data: String,
    #[serde(default)]
    data_checksum: u64,
}

/// The file's text.
pub fn write(policy: &str, given: &Given) -> Result<String, String> {
    let plain = Data {
        policy_name: policy.to_owned(),
        machine_state: Some(given.nodes.clone()),
        entries: given.blocks.clone(),
    };
    let data = serde_json::to_string(&plain).map_err(|e| e.to_string())?;
    let file = File {
        checksum: u64::from(sum::of(&shown(&plain, false))),
        data_checksum: u64::from(sum::of_text(&data)),
        policy_name: plain.policy_name,
        machine_state: plain.machine_state,
        entries: plain.entries,
        data,
    };
    serde_json::to_string(&file).map_err(|e| e.to_string())
}

/// What a file says, if it is of this policy.
pub fn read(policy: &str, text: &[u8]) -> Result<Given, String> {
    let file: File = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let data = match file.data.is_empty() && file.data_checksum == 0 {
        true => {
            let plain = Data {
                policy_name: file.policy_name,
                machine_state: file.machine_state,
                entries: file.entries,
            };
            let mut sums = [false, true]
                .map(|pods| u64::from(sum::of(&shown(&plain, pods))))
                .into_iter();
            if file.checksum != 0 && !sums.any(|sum| sum == file.checksum) {
                return Err("checkpoint is corrupted".into());
            }
            plain
        }
        false => {
            if u64::from(sum::of_text(&file.data)) != file.data_checksum {
                return Err("checkpoint is corrupted".into());
            }
            let wrong = |e| format!("failed to deserialize memory manager checkpoint data: {e}");
            serde_json::from_str(&file.data).map_err(wrong)?
        }
    };
    if data.policy_name != policy {
        return Err(format!(
            "[memorymanager] configured policy {policy:?} differs from state checkpoint policy {:?}",
            data.policy_name
        ));
    }
    let mut given = Given {
        nodes: data.machine_state.unwrap_or_default(),
        blocks: data.entries,
    };
    given.blocks.retain(|_, of| !of.is_empty());
    Ok(given)
}

/// As Go shows it: what the sum is of. `pods`: with a map of pods' own memory, which is empty.
fn shown(data: &Data, pods: bool) -> String {
    let account = |a: &Account| {
        format!(
            "<*>{{TotalMemSize:(uint64){} SystemReserved:(uint64){} Allocatable:(uint64){} Reserved:(uint64){} Free:(uint64){}}}",
            a.total, a.system_reserved, a.allocatable, a.reserved, a.free
        )
    };
    let numbers = |list: &[u32]| {
        let all: Vec<String> = list.iter().map(u32::to_string).collect();
        format!("[{}]", all.join(" "))
    };
    let node = |n: &Node| {
        let accounts = sum::map(n.memory_map.iter().map(|(kind, a)| format!("{kind}:{}", account(a))));
        format!(
            "<*>{{NumberOfAssignments:(int){} MemoryMap:(map[v1.ResourceName]*state.MemoryTable){accounts} Cells:([]int){}}}",
            n.number_of_assignments,
            numbers(&n.cells)
        )
    };
    let block = |b: &Block| {
        let nodes = numbers(&b.numa_affinity);
        format!(
            "{{NUMAAffinity:([]int){nodes} Type:(v1.ResourceName){} Size:(uint64){}}}",
            b.kind, b.size
        )
    };
    let blocks = |list: &[Block]| format!("[{}]", list.iter().map(block).collect::<Vec<_>>().join(" "));
    let nodes = sum::map(
        data.machine_state
            .iter()
            .flatten()
            .map(|(id, n)| format!("{id}:{}", node(n))),
    );
    let entries = sum::map(data.entries.iter().map(|(pod, of)| {
        format!(
            "{pod}:{}",
            sum::map(of.iter().map(|(c, list)| format!("{c}:{}", blocks(list))))
        )
    }));
    let pods = if pods {
        " PodEntries:(state.PodMemoryAssignments)map[]"
    } else {
        ""
    };
    format!(
        "(*state.MemoryManagerCheckpoint){{PolicyName:(string){} MachineState:(state.NUMANodeMap){nodes} \
         Entries:(state.ContainerMemoryAssignments){entries}{pods} Checksum:(checksum.Checksum)0}}",
        data.policy_name
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const MACHINE: &str = r#""machineState":{"0":{"numberOfAssignments":0,"memoryMap":{"memory":{"total":2048,"systemReserved":512,"allocatable":1536,"reserved":512,"free":1024}},"cells":[]}}"#;
    const ENTRIES: &str = r#""entries":{"pod":{"container1":[{"numaAffinity":[0],"type":"memory","size":512}]}}"#;

    fn given() -> Given {
        let account = Account {
            total: 2048,
            system_reserved: 512,
            allocatable: 1536,
            reserved: 512,
            free: 1024,
        };
        let node = Node {
            memory_map: BTreeMap::from([("memory".into(), account)]),
            ..Node::default()
        };
        let block = Block {
            numa_affinity: vec![0],
            kind: "memory".into(),
            size: 512,
        };
        let containers = BTreeMap::from([("container1".to_owned(), vec![block])]);
        Given {
            nodes: BTreeMap::from([(0, node)]),
            blocks: BTreeMap::from([("pod".to_owned(), containers)]),
        }
    }

    /// Files and sums of upstream's tests.
    #[test]
    fn upstreams_files_are_read() {
        let old = format!(r#"{{"policyName":"static",{MACHINE},{ENTRIES},"checksum":4215593881}}"#);
        let data = format!(r#"{{"policyName":"static",{MACHINE},{ENTRIES}}}"#);
        let new = format!(
            r#"{{"policyName":"other","machineState":{{}},"checksum":1234,"data":{data:?},"dataChecksum":1849615440}}"#
        );
        let unsigned = old.replace("4215593881", "0");
        for text in [&old, &new, &unsigned] {
            assert_eq!(read("static", text.as_bytes()), Ok(given()), "{text}");
        }
        for (text, why) in [
            (old.replace("4215593881", "101010"), "checkpoint is corrupted"),
            (old.replace("\"size\":512", "\"size\":511"), "checkpoint is corrupted"),
            (new.replace("1849615440", "1234"), "checkpoint is corrupted"),
            (
                unsigned.replace("static", "None"),
                "[memorymanager] configured policy \"static\" differs from state checkpoint policy \"None\"",
            ),
        ] {
            assert_eq!(read("static", text.as_bytes()), Err(why.into()), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_upstreams_newest_form_and_the_one_before() {
        let text = write("static", &given()).unwrap();
        let start = format!(r#"{{"policyName":"static",{MACHINE},{ENTRIES},"checksum":4215593881,"data":"#);
        assert!(text.starts_with(&start), "{text}");
        assert!(text.ends_with(r#","dataChecksum":1849615440}"#), "{text}");
        assert_eq!(read("static", text.as_bytes()), Ok(given()));
        let nothing = Given::default();
        let text = write("None", &nothing).unwrap();
        assert!(
            text.starts_with(r#"{"policyName":"None","machineState":{},"checksum":"#),
            "{text}"
        );
        assert_eq!(read("None", text.as_bytes()), Ok(nothing));
    }
}
