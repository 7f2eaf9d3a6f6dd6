//! What a pod may use of the node: amounts, quality of service, cgroups, admission and in-place resize.

pub mod admit;
pub mod allocation;
pub mod cgroup;
pub mod pod;
pub mod qos;
pub mod quantity;
