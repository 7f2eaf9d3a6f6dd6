//! What a pod may use of the node: amounts, quality of service, cgroups, admission and in-place resize.

pub mod admit;
pub mod allocation;
pub mod cgroup;
pub mod memory_qos;
pub mod pod;
pub mod qos;
pub mod quantity;

/// The resource of huge pages of a size in the kernel's spelling: `2MB` is `hugepages-2Mi` in the API's.
pub fn hugepages(size: &str) -> String {
    let size = size.replace("KB", "Ki").replace("MB", "Mi").replace("GB", "Gi");
    format!("hugepages-{size}")
}
