//! The laboratory of Splitter's tests, demonstration and benchmarks: network namespaces, real HTTP servers, a load generator, statistics.
//!
//! Only [`agent`] and [`admin`] know of the agent, its command line and its admin API. Linux only; [`lab`] needs root.

pub mod admin;
pub mod agent;
pub mod cases;
pub mod cleanup;
pub mod foreign;
pub mod histogram;
pub mod http;
#[cfg(feature = "kernel")]
pub mod kernel;
pub mod lab;
pub mod load;
pub mod machine;
pub mod pace;
pub mod poll;
pub mod serve;
pub mod stats;
pub mod verdict;
