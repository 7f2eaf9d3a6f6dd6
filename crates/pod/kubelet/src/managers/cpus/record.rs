//! What has been given, on disk: upstream's file `cpu_manager_state`, its forms and its sums, so that a node can go from one
//! kubelet to the other. A file that can't be read, or is of another policy, is refused in upstream's words.

use super::policy::Given;
use crate::managers::set::Set;
use crate::managers::sum;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const FILE: &str = "cpu_manager_state";

type Entries = BTreeMap<String, BTreeMap<String, String>>;

/// What counts: a text within the file, with a sum of its own.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    policy_name: String,
    #[serde(alias = "defaultCPUSet")]
    default_cpu_set: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    entries: Entries,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    policy_name: String,
    #[serde(alias = "defaultCPUSet")]
    default_cpu_set: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    entries: Entries,
    #[serde(default)]
    checksum: u64,
    #[serde(default)]
    data: String,
    #[serde(default)]
    data_checksum: u64,
}

/// The file's text.
pub fn write(policy: &str, given: &Given) -> Result<String, String> {
    let texts = |of: &BTreeMap<String, Set>| of.iter().map(|(c, set)| (c.clone(), set.to_string())).collect();
    let data = Data {
        policy_name: policy.to_owned(),
        default_cpu_set: given.shared.to_string(),
        entries: given
            .exclusive
            .iter()
            .map(|(pod, of)| (pod.clone(), texts(of)))
            .collect(),
    };
    let text = serde_json::to_string(&data).map_err(|e| e.to_string())?;
    let file = File {
        checksum: u64::from(sum::of(&shown("CPUManagerCheckpoint", &data, false))),
        data_checksum: u64::from(sum::of_text(&text)),
        policy_name: data.policy_name,
        default_cpu_set: data.default_cpu_set,
        entries: data.entries,
        data: text,
    };
    serde_json::to_string(&file).map_err(|e| e.to_string())
}

/// What a file says, if it is of this policy.
pub fn read(policy: &str, text: &[u8]) -> Result<Given, String> {
    let file: File = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let data = match file.data.is_empty() && file.data_checksum == 0 {
        true => old(file)?,
        false => {
            let load = |e: String| format!("could not load v4 checkpoint: {e}");
            if u64::from(sum::of_text(&file.data)) != file.data_checksum {
                return Err(load("checkpoint is corrupted".into()));
            }
            serde_json::from_str(&file.data)
                .map_err(|e| load(format!("failed to deserialize cpu manager checkpoint data: {e}")))?
        }
    };
    if data.policy_name != policy {
        return Err(format!(
            "configured policy {policy:?} differs from state checkpoint policy {:?}",
            data.policy_name
        ));
    }
    let shared = &data.default_cpu_set;
    let mut given = Given {
        shared: Set::parse(shared).ok_or_else(|| format!("could not parse default CPU set {shared:?}"))?,
        ..Given::default()
    };
    for (pod, containers) in data.entries {
        let of_pod = given.exclusive.entry(pod.clone()).or_default();
        for (container, text) in containers {
            let wrong = || format!("could not parse cpuset {text:?} for container {container:?} in pod {pod:?}");
            let set = Set::parse(&text).ok_or_else(wrong)?;
            of_pod.insert(container, set);
        }
    }
    given.exclusive.retain(|_, of| !of.is_empty());
    Ok(given)
}

/// The forms before: one sum, over the whole as Go shows it.
fn old(file: File) -> Result<Data, String> {
    let data = Data {
        policy_name: file.policy_name,
        default_cpu_set: file.default_cpu_set,
        entries: file.entries,
    };
    let names = [
        ("CPUManagerCheckpoint", false),
        ("CPUManagerCheckpointV2", false),
        ("CPUManagerCheckpoint", true),
        ("CPUManagerCheckpointV3", true),
    ];
    let mut sums = names
        .iter()
        .map(|(name, pods)| u64::from(sum::of(&shown(name, &data, *pods))));
    match file.checksum == 0 || sums.any(|sum| sum == file.checksum) {
        true => Ok(data),
        false => Err("checkpoint is corrupted".into()),
    }
}

/// As Go shows it: what the sum is of. `pods`: with a map of pods' own CPUs, which is empty.
fn shown(name: &str, data: &Data, pods: bool) -> String {
    let of_pod = |of: &BTreeMap<String, String>| sum::map(of.iter().map(|(c, set)| format!("{c}:{set}")));
    let entries = sum::map(data.entries.iter().map(|(pod, of)| format!("{pod}:{}", of_pod(of))));
    let pods = if pods {
        " PodEntries:(state.PodCPUAssignments)map[]"
    } else {
        ""
    };
    format!(
        "(*state.{name}){{PolicyName:(string){} DefaultCPUSet:(string){} Entries:(map[string]map[string]string){entries}{pods} \
         Checksum:(checksum.Checksum)0}}",
        data.policy_name, data.default_cpu_set
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> Given {
        let set = |text| Set::parse(text).unwrap();
        let of_pod = BTreeMap::from([("container1".into(), set("4-6")), ("container2".into(), set("1-3"))]);
        Given {
            shared: set("7-9"),
            exclusive: BTreeMap::from([("pod".into(), of_pod)]),
        }
    }

    /// Files and sums of upstream's tests.
    #[test]
    fn upstreams_files_are_read() {
        let entries = r#""entries":{"pod":{"container1":"4-6","container2":"1-3"}}"#;
        let v4 = format!(
            r#"{{"policyName":"other","defaultCPUSet":"1-9","checksum":1234,"data":{:?},"dataChecksum":1420829534}}"#,
            format!(r#"{{"policyName":"static","defaultCPUSet":"7-9",{entries}}}"#)
        );
        let v3 = format!(r#"{{"policyName":"static","defaultCPUSet":"7-9",{entries},"checksum":1942532442}}"#);
        let v2 = format!(r#"{{"policyName":"static","defaultCpuSet":"7-9",{entries},"checksum":964019483}}"#);
        let none = format!(r#"{{"policyName":"static","defaultCpuSet":"7-9",{entries}}}"#);
        for text in [&v4, &v3, &v2, &none] {
            assert_eq!(read("static", text.as_bytes()), Ok(given()), "{text}");
        }
        for (text, why) in [
            (
                v4.replace("1420829534", "1"),
                "could not load v4 checkpoint: checkpoint is corrupted",
            ),
            (v3.replace("1942532442", "1"), "checkpoint is corrupted"),
            (v2.replace("7-9", "7-8"), "checkpoint is corrupted"),
            (none.replace("7-9", "1.3"), "could not parse default CPU set \"1.3\""),
            (
                none.replace("4-6", "asd"),
                "could not parse cpuset \"asd\" for container \"container1\" in pod \"pod\"",
            ),
            (
                none.replace("static", "none"),
                "configured policy \"static\" differs from state checkpoint policy \"none\"",
            ),
        ] {
            assert_eq!(read("static", text.as_bytes()), Err(why.into()), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_upstreams_newest_form_and_the_one_before() {
        let text = write("static", &given()).unwrap();
        assert_eq!(
            text,
            r#"{"policyName":"static","defaultCpuSet":"7-9","entries":{"pod":{"container1":"4-6","container2":"1-3"}},"checksum":964019483,"data":"{\"policyName\":\"static\",\"defaultCpuSet\":\"7-9\",\"entries\":{\"pod\":{\"container1\":\"4-6\",\"container2\":\"1-3\"}}}","dataChecksum":738276254}"#
        );
        assert_eq!(read("static", text.as_bytes()), Ok(given()));
        let nothing = Given::default();
        assert_eq!(read("none", write("none", &nothing).unwrap().as_bytes()), Ok(nothing));
    }
}
