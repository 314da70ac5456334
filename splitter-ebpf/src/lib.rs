//! The kernel side of Splitter as a library: one pipeline over two seams, [`bytes::Packet`] (a frame and what its hook can do) and
//! [`env::Env`] (maps, time). Compiled for BPF by `main.rs` and for the host by the tests, which run the same code over fake maps.
//!
//! ```text
//! packet::parse -> filter -> flow table -> lb::hit ------------------------------> nat::forward
//!                                     \-> lb::miss (half-open, closing, first) --/
//! ```
#![cfg_attr(not(test), no_std)]
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
pub mod trace;
pub mod verdict;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
