//! Headers, parsed once into [`Parsed`]. Owns every offset; knows nothing of flows.

pub mod checksum;
#[cfg(target_arch = "bpf")]
pub mod http;
mod ip;
pub mod parse;
pub mod verify;

pub use ip::{Ip, Rewrite};

use splitter_common::abi::{Family, FlowKey};

/// Length of the Ethernet header; VLAN tags are left to the VLAN's interface.
pub const ETHERNET: usize = 14;
/// EtherTypes as they are loaded.
pub const ETHERTYPE_IPV4: u16 = 0x0800u16.to_be();
pub const ETHERTYPE_IPV6: u16 = 0x86ddu16.to_be();
pub const ETHERTYPE_VLAN: u16 = 0x8100u16.to_be();
pub const ETHERTYPE_QINQ: u16 = 0x88a8u16.to_be();

/// ICMP (RFC 792) and ICMPv6 (RFC 4443) as protocols of IP.
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

/// TCP flags (RFC 9293, 3.1).
pub mod tcp {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    /// Pushed data (RFC 9293, 3.9.1.2).
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
    /// The urgent pointer counts.
    pub const URG: u8 = 32;
}

/// A TCP or UDP packet, as far as the pipeline needs it.
#[derive(Clone, Copy)]
pub struct Parsed<F: Family> {
    pub key: FlowKey<F>,
    /// Offset of the transport header; 0 for a later fragment, which has none.
    pub l4: u32,
    /// Bytes of the IP packet (of a GSO packet: as one).
    pub ip_len: u32,
    /// TCP flags; 0 for UDP and later fragments.
    pub flags: u8,
    /// Part of a fragmented datagram: never redirected by XDP.
    pub fragment: bool,
    /// Identification of a first fragment, whose ports the later ones need.
    pub first_fragment: Option<u32>,
}

impl<F: Family> Parsed<F> {
    /// To be filled by `parse`.
    #[inline(always)]
    pub fn empty(addresses: F::Words) -> Self {
        let key = FlowKey { src: addresses, dst: addresses, ports: 0, proto: 0 };
        Self { key, l4: 0, ip_len: 0, flags: 0, fragment: false, first_fragment: None }
    }
}

impl<F: Family> Parsed<F> {
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.key.proto == splitter_common::abi::TCP as u32
    }
    /// Source port as loaded.
    #[inline(always)]
    pub fn sport(&self) -> u16 {
        source_port(self.key.ports)
    }
    /// Destination port as loaded.
    #[inline(always)]
    pub fn dport(&self) -> u16 {
        destination_port(self.key.ports)
    }
}

/// Source port (as loaded) of a pair of ports (as loaded in one word).
#[inline(always)]
pub const fn source_port(ports: u32) -> u16 {
    if cfg!(target_endian = "little") { ports as u16 } else { (ports >> 16) as u16 }
}
/// As [`source_port`].
#[inline(always)]
pub const fn destination_port(ports: u32) -> u16 {
    if cfg!(target_endian = "little") { (ports >> 16) as u16 } else { ports as u16 }
}
/// The word that holds two ports in their order in the packet.
#[inline(always)]
pub const fn ports(source: u16, destination: u16) -> u32 {
    if cfg!(target_endian = "little") { source as u32 | (destination as u32) << 16 } else { (source as u32) << 16 | destination as u32 }
}
