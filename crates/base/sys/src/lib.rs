//! The only unsafe code: mounts, namespaces, cgroups, netlink, nftables, pidfd.
