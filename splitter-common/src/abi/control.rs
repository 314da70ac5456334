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
    /// `mode: http`: [`http_flag`] bits.
    pub http: u8,
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
    /// The key is the value of a header or cookie (`mode: http`, see [`super::HttpRules::key_name`]); requests without it: the connection.
    pub const VALUE: u8 = 3;
}

/// Values of [`Service::mode`].
pub mod service_mode {
    /// Every connection or datagram flow goes to one backend.
    pub const L4: u8 = 0;
    /// Every HTTP/1.1 request is decided.
    pub const HTTP: u8 = 1;
}

/// Bits of [`Service::http`].
pub mod http_flag {
    /// When no backend of the version can serve, the connection is reset; else the request is answered with 503.
    pub const RESET: u8 = 1;
    /// All backends agree to TCP timestamps (RFC 7323): clients that ask for them get them.
    pub const STAMPS: u8 = 2;
}

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

/// The one value of `CONFIG` (array of 1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// [`super::ABI_VERSION`] of the agent that made the maps. Stays the first field for ever.
    pub abi_version: u32,
    /// How long a backend that refused a connection gets no new one, jiffies.
    pub suspect_ticks: u32,
    /// First port, and number of ports, for SNAT; host order.
    pub snat_port_first: u16,
    pub snat_port_count: u16,
    /// Number of entries in each `TCP` flow map, for the agent's accounting.
    pub max_flows: u32,
    /// Key of the sequence numbers that spliced connections begin with (RFC 6528): random, made once with the maps.
    pub secret: [u64; 2],
    /// Interfaces (bit = ifindex, the first 4,096) whose packets XDP may finish: those that arrive with final checksums.
    pub xdp_ports: [u64; 64],
}

pod!(FrontendKey, Service, MaglevKey, MaglevChunk, RuleKey, Backend, Identity, Iface, NextHop, Config);
