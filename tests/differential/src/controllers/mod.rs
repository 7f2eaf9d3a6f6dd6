//! The same objects and the same nodes under kube-controller-manager and under our controllers, each over a server of its
//! own, and what differs in what they have made of them.
//!
//! `scenario` is what happens, as data, in `tests/differential/controllers`. `drive` plays it: it makes, changes and deletes
//! objects, and goes on when nothing changes any more. `player` is the nodes and what their kubelets would say. `seen`
//! follows all objects of a server; `mask` takes from them what is each run's own; `outcome` is what is left, and compares.
//! `managers` starts the programs, `run` goes through all scenarios and goes on where it was interrupted; `recorded` keeps
//! what upstream's left.
//!
//! A player needs a client of an API server and nothing else: so the same scenarios are played in virtual time over ours, and
//! held to what was recorded of upstream's.

pub mod api;
pub mod drive;
pub mod managers;
pub mod mask;
pub mod outcome;
pub mod player;
pub mod recorded;
pub mod run;
pub mod scenario;
pub mod seen;
