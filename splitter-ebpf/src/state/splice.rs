//! Of connections of http.

use splitter_common::abi::{Family, Reason};

/// The option of TCP timestamps (RFC 7323, 3.2). Numbers in host order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamps {
    /// TSval: the sender's clock.
    pub val: u32,
    /// TSecr: what it has heard of the other side's.
    pub ecr: u32,
}

/// A TCP packet to be written.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Out<F: Family> {
    pub src: F::Words,
    pub dst: F::Words,
    /// As they will stand in the packet.
    pub ports: u32,
    pub seq: u32,
    pub ack: u32,
    pub window: u16,
    /// Of a SYN: what it says.
    pub mss: u16,
    pub flags: u8,
    /// [`splitter_common::abi::tcp_option`] bits: of a SYN, all of them; else, timestamps.
    pub options: u8,
    pub scale: u8,
    pub pad: u8,
    pub stamps: Stamps,
    /// Part of the text that follows as payload.
    pub offset: u32,
    pub len: u32,
}

/// What the rounds that write the segments of a stash share, in memory of the CPU for want of stack.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Pieces {
    /// Sequence number of the text's first byte, for the leg.
    pub first: u32,
    /// Bytes of the text, most of a segment, and how many have been sent.
    pub len: u32,
    pub most: u32,
    pub offset: u32,
    /// Not 0: a segment could not be written.
    pub failed: u32,
    /// Sequence number of the request's end that was kept besides, and how much there is of it.
    pub tail: u32,
    pub tail_len: u32,
}

/// What a set holds for a connection that looks for a slot.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Claim {
    /// The word that the connection's slot will have.
    pub word: u64,
    /// Slots of the set that are kept; of these, of the connection's service; of these, of its network.
    pub kept: u32,
    pub of_service: u32,
    pub of_network: u32,
    /// Slots that are free, and that may be taken from their owner; [`splitter_common::abi::STASH_WAYS`]: none.
    pub free: u32,
    pub late: u32,
    /// Why the last set had none.
    pub refused: Reason,
}

/// What a set holds for a cookie.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Seen {
    /// The hash of the cookie that was looked at last.
    pub hash: u64,
    /// Its word; 0: the set has none.
    pub found: u64,
    /// The oldest way, and its age.
    pub oldest: u32,
    pub age: u32,
}

/// Where a request goes, as `splice::request` finds it: to a leg, or the node answers with the status that the number is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// To the leg in use.
    Stay = 0,
    /// To a leg that has to be opened.
    Open = 1,
    /// The version is chosen, and its backend is not.
    Ask = 2,
    /// Nobody gets it: the head is not HTTP/1, or could be read in two ways.
    Refused = 400,
    /// Nobody gets it: the head is too long (RFC 6585, 5).
    TooLarge = 431,
    /// Nobody serves.
    Nobody = 503,
}
