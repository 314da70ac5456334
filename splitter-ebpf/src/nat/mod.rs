//! Writing translations into packets, and what they need: next hops, source ports, ICMP errors.

pub mod forward;
pub mod icmp;
pub mod nexthop;
mod renumber;
pub mod snat;

pub use renumber::Renumber;
