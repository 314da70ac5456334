//! The kernel objects that the build script built.

/// The programs of the node.
pub static SPLITTER: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/splitter"));

/// What tests break the network with; no part of the agent.
pub static FAULTS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/faults"));

/// The folder of all of them, on the machine of the build: for tests and benchmarks.
pub const FOLDER: &str = env!("OUT_DIR");
