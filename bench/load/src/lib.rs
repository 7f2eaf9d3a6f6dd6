//! What requests cost an API server, ours or another: CPU time of the server for each, beside throughput and latency.
//!
//! ```text
//! rows (what is asked) ─→ plan (requests, prepared) ─→ drive (clients; closed or open loop) ─→ target (connections)
//!                  └─→ world (what has to be there)      └─→ latency        measure: servers' CPU time before and after
//! rounds: sides started, measured in turn ─→ history (lines of JSON) ─→ report: tables; statistics: medians, verdicts
//! ```
//!
//! The load generator knows API servers by HTTP and a kubeconfig alone, and nothing of ours. It doesn't parse what it is answered. Where
//! there are two cores it has one, and the server the others.

pub mod cpu;
pub mod drive;
pub mod flame;
pub mod greedy;
pub mod history;
pub mod latency;
pub mod measure;
pub mod objects;
pub mod plan;
pub mod profile;
pub mod report;
pub mod rounds;
pub mod rows;
pub mod side;
pub mod statistics;
pub mod target;
pub mod watch;
pub mod webhook;
pub mod world;
