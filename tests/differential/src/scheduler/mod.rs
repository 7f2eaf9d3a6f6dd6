//! The same nodes and pods under kube-scheduler and under our scheduler, each over a server of its own, and what differs in what
//! they have decided and told.
//!
//! `scenario` is what there is and what comes, as data in `tests/differential/scheduler`; `random` draws more of it from seeds, so
//! that one node is the best in each. A scheduler sees a whole cluster, so scenarios come one after the other: `drive` makes the
//! nodes, then pod after pod, takes what is left and clears it away. `player` is what kubelets and the controller of volumes would do.
//! Objects, events, masks and reports are those of `controllers`.

pub mod drive;
pub mod player;
pub mod random;
pub mod run;
pub mod scenario;
