//! What the kernel programs, the agent and the tests share: the map layouts and the decision.
//!
//! Owns every byte layout that crosses between kernel and userspace (`abi`) and every pure function that both sides must compute
//! alike (`decide`, `maglev`, `histogram`). Knows nothing of aya, of I/O or of time.
//!
//! | module | what it does |
//! |---|---|
//! | [`abi`] | layouts of the maps, one file for each subject; reasons |
//! | [`decide`] | which version a key belongs to |
//! | [`maglev`] | which backend of a version serves a key |
//! | [`filter`] | the bitmap before all tables |
//! | [`http`] | the scanner of heads and bodies, and the rules about requests |
//! | [`histogram`] | buckets of latencies |
//! | [`barrier`] | what the optimiser must not see, for the verifier |
#![cfg_attr(not(any(test, feature = "std")), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod abi;
pub mod barrier;
pub mod decide;
pub mod filter;
pub mod histogram;
pub mod http;
pub mod maglev;
