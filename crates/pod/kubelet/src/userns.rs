//! User namespaces: each pod that asks for one gets 65,536 host ids of its own, which are remembered beside its data.

use crate::kubelet::Kubelet;
use crate::pods;
use k8s_openapi::api::core::v1::Pod;
use keelson_cri::v1 as cri;
use parking_lot::Mutex;
use std::collections::HashMap;

const LENGTH: u32 = 65_536;
/// The first range belongs to the host itself.
const FIRST: u32 = 1;
const LAST: u32 = 1024;

#[derive(Default)]
pub struct Ranges(Mutex<HashMap<String, u32>>);

impl Ranges {
    /// The pod's mapping; `None` for a pod that runs as the host's users.
    pub fn mapping(&self, kl: &Kubelet, pod: &Pod) -> Result<Option<cri::UserNamespace>, String> {
        if !pods::wants_user_namespace(pod) {
            return Ok(None);
        }
        let uid = pods::uid(pod);
        let file = kl.layout.pod(uid).join("userns");
        let mut taken = self.0.lock();
        let index = match taken.get(uid) {
            Some(i) => *i,
            None => {
                let known = kl
                    .host
                    .read(&file, 64)
                    .ok()
                    .and_then(|d| String::from_utf8(d).ok()?.trim().parse().ok());
                let index = known
                    .or_else(|| (FIRST..LAST).find(|i| !taken.values().any(|t| t == i)))
                    .ok_or("no range of user ids is left for the pod's user namespace")?;
                kl.host
                    .write(&file, index.to_string().as_bytes(), 0o600)
                    .map_err(|e| format!("remembering the pod's user ids: {e}"))?;
                taken.insert(uid.to_owned(), index);
                index
            }
        };
        let ids = vec![cri::IdMapping {
            host_id: index * LENGTH,
            container_id: 0,
            length: LENGTH,
        }];
        let mode = cri::NamespaceMode::Pod as i32;
        Ok(Some(cri::UserNamespace {
            mode,
            uids: ids.clone(),
            gids: ids,
        }))
    }

    /// Takes note of the ranges of pods that were running before, so that none is given twice.
    pub fn restore(&self, kl: &Kubelet) {
        for uid in kl.host.list_dir(&kl.layout.pods()).unwrap_or_default() {
            let file = kl.layout.pod(&uid).join("userns");
            if let Some(index) = kl
                .host
                .read(&file, 64)
                .ok()
                .and_then(|d| String::from_utf8(d).ok()?.trim().parse().ok())
            {
                self.0.lock().insert(uid, index);
            }
        }
    }

    pub fn release(&self, uid: &str) {
        self.0.lock().remove(uid);
    }
}
