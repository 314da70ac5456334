//! The kernel side of Splitter as a library: one pipeline over two seams, [`bytes::Packet`] (a frame and what its hook can do) and
//! [`env::Env`] (maps, time). Compiled for BPF by `main.rs` and for the host by the tests, which run the same code over fake maps.
//!
//! ```text
//! packet::parse -> filter -> flow table -> lb::hit ------------------------------> nat::forward
//!                                     \-> lb::miss (half-open, closing, first) --/
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | [`packet`] | headers, parsed once; every offset; checksums |
//! | [`lb`] | from a frame to a verdict: first packets, known flows, the unusual; where the pipeline begins |
//! | [`nat`] | writing translations: next hops, source ports, ICMP errors |
//! | [`splice`] | connections of `mode: http`: accepted here, read request by request, joined to connections to backends |
//! | [`answer`] | what the node sends back itself: resets, ICMP errors, echo replies |
//! | [`account`] | counters and histograms |
//! | [`trace`] | events for `splitter trace`, notes for `--debug-programs` |
//! | [`verdict`] | what the pipeline says about a packet |
//! | [`network`] | one IP version with all that is done to it |
//! | [`bytes`] | packet pointers and map memory: the only place that touches either |
//! | [`state`] | plain data of the scratch memory and of decisions, below the seam |
//! | [`env`](mod@env) | the seam to maps and clock |
//! | `fake` | both seams in memory, for the tests and for fuzzing |
#![cfg_attr(not(any(test, feature = "fake")), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod account;
pub mod answer;
pub mod bytes;
pub mod env;
pub mod lb;
pub mod nat;
pub mod network;
pub mod packet;
pub mod splice;
pub mod state;
pub mod trace;
pub mod verdict;

#[cfg(any(test, feature = "fake"))]
pub mod fake;
#[cfg(test)]
mod tests;
