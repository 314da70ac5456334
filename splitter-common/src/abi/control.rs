//! What the agent writes and the kernel reads: frontends, services, versions' tables, backends, interfaces, configuration.

use super::{Addr, pod};

/// Most versions that one service can have.
pub const MAX_VERSIONS: usize = 8;
/// Backend ids are 24 bits wide (a flow stores one beside eight flag bits).
pub const MAX_BACKENDS: u32 = 1 << 24;

/// Key of `FRONTENDS`: what a client connects to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrontendKey {
    /// VIP, IPv4 mapped.
    pub addr: Addr,
    /// Network order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub proto: u8,
    pub pad: u8,
}

/// One version's share of a service, inside [`Service`]. Empty when it owns no interval (`end` equals the previous slot's).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VersionSlot {
    /// End (exclusive) of the interval of buckets, 0..=2^32. See `decide::bucket`.
    pub end: u64,
    /// Version id: index of the counters, part of the Maglev key.
    pub version: u32,
    /// Entries of the Maglev table; 0: no backend takes new flows; 1: no table, `table` is the backend id.
    pub size: u32,
    /// Generation of the Maglev table in `MAGLEV`, or the only backend's id when `size` is 1.
    pub table: u32,
    /// Backends that take new flows: at most half of them are suspect at a time.
    pub ready: u32,
}

/// Value of `SERVICES` (key: service id, u32): everything the decision needs, replaced whole by one map write.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Salt of the bucket hash: a stable function of the service's name, so that every node agrees.
    pub salt: u64,
    /// [`split_by`] constant.
    pub split_by: u8,
    /// [`snat`] constant.
    pub snat: u8,
    /// Slots in use.
    pub version_count: u8,
    /// 1 when `RULES` is to be looked at for this service. The agent writes the rules before it sets this, and clears it before it removes
    /// them. With `mode: http` 1 always: `HTTP_RULES` has a value for each service, if an empty one.
    pub has_rules: u8,
    /// [`service_mode`] constant.
    pub mode: u8,
    /// [`service_flag`] bits.
    pub flags: u8,
    /// `mode: http`: largest TCP segment (payload bytes) that the paths to all backends carry; what clients are told.
    pub mss: u16,
    pub versions: [VersionSlot; MAX_VERSIONS],
    /// `mode: http`, with [`super::trial::timing::CODES`]: statuses that count as failures; bit 0 is 100.
    pub failing: [u64; CODE_WORDS],
}

/// Words of [`Service::failing`]; a power of two.
pub const CODE_WORDS: usize = 8;

/// Values of [`Service::split_by`].
pub mod split_by {
    /// The key is the client's address and port with the frontend's.
    pub const CONNECTION: u8 = 0;
    /// The key is the client's address.
    pub const CLIENT_IP: u8 = 1;
    /// The key is the request: every one is drawn anew (`mode: http`).
    pub const REQUEST: u8 = 2;
    /// The key is the value of a header or cookie (`mode: http`, see [`HttpRules::key_name`](super::super::HttpRules::key_name)); requests without it: the connection.
    pub const VALUE: u8 = 3;
}

/// Values of [`Service::mode`].
pub mod service_mode {
    /// Every connection or datagram flow goes to one backend.
    pub const L4: u8 = 0;
    /// Every HTTP/1.1 request is decided.
    pub const HTTP: u8 = 1;
}

/// Bits of [`Service::flags`]; all but the last are read with `mode: http` alone.
pub mod service_flag {
    /// When no backend of the version can serve, the connection is reset; else the request is answered with 503.
    pub const RESET: u8 = 1;
    /// All backends agree to TCP timestamps (RFC 7323): clients that ask for them get them.
    pub const STAMPS: u8 = 2;
    /// What becomes of a head that is too long to be read: its request is given by weight, or answered with 431; neither: it goes to the baseline.
    pub const LONG_BY_WEIGHT: u8 = 4;
    pub const LONG_REFUSED: u8 = 8;
    /// Shift of the baseline's slot, three bits.
    pub const BASELINE: u32 = 4;
    /// New flows go through the node's stack (`path: stack`, [`VIA_STACK`](super::super::VIA_STACK)).
    pub const STACK: u8 = 128;
}

const _: () = assert!(MAX_VERSIONS == 8);

/// Values of [`Service::snat`].
pub mod snat {
    /// Source translation only where client and backend sit behind the same interface, so that the reply would bypass the node.
    pub const AUTO: u8 = 0;
    pub const ALWAYS: u8 = 1;
    pub const NEVER: u8 = 2;
}

/// Key of `MAGLEV`. A new table of a version is written under a new generation, then `SERVICES` is switched to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MaglevKey {
    pub version: u32,
    pub table: u32,
    /// Slot divided by [`MAGLEV_CHUNK`].
    pub chunk: u32,
}

/// Slots in a value of `MAGLEV`.
pub const MAGLEV_CHUNK: usize = 64;

/// Value of `MAGLEV`: backend ids.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaglevChunk {
    pub backends: [u32; MAGLEV_CHUNK],
}

/// Key of `RULES` (LPM trie; the kernel's prefix length stands before it): source networks of a service. The value is a version's
/// index in [`Service::versions`] (u32).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleKey {
    /// Bits that count, [`RULE_PREFIX_BASE`] and the network's (IPv4: 96 and its own).
    pub prefix_len: u32,
    /// Service id, big-endian so that it is a prefix.
    pub service: [u8; 4],
    pub addr: Addr,
}

/// Bits of [`RuleKey::service`].
pub const RULE_PREFIX_BASE: u32 = 32;

/// Value of `BACKENDS` (array, index: backend id). Id 0 is never used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// IPv4 mapped.
    pub addr: Addr,
    /// Network order.
    pub port: [u8; 2],
    /// [`backend_state`] constant.
    pub state: u8,
    /// How its pending trials are entered: [`super::trial::timing`].
    pub timing: u8,
    /// Version id.
    pub version: u32,
    /// Service id.
    pub service: u32,
    /// Jiffies after which a trial without an answer is overdue; 0: never.
    pub unanswered: u32,
}

/// Values of [`Backend::state`].
pub mod backend_state {
    /// The slot is free; flows that still name it are given up.
    pub const NONE: u8 = 0;
    /// Takes new flows.
    pub const READY: u8 = 1;
    /// Keeps its flows, takes no new one.
    pub const DRAINING: u8 = 2;
    /// Gives up its flows.
    pub const DOWN: u8 = 3;
    /// `mode: http`: is in the policy no more, while its service is. Finishes what it has begun; the next request of each connection leaves it.
    pub const LEAVING: u8 = 4 | DRAINING;

    /// `mode: http`: whether a backend finishes what it has begun.
    #[inline(always)]
    pub const fn finishes(state: u8) -> bool {
        // One comparison for three states.
        (state & 3).wrapping_sub(READY) < 2
    }
}

#[cfg(test)]
mod tests {
    use super::backend_state::*;

    #[test]
    fn who_is_down_or_gone_finishes_nothing() {
        let states = [NONE, READY, DRAINING, DOWN, LEAVING];
        assert_eq!(states.map(finishes), [false, true, true, false, true]);
    }
}

/// Value of `IDS` (key: 128-bit hash of the object's path, see the agent's plan): which id a named object has, so that a restarted
/// agent gives it the same one. Not read by the kernel programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// [`identity_kind`] constant.
    pub kind: u32,
    pub id: u32,
}

/// Values of [`Identity::kind`].
pub mod identity_kind {
    pub const SERVICE: u32 = 1;
    pub const VERSION: u32 = 2;
    pub const BACKEND: u32 = 3;
}

/// Bits of the values of `VIPS` (key: [`Addr`]): what the node does with packets to an address of a frontend that no service has.
pub mod vip_flag {
    /// Echo requests are answered.
    pub const PING: u32 = 1;
    /// They are left to the stack.
    pub const PASS: u32 = 2;
}

/// Value of `IFACES` (hash, key: ifindex u32): what the agent knows about an interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Iface {
    /// [`iface_flag`] bits.
    pub flags: u32,
    /// Bytes, without the link header.
    pub mtu: u32,
    /// Source address for SNAT out of this interface, network order; 0: none.
    pub addr4: [u8; 4],
    /// Of a port of a bridge or bond: the interface above all that routes name (its ifindex); else 0.
    pub upper: u32,
    /// As `addr4`.
    pub addr6: [u8; 16],
}

/// Bits of [`Iface::flags`] and [`NextHop::flags`].
pub mod iface_flag {
    /// The other end is a veth in another network namespace: TC may use `bpf_redirect_peer` (Linux 5.10).
    pub const PEER: u32 = 1;
    /// XDP may transmit out of it (`NETDEV_XDP_ACT_NDO_XMIT`, or generic mode).
    pub const XDP_TRANSMIT: u32 = 2;
    /// Frames arrive with final checksums, so XDP may finish packets that come in by it (see [`super::Config::xdp_ports`]).
    pub const XDP_FORWARD: u32 = 4;
}

/// Value of `NEXTHOPS` (array) and of `NEXTHOP_OWNERS` (hash, key: slot u32, inserted once: it says who owns the slot).
/// Slot 0 is never used: it means "not known, look it up".
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHop {
    pub ifindex: u32,
    /// Destination, then source MAC address, as on the wire.
    pub macs: [u32; 3],
    /// Largest IP packet, bytes.
    pub mtu: u16,
    /// [`iface_flag`] bits of the interface.
    pub flags: u16,
    /// When it was last found by fib lookup, jiffies.
    pub checked: u32,
}

/// Slots of `NEXTHOPS`; a power of two.
pub const NEXTHOP_SLOTS: u32 = 4096;

/// Nanoseconds of CLOCK_MONOTONIC in a step of the counter that cookies hold, as a shift: 68.7 s. The present and the last step are good.
pub const COOKIE_STEP: u32 = 36;
/// Steps in an epoch, as a shift: 9 min. Each epoch has one of the two keys in [`Config::cookies`], in turn. An agent replaces the other one; without an
/// agent both go on.
pub const COOKIE_EPOCH: u32 = 3;

/// Which key a counter's cookies have.
#[inline(always)]
pub const fn cookie_epoch(counter: u32) -> u32 {
    counter >> COOKIE_EPOCH & 1
}

/// The key in [`Config::cookies`] that may be replaced at a time of CLOCK_MONOTONIC, nanoseconds: the one that is not in use, while no cookie of it is good any
/// more and its own turn is a step away at least. `None`: not now.
pub const fn cookie_key_to_replace(now: u64) -> Option<u32> {
    let counter = (now >> COOKIE_STEP) as u32;
    let step = counter & ((1 << COOKIE_EPOCH) - 1);
    if step >= 2 && step <= 6 { Some(1 - cookie_epoch(counter)) } else { None }
}

/// The one value of `CONFIG` (array of 1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// [`super::ABI_VERSION`] of the agent that made the maps. Stays the first field for ever; so do the keys below at their offsets, which an agent takes
    /// over from whatever layout.
    pub abi_version: u32,
    /// How long a backend that refused a connection gets no new one, jiffies.
    pub suspect_ticks: u32,
    /// First port, and number of ports, for SNAT; host order.
    pub snat_port_first: u16,
    pub snat_port_count: u16,
    /// Number of entries in each `TCP` flow map, for the agent's accounting.
    pub max_flows: u32,
    /// Key of names that nobody is to guess: random, made once with the maps.
    pub secret: [u64; 2],
    /// Keys of the sequence numbers that spliced connections begin with (RFC 6528): random. [`cookie_epoch`] says which of them is in use.
    pub cookies: [[u64; 2]; 2],
    /// Interfaces whose packets XDP may finish: those that arrive with final checksums. At the lowest bits of each one's index its [`xdp_port`].
    pub xdp_ports: [u64; XDP_PORTS as usize],
}

/// Entries of [`Config::xdp_ports`]; a power of two. Of two interfaces that would have the same, one goes by TC.
pub const XDP_PORTS: u32 = 256;

/// An entry of [`Config::xdp_ports`]: an interface and its own link-layer address, to which its frames must be sent; as 32 and 16 bits are loaded
/// from a frame. Never 0.
#[inline(always)]
pub const fn xdp_port(ifindex: u32, first: u32, last: u16) -> u64 {
    first as u64 | (last as u64) << 32 | ((ifindex / XDP_PORTS) as u64 & 0x7fff) << 48 | 1 << 63
}

pod!(FrontendKey, Service, MaglevKey, MaglevChunk, RuleKey, Backend, Identity, Iface, NextHop, Config);
