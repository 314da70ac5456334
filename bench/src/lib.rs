//! The laboratory of Splitter's tests, demonstration and benchmarks: network namespaces, real HTTP servers, a load generator, statistics.
//!
//! Knows nothing of the agent: whatever stands between client and backends is started by the caller. Linux only; [`lab`] needs root.

pub mod cleanup;
pub mod histogram;
pub mod http;
#[cfg(feature = "kernel")]
pub mod kernel;
pub mod lab;
pub mod load;
pub mod poll;
pub mod serve;
pub mod stats;
