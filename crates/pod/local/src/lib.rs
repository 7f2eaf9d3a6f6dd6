//! Storage of a node's own disk.
//!
//! * [`pool`]: volumes and snapshots as files of a directory. [`driver`]: the same by CSI. [`serve`]: its sockets.
//! * [`provision`]: what sidecars do for other drivers: claims get volumes, volumes go with their claims and grow, and the scheduler
//!   learns how much room there is. It knows a driver only by its socket, and does what belongs to its own node.
//!
//! Nothing here knows the kubelet: it finds the driver as it finds any other.

pub mod driver;
pub mod pool;
pub mod provision;
pub mod serve;
