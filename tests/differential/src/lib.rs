//! The machine that finds differences: the same requests to kube-apiserver (the peer) and to ours, and what differs in the
//! answers, grouped so that one cause shows once.
//!
//! `world` is what both servers have in them, `generate` makes cases from the schema table and sound objects, `side` asks a
//! server, `answer` masks what is each server's own, `compare` finds differences, `report` groups them and knows those that
//! have a reason, `shrink` makes a group's example small. `recorded` holds a sample of the peer's answers, against which
//! `cargo test` holds ours without a peer.
//!
//! It knows the API only: nothing here looks into a server or its store.

pub mod answer;
pub mod case;
pub mod compare;
pub mod controllers;
pub mod generate;
pub mod peer;
pub mod recorded;
pub mod report;
pub mod run;
pub mod scheduler;
pub mod shrink;
pub mod side;
pub mod world;
