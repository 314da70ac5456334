//! One IP version with all that the pipeline does to it. The traits stand here, below those that ask for them; how each version does it stands in
//! `answer` and `nat::icmp`.

use crate::{
    bytes::{Packet, Ref},
    packet::Ip,
    state::Translation,
};
use splitter_common::abi::{FlowKey, Iface, V4, V6};

/// How the answers of one IP version look.
pub trait Answer: Ip {
    /// Writes link and network header of a packet back to the sender of this one; `payload` bytes follow.
    fn turn_round<P: Packet>(packet: &mut P, key: &FlowKey<Self>, proto: u8, payload: u32) -> bool
    where
        Self: Sized;
    /// Writes the length of what follows the network header.
    fn set_payload_length<P: Packet>(packet: &mut P, payload: u32) -> bool
    where
        Self: Sized;
    /// Bytes that an ICMP error puts before the quoted packet: network and ICMP header.
    const ERROR: u32;
    /// Writes the ICMP header behind the network header; `quoted` bytes of the old packet follow it. `what`: see [`mod@crate::answer::error`].
    fn error_header<P: Packet>(packet: &mut P, key: &FlowKey<Self>, what: u32, quoted: u32) -> bool
    where
        Self: Sized;
    const ICMP: u8;
    /// Types of echo requests and of their replies.
    const ECHO: [u8; 2];
    /// The node's address on an interface; zeros: none.
    fn address(iface: Ref<Iface>) -> Self::Words;
    /// Whether an answer may be sent to an address: not to many, nor to nobody (RFC 1122, 3.2.2; RFC 4443, 2.4).
    fn answerable(words: &Self::Words) -> bool;
}

/// How ICMP errors of one IP version look.
pub trait IcmpError: Ip {
    fn is_error(kind: u8) -> bool;
    /// Whether the error says that the addressee cannot be reached, whatever the size of the packet.
    fn refuses(kind: u8, code: u8) -> bool;
    /// Fills the key of the quoted packet, turned round; answers where its transport header lies, `None` when it is not TCP or UDP.
    fn quoted<P: Packet>(packet: &mut P, at: usize, key: &mut FlowKey<Self>) -> Option<u32>
    where
        Self: Sized;
    /// Writes the quoted network header's addresses; answers what that adds to the ICMP checksum.
    fn write_quoted<P: Packet>(packet: &mut P, at: usize, key: &FlowKey<Self>, t: &Translation<Self>) -> Option<u64>
    where
        Self: Sized;
    /// Writes the outer addresses; answers what that adds to the ICMP checksum.
    fn write_outer<P: Packet>(packet: &mut P, old: &FlowKey<Self>, t: &Translation<Self>) -> Option<u64>
    where
        Self: Sized;
}

/// See the module.
pub trait Network: Answer + IcmpError {}
impl Network for V4 {}
impl Network for V6 {}
