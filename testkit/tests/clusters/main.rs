//! What a cluster promises, held against the whole control plane in virtual time.

mod attaching;
mod autoscaling;
mod bgp;
mod certificates;
mod chaos;
mod cluster_policies;
mod crashes;
mod deployments;
mod devices;
mod disruption;
mod garbage;
mod jobs;
mod load_balancers;
mod migrations;
mod namespaces;
mod nodes;
mod outages;
mod pools;
mod scale;
mod scheduling;
mod services;
mod simulated;
mod snapshots;
mod storm;
mod tokens;
mod workloads;
