//! The kernel as the agent uses it: maps, programs, links, interfaces. The only module that knows aya, bpf(2) or netlink.

mod bpf;
mod memory;
mod plain;
mod tables;

pub use bpf::Kernel;
pub use memory::Memory;
pub use plain::{Plain, bytes_of, bytes_of_mut, read};
pub use tables::*;
