//! Flow tables: what the kernel remembers of a connection, per direction.
//!
//! | map (`4` and `6`) | key | value | holds |
//! |---|---|---|---|
//! | `TCP` | [`FlowKey`] | [`Flow`] | established TCP, one entry a direction |
//! | `UDP` | [`FlowKey`] | [`Flow`] | UDP |
//! | `HALF` | [`FlowKey`] | [`HalfOpen`] | TCP until the client's handshake ends; the forward entry stays for the first response |
//! | `CLOSING` | [`FlowKey`] | [`Flow`] | TCP after both FINs or a RST |
//! | `SNAT` | [`FlowKey`] | [`Snat`] | the other half of the translation, for flows with [`flow_flag::SNAT`] |
//! | `FRAGMENTS` | [`FragmentKey`] | u32 (ports) | ports of a fragmented datagram |
//!
//! All are LRU hashes with limits of their own, so that none can evict another's entries. `HALF` also holds UDP flows and established TCP
//! that wait for their first answer: eviction there costs those a sample, and when the trial began.
//! Each direction has its entry: the forward key is the packet as the client sent it, the reverse key is the packet as the backend
//! sends it. Words are raw: loaded from the packet in network order, never swapped.

use super::pod;
use core::{fmt::Debug, hash::Hash};

/// An IP address of one family as 32-bit words in network order.
pub trait Family: Copy + Eq + Hash + Debug + 'static {
    type Words: Copy + Eq + Hash + Debug + AsRef<[u32]> + 'static;
    const IPV6: bool;
}

/// IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum V4 {}
/// IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum V6 {}

impl Family for V4 {
    type Words = [u32; 1];
    const IPV6: bool = false;
}
impl Family for V6 {
    type Words = [u32; 4];
    const IPV6: bool = true;
}

/// Key of all flow maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey<F: Family> {
    pub src: F::Words,
    pub dst: F::Words,
    /// Source and destination port as they stand in the packet, one load: in memory the source port's two bytes come first.
    pub ports: u32,
    /// IP protocol number.
    pub proto: u32,
}

/// One direction of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<F: Family> {
    /// Forward: the backend, new destination. Reverse: the VIP, new source. The other address stays, unless [`flow_flag::SNAT`].
    pub peer: F::Words,
    /// Network order, belongs to `peer`.
    pub peer_port: u16,
    /// Index into `NEXTHOPS`; 0: look it up; [`STACK`]: the stack forwards or delivers; [`VIA_STACK`]: it does so for all of the flow's life.
    pub nexthop: u16,
    /// The backend, with [`flow_flag`] bits.
    pub owner: Owner,
    /// When this direction was last seen: the kernel's jiffies, wrapping, written about once a second. Userspace reads the same clock by
    /// running the program `splitter_clock`.
    pub last: u32,
}

impl<F: Family> Flow<F> {
    pub const fn backend(&self) -> u32 {
        self.owner.backend()
    }
    pub const fn flags(&self) -> u8 {
        self.owner.flags()
    }
    pub const fn is(&self, flag: u8) -> bool {
        self.owner.is(flag)
    }
}

/// Whose a flow is, and what is to be known of it, in one word, so that both are written at once: a backend's id in the low 24 bits, eight flags above.
/// Kernel programs on several CPUs set and clear flags by atomic operations on [`Owner::word`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner(u32);

impl Owner {
    /// Nobody's, without flags.
    pub const NONE: Self = Self(0);

    pub const fn new(backend: u32, flags: u8) -> Self {
        Self(backend & 0xff_ffff | Self::bits(flags))
    }
    /// Flags in their place in the word.
    #[inline(always)]
    pub const fn bits(flags: u8) -> u32 {
        (flags as u32) << 24
    }
    /// As it was read by an atomic operation.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0
    }
    /// Backend id; 0: none.
    #[inline(always)]
    pub const fn backend(self) -> u32 {
        self.0 & 0xff_ffff
    }
    #[inline(always)]
    pub const fn flags(self) -> u8 {
        (self.0 >> 24) as u8
    }
    /// Whether one of the flags is set.
    #[inline(always)]
    pub const fn is(self, flags: u8) -> bool {
        self.0 >> 24 & flags as u32 != 0
    }
    /// Whether all of the flags are set.
    #[inline(always)]
    pub const fn has_all(self, flags: u8) -> bool {
        self.0 & Self::bits(flags) == Self::bits(flags)
    }
    /// With more flags.
    #[inline(always)]
    pub const fn with(self, flags: u8) -> Self {
        Self(self.0 | Self::bits(flags))
    }
}

/// [`Owner::new`].
pub const fn owner(backend: u32, flags: u8) -> Owner {
    Owner::new(backend, flags)
}

#[cfg(test)]
mod tests {
    use super::Owner;

    #[test]
    fn an_owner_is_a_backend_and_flags() {
        let owner = Owner::new(0x12_3456, 0x84);
        assert_eq!((owner.word(), owner.backend(), owner.flags()), (0x8412_3456, 0x12_3456, 0x84));
        assert!(owner.is(0x80) && owner.is(0x81) && !owner.is(0x13));
        assert!(owner.has_all(0x84) && !owner.has_all(0x85) && owner.has_all(0));
        assert_eq!(owner.with(1), Owner::from_word(0x8512_3456));
        assert_eq!(Owner::new(u32::MAX, 0).backend(), 0xff_ffff);
    }
}

/// Bits of [`Flow::flags`].
pub mod flow_flag {
    /// Backend to client.
    pub const REVERSE: u8 = 1;
    /// The other address and port change too: see `SNAT`.
    pub const SNAT: u8 = 2;
    /// No payload seen in this direction yet.
    pub const YOUNG: u8 = 4;
    /// FIN seen in this direction.
    pub const FIN: u8 = 8;
    /// FIN seen in the other direction.
    pub const PEER_FIN: u8 = 16;
    /// To be reset: the agent asked, by `onWeightChange`.
    pub const RESET: u8 = 32;
    /// The other direction has answered (UDP; half-open TCP: the backend's SYN-ACK was seen). The reverse entry of established TCP: the trial
    /// was answered, and may still be cut.
    pub const REPLIED: u8 = 64;
    /// The flow came back from `CLOSING`, and was counted as closed before (forward entries of `TCP`).
    pub const RETURNED: u8 = 64;
    /// The client has said something since the RST that ended the flow (forward entries of `CLOSING`).
    pub const SPOKEN: u8 = 4;
    /// The handshake is over (entries of `HALF` only: kept to time the first response).
    pub const ESTABLISHED: u8 = 128;
    /// A rule chose the version (entries of `TCP` and `UDP`).
    pub const RULED: u8 = 128;
    /// The backend refused the SYN, and the client may send it again: then it goes to another one (forward entries of `HALF`).
    pub const REFUSED: u8 = 8;
    /// The backend's answer came in by the interface behind which it is (forward entries of `HALF`).
    pub const PROVEN: u8 = 16;
}

/// Value of `HALF`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfOpen<F: Family> {
    pub flow: Flow<F>,
    /// Sequence number of the backend's SYN-ACK plus one, host order: what the client must acknowledge. Forward entry only.
    pub expect: u32,
    /// What the connection remembers of its trial, see [`super::trial`]; 0: it was begun by a packet in the middle. Forward entry only.
    pub trial: u32,
    /// Nanoseconds of CLOCK_MONOTONIC: of the SYN, then of the first request byte. 8-byte aligned in both families.
    pub stamp: u64,
}

/// Value of `SNAT`: the half of the translation that a compact [`Flow`] has no room for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snat<F: Family> {
    /// Forward: the node's address, new source. Reverse: the client, new destination.
    pub addr: F::Words,
    /// Network order.
    pub port: u16,
    pub pad: u16,
}

/// Key of `FRAGMENTS` (RFC 791, 3.2; RFC 8200, 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey<F: Family> {
    pub src: F::Words,
    pub dst: F::Words,
    /// Identification as it stands in the packet (IPv4: 16 bits).
    pub id: u32,
    pub proto: u32,
}

/// [`Flow::nexthop`] where routing says that only the stack can go on.
pub const STACK: u16 = u16::MAX;

/// [`Flow::nexthop`], in both directions, of a flow that goes through the node's stack (`path: stack`): translated at ingress of the interface that
/// its client is behind, and the other way at its egress, so that netfilter sees the client and the backend. No slot has this number, so that what
/// is redirected does not pay for the question. Fixed by the flow's first packet: a firewall that follows connections must see all of one.
pub const VIA_STACK: u16 = u16::MAX - 1;

const _: () = assert!(VIA_STACK as u32 >= super::NEXTHOP_SLOTS);

/// Age at which a flow looks its route up again and writes [`Flow::last`], in jiffies: 1 s at 250 Hz, 0.25 s to 2.5 s elsewhere.
pub const REFRESH_TICKS: u32 = 250;

pod!(FlowKey<V4>, FlowKey<V6>, Flow<V4>, Flow<V6>, HalfOpen<V4>, HalfOpen<V6>, Snat<V4>, Snat<V6>, FragmentKey<V4>, FragmentKey<V6>);
