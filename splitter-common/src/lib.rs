//! What the kernel programs, the agent and the tests share: the map layouts and the decision.
//!
//! Owns every byte layout that crosses between kernel and userspace (`abi`) and every pure function that both sides must compute
//! alike (`decide`, `maglev`, `histogram`). Knows nothing of aya, of I/O or of time.
#![cfg_attr(not(any(test, feature = "user")), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod abi;
pub mod barrier;
pub mod decide;
pub mod filter;
pub mod histogram;
pub mod http;
pub mod maglev;
