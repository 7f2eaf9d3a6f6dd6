//! Whole clusters in one thread and in virtual time; real clusters in network namespaces.
