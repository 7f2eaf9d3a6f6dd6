//! The only unsafe code: mounts, namespaces, cgroups, netlink, nftables, pidfd.

#![allow(unsafe_code)]
#![warn(clippy::undocumented_unsafe_blocks)]

pub mod block;
pub mod cgroup;
pub mod conntrack;
pub mod detached;
pub mod handed;
pub mod mount;
pub mod net;
pub mod nflog;
pub mod nft;
pub mod open;
pub mod own;
pub mod packet;
pub mod path;
pub mod process;
pub mod program;
pub mod seccomp;
pub mod tcp;
pub mod text;
pub mod thread;
pub mod tree;
pub mod tty;
pub mod wireguard;
