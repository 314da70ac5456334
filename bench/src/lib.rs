//! The laboratory of Splitter's tests, demonstration and benchmarks: network namespaces, real HTTP servers, a load generator, statistics.
//!
//! Only [`agent`] knows of the agent, and only its command line. Linux only; [`lab`] needs root.

pub mod agent;
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
