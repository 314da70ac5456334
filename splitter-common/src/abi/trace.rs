//! What `splitter trace` shows: who looks at what, and the events.

use super::pod;

/// The one value of `TRACE` (array of 1): whether somebody looks, and at what. The agent writes it whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Nanoseconds of CLOCK_MONOTONIC until which events are written; 0: nobody looks. The agent puts it off while somebody does; who finds it
    /// past sets it to 0.
    pub until: u64,
    /// Time between two events of a CPU in the long run, nanoseconds.
    pub interval: u64,
    /// How far a CPU may be ahead of that, nanoseconds.
    pub burst: u64,
    /// Id of the only service that is looked at; 0: all.
    pub service: u32,
    /// Id of the only version; 0: all.
    pub version: u32,
    /// Bits of a client's address (words in network order, IPv4 mapped) that must be `client`'s.
    pub mask: [u32; 4],
    pub client: [u32; 4],
}

/// Connections whose request was told and whose answer was not; a power of two. Where two share a slot, the later one counts.
pub const TRACE_MARKS: u32 = 16_384;

/// Bytes of a request's head that an event carries: a method of 15 bytes, 64 bytes of the path, and blanks.
pub const TRACE_TEXT: usize = 88;

/// What is written to `TRACE_RING`. Ports in host order, ids 0 when there is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceEvent {
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
    /// Answered: nanoseconds from the request's way to the backend to the first response byte.
    pub spent: u64,
    /// Decided, http: bits of the predicates that hold for the request.
    pub facts: u64,
    /// Decided, http: key of the value that `splitBy` names, with [`trace_flag::KEYED`].
    pub key: u64,
    /// IPv4 mapped, words in network order.
    pub client: [u32; 4],
    pub vip: [u32; 4],
    pub client_port: u16,
    pub vip_port: u16,
    pub service: u32,
    pub version: u32,
    pub backend: u32,
    /// Decided, http: sequence number of the request's first byte.
    pub at: u32,
    /// Decided, http: id of the version that a rule names, [`BASELINE_RULED`], or `u32::MAX`.
    pub ruled: u32,
    /// [`trace_kind`] constant.
    pub kind: u8,
    /// IP protocol number.
    pub proto: u8,
    /// [`trace_flag`] bits.
    pub flags: u8,
    /// A [`super::Reason`] as a number: why nobody serves, or why the connection is pinned; [`NO_REASON`]: neither.
    pub reason: u8,
    /// http: of the response; of the node's own answer, 0 when that is a reset.
    pub status: u16,
    /// Bytes of `text` that count. What stands behind them may be of another request.
    pub text_len: u16,
    /// Decided, http: the beginning of the request's head.
    pub text: [u8; TRACE_TEXT],
}

/// Values of [`TraceEvent::kind`].
pub mod trace_kind {
    /// A connection, a flow of datagrams or a request was given to a version; with a reason and without a backend: to nobody.
    pub const DECIDED: u8 = 1;
    /// The head of a response came.
    pub const ANSWERED: u8 = 2;
    /// The node has answered a request itself.
    pub const REFUSED: u8 = 3;
}

/// Bits of [`TraceEvent::flags`].
pub mod trace_flag {
    /// The value that `splitBy` names is there.
    pub const KEYED: u8 = 1;
    /// The connection stays with its backend from here on: its requests are not read any more.
    pub const PINNED: u8 = 2;
    /// Begun by a packet in the middle of a connection.
    pub const RECOVERED: u8 = 4;
    /// Of a service of `mode: http`.
    pub const HTTP: u8 = 8;
}

/// [`TraceEvent::ruled`]: the head was too long to be read, and the request goes to the baseline.
pub const BASELINE_RULED: u32 = u32::MAX - 1;

/// [`TraceEvent::reason`] when there is none.
pub const NO_REASON: u8 = u8::MAX;

/// Value of `TRACE_CPU` (per CPU, array of 1): what was not written, and where the next event is put together.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceCpu {
    /// When the next event is due by [`Trace::interval`], nanoseconds of CLOCK_MONOTONIC.
    pub due: u64,
    /// Events that came too fast.
    pub over: u64,
    /// Events for which the ring had no room.
    pub full: u64,
    pub event: TraceEvent,
}

pod!(Trace, TraceEvent, TraceCpu);
