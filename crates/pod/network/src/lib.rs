//! The pod network: bridge, addresses, routes, host ports.
