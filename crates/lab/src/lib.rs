//! The laboratory of Splitter's tests, demonstration and benchmarks: network namespaces, real HTTP servers, a load generator, rivals,
//! statistics.
//!
//! Only [`agent`] and [`admin`] know of the agent, its command line and its admin API. Linux only; [`lab`] needs root.
//!
//! | module | what it does |
//! |---|---|
//! | [`lab`] | namespaces, links, routes, processes in them |
//! | [`serve`] | the backend of every test: HTTP/1.1 or UDP |
//! | [`load`] | the load generator |
//! | [`foreign`] | servers and proxies that others wrote |
//! | [`agent`] | a real agent in a node of the lab |
//! | [`admin`] | a client of its admin API |
//! | `faults` | links that lose, double and delay packets (feature `kernel`) |
//! | `kernel` | what the programs cost, by PROG_TEST_RUN (feature `kernel`) |
//! | [`verdict`] | what a verifier says, as a line of JSON |
//! | [`stats`] | shares against what chance allows; CPU time of a run |
//! | [`histogram`] | latencies of a run |
//! | [`http`] | as much of HTTP as the lab speaks to itself |
//! | [`poll`] | the epoll loop under server and load generator |
//! | [`machine`] | where figures were taken |
//! | [`pace`] | how slow this machine is |
//! | [`certificate`] | certificates for tests |
//! | [`cleanup`] | what is undone however a process ends |

pub mod admin;
pub mod agent;
pub mod certificate;
pub mod cleanup;
#[cfg(feature = "kernel")]
pub mod faults;
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
