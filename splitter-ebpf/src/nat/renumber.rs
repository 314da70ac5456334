//! What a translation does besides addresses and ports.

use crate::bytes::Packet;

/// What a translation does to the TCP header besides the ports. Generic, so that layer 4 pays nothing.
pub trait Renumber {
    /// Rewrites the header at `l4` and returns the difference for its checksum.
    fn apply<P: Packet>(&self, packet: &mut P, l4: u32) -> u64;
}

/// Nothing: layer 4.
impl Renumber for () {
    #[inline(always)]
    fn apply<P: Packet>(&self, _packet: &mut P, _l4: u32) -> u64 {
        0
    }
}
