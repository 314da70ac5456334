//! Of any packet.

use crate::packet::Parsed;
use splitter_common::abi::Family;

/// What a packet becomes.
#[derive(Clone, Copy)]
pub struct Translation<F: Family> {
    pub src: F::Words,
    pub dst: F::Words,
    /// Both ports as they will stand in the packet.
    pub ports: u32,
    /// Version whose counters the packet goes to.
    pub version: u32,
    /// Slot of the next hop; 0: see `neighbour`.
    pub nexthop: u32,
    /// Interface whose neighbour has to be resolved, when there is no slot; 0: the stack forwards.
    pub neighbour: u32,
    pub reverse: bool,
}

impl<F: Family> Translation<F> {
    /// None yet.
    #[inline(always)]
    pub fn empty(p: &Parsed<F>) -> Self {
        Self { src: p.key.src, dst: p.key.dst, ports: p.key.ports, version: 0, nexthop: 0, neighbour: 0, reverse: false }
    }
}

/// What `nat::snat::allocate` looks for: in memory, so that little lies on the stack under the rest.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Probe {
    pub first: u32,
    pub count: u32,
    pub seed: u32,
    pub result: u32,
}

/// What is still to be summed of a packet: kept in memory of the CPU for want of stack.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Rest {
    /// Part of the frame.
    pub from: u32,
    pub len: u32,
    /// Sum of all else that the checksum covers.
    pub sum: u64,
    /// 1: the part is in `sum`, and does not belong there.
    pub less: u32,
    pub pad: u32,
}
