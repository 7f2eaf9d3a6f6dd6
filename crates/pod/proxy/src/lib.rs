//! Services and endpoints become nftables rules: plain data first, then an atomic, incremental batch.
