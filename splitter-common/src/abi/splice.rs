//! Spliced flows: HTTP connections that the node itself accepted, and their legs to backends.
//!
//! | map (`4` and `6`) | key | value | holds |
//! |---|---|---|---|
//! | `SPLICED` | [`FlowKey`](super::FlowKey), as the client sends | [`Spliced`] | a client's connection |
//! | `ANSWERED` | [`FlowKey`](super::FlowKey), as the client sends | [`Spliced`] | a client that the node has answered itself, until it has closed |
//! | `LEGS` | [`FlowKey`](super::FlowKey), as the backend sends | [`Leg`] | a connection to a backend; a spliced flow has one in use and may have others idle |
//! | `STASHES` (both families) | slot u32 | [`Stash`] | the head of a request until a backend has it |
//! | `STASH_SETS` (both families) | slot / [`STASH_WAYS`] | [`StashSet`] | who has these slots, and since when |
//! | `HEAD_LOSSES` (both families) | [`LossKey`] | u64 | drops and resets for want of a slot, by service and reason |
//! | `SPLICE_LOCKS` (both families) | hash of the client's connection | u64 | who changes a spliced flow: 0 nobody, else 2^32 and the jiffies since when |
//! | `SPENT` (both families) | set u32 | [`CookieSet`] | cookies that have begun a connection |
//! | `HANDSHAKES` (both families) | set u32 | [`CookieSet`] | what clients of a service said in their SYN, while somebody guesses cookies there |
//! | `GUESSES` (both families) | service % [`GUESS_SLOTS`] | [`Guesses`] | how many wrong cookies a service gets |
//!
//! Sequence numbers are in host order. *Client numbers* are those that the client sees, *leg numbers* those that the backend sees.

use super::{Family, Owner, pod};
use crate::http::{HeadText, Scan, chunks::Chunks, lines::Lines};

/// Idle legs that a spliced flow can have besides the one in use.
pub const IDLE_LEGS: usize = 3;

/// Value of `SPLICED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spliced<F: Family> {
    /// The connection as the backend of the leg in use sees it.
    pub src: F::Words,
    pub dst: F::Words,
    pub ports: u32,
    /// As [`super::Flow::nexthop`].
    pub nexthop: u16,
    /// Largest payload of a segment to the client, from its SYN.
    pub mss: u16,
    /// Backend id in the low 24 bits, [`splice_flag`] bits in the high 8.
    pub owner: Owner,
    /// As [`super::Flow::last`].
    pub last: u32,
    /// Client number plus this: leg number. Modulo 2^32.
    pub seq_add: u32,
    /// The same for acknowledgement numbers.
    pub ack_add: u32,
    /// The same for TSecr (RFC 7323, 3.2), with [`tcp_option::STAMPS`]; TSval goes through as it is.
    pub ts_ecr_add: u32,
    /// TSval and TSecr of the client's last request, or of what came behind it while that waits.
    pub ts_val: u32,
    pub ts_ecr: u32,
    /// End of the client's data seen so far. Client number, as all that follow.
    pub next: u32,
    /// End of the request under way: where the next one begins. With [`splice_flag::CHUNKED`], of what is known of it.
    pub body_end: u32,
    /// First byte of the request that waits for its leg.
    pub request_at: u32,
    /// What the client expects next of the response; while a leg is being opened.
    pub ack_base: u32,
    /// Backends of the idle legs; 0: none.
    pub idle: [u32; IDLE_LEGS],
    pub service: u32,
    /// The client's window, as it said it; while a leg is being opened.
    pub window: u16,
    /// Slot of `STASHES` plus 1; 0: none.
    pub stash: u16,
    /// [`splice_state`] constant.
    pub state: u8,
    /// [`tcp_option`] bits: what the client's SYN said, and the method of its request.
    pub options: u8,
    /// The client's window scale (RFC 7323).
    pub scale: u8,
    /// SYNs to backends for the leg that is being opened.
    pub tries: u8,
    /// Where in a chunked body the request under way stands; [`Spliced::body_end`] is the number of the next byte to read.
    pub chunks: Chunks,
    /// Of the request that waits for its leg: see [`super::trial`].
    pub trial: u32,
    /// When the stash was taken, as [`StashSet`] has it: the slot is this flow's as long as it says the same.
    pub stashed: u32,
}

/// Values of [`Spliced::state`] and [`Leg::state`].
pub mod splice_state {
    /// The head is not complete yet.
    pub const GATHERING: u8 = 1;
    /// A SYN is on its way to a backend.
    pub const OPENING: u8 = 2;
    pub const ESTABLISHED: u8 = 3;
    /// The node has answered itself, and waits for the client to close.
    pub const ANSWERED: u8 = 4;
}

/// Bits of [`Spliced::owner`] (above 24).
pub mod splice_flag {
    /// FIN seen of the client.
    pub const FIN: u8 = 1;
    /// FIN seen of the backend in use.
    pub const PEER_FIN: u8 = 2;
    /// Requests are not decided any more: the connection stays with its backend.
    pub const PINNED: u8 = 4;
    /// The node has acknowledged bytes to the client that no backend has yet: they are in the stash.
    pub const STASHED: u8 = 8;
    /// A SYN came for this connection: the client may have begun anew.
    pub const SYN_AGAIN: u8 = 16;
    /// The body of the request under way is chunked and its end not seen.
    pub const CHUNKED: u8 = 32;
    /// The agent asks that the connection be reset at its next packet.
    pub const RESET: u8 = 64;
    /// With [`PINNED`]: its bytes are no requests any more, or where one begins is not known. Without, requests are read to be counted.
    pub const BLIND: u8 = 128;
}

/// Bits of [`Spliced::options`].
pub mod tcp_option {
    pub const SCALE: u8 = 1;
    pub const SACK: u8 = 2;
    /// Timestamps, with a value.
    pub const STAMPS: u8 = 4;
    /// The request under way has the method CONNECT.
    pub const CONNECT: u8 = 32;
    /// The backend in use does not scale windows.
    pub const UNSCALED: u8 = 64;
    /// The request under way has the method HEAD.
    pub const HEAD: u8 = 128;
}

/// Window scale that clients are told: up to 8 MB.
pub const LOCAL_SCALE: u8 = 7;

/// What is subtracted from [`Leg::shift`] when the client scales windows and the backend does not.
pub const NOT_SCALED: i8 = 64;

/// Value of `LEGS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg<F: Family> {
    /// The connection as the client sees it: the VIP, the client.
    pub src: F::Words,
    pub dst: F::Words,
    pub ports: u32,
    /// As [`super::Flow::nexthop`].
    pub nexthop: u16,
    /// Largest payload of a segment that the backend takes.
    pub mss: u16,
    /// Backend id in the low 24 bits, [`leg_flag`] bits in the high 8.
    pub owner: Owner,
    pub last: u32,
    /// Leg number plus this: client number. Modulo 2^32.
    pub seq_add: u32,
    /// The same for acknowledgement numbers.
    pub ack_add: u32,
    /// The same for TSval, with timestamps.
    pub ts_val_add: u32,
    /// End of the backend's data seen so far. Leg number, as all that follow.
    pub next: u32,
    /// End of the request under way; of an idle leg, of the last one.
    pub sent: u32,
    /// Where the response that is awaited begins, or how far its head has been read; then, where its body ends, or how far its chunks have been
    /// followed.
    pub body_end: u32,
    /// [`splice_state`] constant.
    pub state: u8,
    /// Left shift of the backend's window to the client's scale; negative: right. [`NOT_SCALED`] below that: the backend does not scale.
    pub shift: i8,
    /// Next hop towards the backend: as [`super::Flow::nexthop`].
    pub forward: u16,
    /// Where in a chunked body the leg stands; [`Leg::body_end`] is the number of the next byte to read.
    pub chunks: Chunks,
    /// Where in the head of the response the leg stands, when that comes in several packets.
    pub lines: Lines,
    /// When that head's first byte came: after the request, units of 1,024 ns.
    pub waited: u32,
    /// Of the last request: see [`super::trial`].
    pub trial: u32,
    /// Interface by which the backend's packets come in, 0: a process of the node; with [`UNPROVEN`] and [`AT_EGRESS`].
    pub side: u32,
    pub pad: u32,
    /// Nanoseconds of CLOCK_MONOTONIC: of the SYN, then of the request. Of an idle leg: the last TSval that its backend is known to have sent.
    pub stamp: u64,
}

/// Bit of [`Leg::side`]: the backend's SYN-ACK has come in by another interface than the one behind which it is, so that nothing that comes by
/// this leg is evidence.
pub const UNPROVEN: u32 = 1 << 31;
/// Bit of [`Leg::side`]: they are translated where they leave for the client, since the leg goes through the stack or its backend is a process of the
/// node. Where they come in they do not look plain for want of it, so that what is redirected does not pay for the question.
pub const AT_EGRESS: u32 = 1 << 30;

/// Bits of [`Leg::owner`] (above 24).
pub mod leg_flag {
    pub const FIN: u8 = 1;
    pub const PEER_FIN: u8 = 2;
    /// The head of a response is expected at [`super::Leg::body_end`].
    pub const AWAIT: u8 = 4;
    /// The response is chunked and its end not seen.
    pub const CHUNKED: u8 = 8;
    /// Where the response ends is not known. With [`AWAIT`]: a 2xx makes the connection a tunnel, as the method is CONNECT.
    pub const UNSURE: u8 = 16;
    /// Not in use: the client's requests go to another leg.
    pub const IDLE: u8 = 32;
    /// As [`super::splice_flag::STASHED`]; or the response came before the backend had all of the request.
    pub const STASHED: u8 = 64;
    /// The request's method is HEAD: its response has no body.
    pub const HEAD: u8 = 128;
}

/// Slots of `STASHES`. A power of two.
pub const STASH_SLOTS: u32 = 2048;
/// Slots of a set: a connection looks for one in a few sets that a keyed hash names. A power of two.
pub const STASH_WAYS: u32 = 16;
/// Entries of `STASH_SETS`.
pub const STASH_SETS: u32 = STASH_SLOTS / STASH_WAYS;

/// Value of `STASH_SETS` (array): a word for each slot, 0: free. The bits are those of [`stash_word`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StashSet {
    pub words: [u64; STASH_WAYS as usize],
}

/// The word of a slot that is taken.
pub mod stash_word {
    /// The slot is taken.
    pub const TAKEN: u64 = 1 << 63;
    /// The client has been told that a part of its head is here, and has no copy of it any more.
    pub const ACKNOWLEDGED: u64 = 1 << 62;
    /// Shift of the service's number, of which the low 16 bits are kept.
    pub const SERVICE: u32 = 32;
    /// Shift of a keyed hash of the client's network, 14 bits.
    pub const NETWORK: u32 = 48;
    /// Bits of service, and of service and network.
    pub const OF_SERVICE: u64 = 0xffff << SERVICE;
    pub const OF_NETWORK: u64 = 0x3fff << NETWORK | OF_SERVICE;

    /// How long a slot is its owner's for sure, counted from the head's first byte and in the clock's units: with acknowledged bytes 10 s,
    /// else 250 ms. Then somebody else may take it.
    pub const LIMIT: u32 = 9_537;
    pub const LIMIT_WHOLE: u32 = 238;
    /// Clocks of CPUs may differ by as much as this.
    const SKEW: u32 = 1_024;

    /// The clock of slots: 2^20 ns of CLOCK_MONOTONIC, about a millisecond.
    #[inline(always)]
    pub const fn clock(nanoseconds: u64) -> u32 {
        (nanoseconds >> 20) as u32
    }

    /// Whether a slot is its owner's for sure.
    #[inline(always)]
    pub const fn is_kept(word: u64, now: u32) -> bool {
        let limit = if word & ACKNOWLEDGED != 0 { LIMIT } else { LIMIT_WHOLE };
        word & TAKEN != 0 && now.wrapping_sub(word as u32).wrapping_add(SKEW) < limit + SKEW
    }
}

/// Words of a [`CookieSet`].
pub const COOKIE_WAYS: usize = 8;
/// Entries of `SPENT`. A power of two.
pub const SPENT_SETS: u32 = 65_536;

/// Entries of `HANDSHAKES`. A power of two.
pub const HANDSHAKE_SETS: u32 = 8_192;

/// Value of `SPENT` and `HANDSHAKES` (arrays): a word for each cookie, 0: free. The low 16 bits say when it was put there, in units of 2^26 ns of
/// CLOCK_MONOTONIC; the rest is of the cookie's hash. In `HANDSHAKES` the 24 bits above the time say what the client said.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CookieSet {
    pub words: [u64; COOKIE_WAYS],
}

/// Entries of `GUESSES`. A power of two; services that share one are guarded together.
pub const GUESS_SLOTS: u32 = 1_024;

/// Value of `GUESSES` (array). Times are in units of 2^30 ns of CLOCK_MONOTONIC.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guesses {
    /// When the last segment with data and a wrong cookie came, and how many have come in that unit.
    pub second: u32,
    pub count: u32,
    /// Until when the service is guarded.
    pub until: u32,
    pub pad: u32,
}

/// Key of `HEAD_LOSSES` (hash).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LossKey {
    pub service: u32,
    /// A [`super::Reason`].
    pub reason: u32,
}

/// Slots of `SPLICE_LOCKS`. A power of two.
pub const SPLICE_LOCKS: u32 = 4096;

/// Value of `STASHES` (array).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stash {
    /// Bytes in use.
    pub len: u32,
    /// Of these, bytes that the node has acknowledged to the client.
    pub acknowledged: u32,
    /// Slot of `SPLICE_LOCKS` plus 1 that its owner works under.
    pub lock: u32,
    /// Backends that failed this request: a bit for each, by its id modulo 32.
    pub tried: u32,
    /// Number of the first byte of the request's end that is kept besides, client number, and how many bytes there are: they lie at the end of the
    /// text's [`crate::http::HEAD_LIMIT`] bytes. What is between is the client's to send again.
    pub tail: u32,
    pub tail_len: u32,
    /// How far the head has been read, and by which rules ([`super::HttpRules::id`]).
    pub scan: Scan,
    pub rules: u64,
    pub text: HeadText,
}

pod!(Spliced<super::V4>, Spliced<super::V6>, Leg<super::V4>, Leg<super::V6>, Stash, StashSet, LossKey, CookieSet, Guesses);
