//! Why a packet was dropped, or left to the kernel's stack, or an event worth counting happened. Index of `REASONS` (per-CPU u64).
//! Append-only: a number is never reused.

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $value:literal, $name:literal, $kind:ident;)*) => {
        /// See the module.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $variant = $value,)* }

        impl Reason {
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];
            /// The value of the label `reason` in metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Reason::$variant => $name,)* }
            }
            /// What happened to the packet.
            pub const fn kind(self) -> Kind {
                match self { $(Reason::$variant => Kind::$kind,)* }
            }
        }
    };
}

/// What a [`Reason`] did to the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Dropped.
    Drop,
    /// Left to the kernel's stack, untouched.
    Pass,
    /// Answered by the node (RST, ICMP).
    Answer,
    /// Nothing happened to the packet: an event that is counted.
    Event,
}

reasons! {
    /// Shorter than its headers say.
    Truncated = 0, "truncated", Pass;
    /// IP version, header length or total length is impossible.
    Malformed = 1, "malformed", Pass;
    /// Carries a VLAN tag: belongs to the VLAN's interface.
    Vlan = 2, "vlan", Pass;
    /// A later fragment of a datagram whose first fragment was not seen.
    FragmentUnknown = 3, "fragment_unknown", Pass;
    /// IPv6 extension headers beyond what is read, or one that hides the transport header.
    ExtensionHeader = 4, "extension_header", Pass;
    /// TTL or hop limit too low to forward: the sender was told by ICMP.
    TtlExpired = 5, "ttl_expired", Answer;
    /// A frontend whose service the tables do not hold (yet, or any more).
    ServiceUnknown = 6, "service_unknown", Drop;
    /// Every version has weight 0.
    NoVersion = 7, "no_version", Answer;
    /// The version has no backend that takes new flows.
    NoBackend = 8, "no_backend", Answer;
    /// No free port for source translation.
    SnatPortsExhausted = 9, "snat_ports_exhausted", Drop;
    /// A flow map refused an entry.
    FlowInsertFailed = 10, "flow_insert_failed", Drop;
    /// The flow's backend is down or gone: TCP is reset.
    BackendDown = 11, "backend_down", Answer;
    /// Reset by `onWeightChange`.
    WeightChangeReset = 12, "weight_change_reset", Answer;
    /// A backend's RST to a SYN, held back: the client's next SYN tries another backend.
    RefusedHeldBack = 13, "refused_held_back", Drop;
    /// Larger than the path to the backend allows: the client was told by ICMP.
    FragmentationNeeded = 14, "fragmentation_needed", Answer;
    /// The stack forwards because no next hop was found by fib lookup.
    NoNextHop = 15, "no_next_hop", Event;
    /// A packet in the middle of a connection that is not known: given to the backend that the tables name.
    RecoveredFlow = 16, "recovered_flow", Event;
    /// One direction of a flow had been evicted from its full table, and was put back.
    FlowEvicted = 17, "flow_evicted", Event;
    /// A sample was lost because the kernel had no memory for its octave.
    HistogramLost = 18, "histogram_lost", Event;
    /// An ICMP error of the backend's side, translated back to the client.
    IcmpTranslated = 19, "icmp_translated", Event;
    /// The next-hop table is full; the packet pays for a fib lookup.
    NextHopsExhausted = 20, "next_hops_exhausted", Event;
    /// Reserved: XDP left the packet to TC.
    XdpHandover = 21, "xdp_handover", Pass;
    /// UDP datagram to a backend that is gone: the flow was forgotten and decided anew.
    UdpRedecided = 22, "udp_redecided", Event;
    /// The packet could not be written to or answered (no memory in the kernel).
    WriteFailed = 23, "write_failed", Drop;
    /// Every slot for heads that a connection may take is taken: the client sends its request again.
    StashesExhausted = 24, "stashes_exhausted", Drop;
    /// A request head longer than is read here: decided by weight, and the connection stays with its backend.
    HeadTooLong = 25, "head_too_long", Event;
    /// A head that two parsers could read in two ways: answered with 400.
    HeadRefused = 26, "head_refused", Answer;
    /// The connection stays with its backend: a body too long to count, or whose chunks are odd, HTTP/2, or an answer that makes it a tunnel.
    PinnedRequest = 27, "pinned_request", Event;
    /// The same: a request came before the response to the one before was complete.
    PinnedPipeline = 28, "pinned_pipeline", Event;
    /// The same: where the response ends could not be told.
    PinnedResponse = 29, "pinned_response", Event;
    /// The same: a later request on the connection was malformed or too long; its backend judges it.
    PinnedHead = 30, "pinned_head", Event;
    /// A segment of a connection that the node does not know: reset.
    UnknownConnection = 31, "unknown_connection", Answer;
    /// A segment that overtook the beginning of its request: the client sends it again.
    OutOfOrder = 32, "out_of_order", Drop;
    /// A backend refused a leg: another backend was tried.
    LegRefused = 33, "leg_refused", Event;
    /// A backend did not answer a leg's SYN: it was sent again, or another backend tried.
    LegSilent = 34, "leg_silent", Event;
    /// No backend could be reached: answered with 503 or a reset.
    Unavailable = 35, "unavailable", Answer;
    /// A backend still had a connection with the same ports: it was reset, and the SYN sent again.
    StaleLeg = 36, "stale_leg", Event;
    /// A leg's entry had been evicted from its full table: the client was reset.
    LegLost = 37, "leg_lost", Answer;
    /// The acknowledgement that ends a client's handshake, which nobody needs.
    Handshake = 38, "handshake", Event;
    /// A packet of an idle leg, answered by the node.
    IdleLeg = 39, "idle_leg", Answer;
    /// A client's segment that arrived while its leg was being opened; it comes again.
    NotYetOpen = 40, "not_yet_open", Drop;
    /// A packet of a connection that another CPU was working on for long; it comes again.
    Contended = 41, "contended", Drop;
    /// A backend does without TCP timestamps, which a client had been promised: it gets segments without them.
    Unstamped = 42, "unstamped", Event;
    /// A packet in a backend's name came in by another interface than the one behind which the backend is: it is no evidence.
    WrongSide = 43, "wrong_side", Event;
    /// A service, or one client network of it, has its share of the slots for heads: the client sends its request again.
    HeadShare = 44, "head_share", Drop;
    /// A head that took too long lost its slot to another connection: its client is reset.
    HeadLate = 45, "head_late", Answer;
    /// A whole head lost its slot while its backend did not answer: the client sends it again.
    HeadDisplaced = 46, "head_displaced", Drop;
    /// The first segment of a connection that has been here before, sent again by somebody: reset.
    Replayed = 47, "replayed", Answer;
    /// A client's segment with data of no connection, whose cookie the node has not given.
    CookieWrong = 48, "cookie_wrong", Event;
    /// A cookie that would do at other times: too many wrong ones come to its service, and the node does not remember its handshake.
    CookieGuarded = 49, "cookie_guarded", Event;
    /// To a VIP, and no service has the port: answered by a reset or an ICMP error.
    VipRefused = 50, "vip_refused", Answer;
    /// The same, of a kind that nobody answers: a reset, an ICMP message, a later fragment.
    VipStray = 51, "vip_stray", Drop;
    /// An echo request to a VIP that answers them.
    VipPing = 52, "vip_ping", Answer;
    /// An ICMP error that the node would have sent, beyond so many a second.
    ErrorsLimited = 53, "errors_limited", Drop;
    /// A frame for another host, which a hub or a switch has sent here too.
    OtherHost = 54, "other_host", Pass;
    /// A backend closed its connection before it had read the request that was on its way: the request gets another connection.
    RequestUnread = 55, "request_unread", Event;
    /// A TCP segment of an http service in fragments: its sender is told to make smaller ones.
    HttpFragment = 56, "http_fragment", Drop;
    /// A segment of an http connection whose numbers do not fit what was seen of it.
    OutOfWindow = 57, "out_of_window", Drop;
    /// A RST in the window, but not at the number that is expected: answered by an acknowledgement, or passed on to the end that judges it.
    ResetDoubted = 58, "reset_doubted", Event;
    /// A packet with a wrong checksum, where it was to be read, decided about, kept or answered.
    Checksum = 59, "checksum", Drop;
    /// There was no room for a part of a long request while its leg was being opened: the client sends it again.
    RequestCut = 60, "request_cut", Drop;
    /// What the node would answer, and cannot: options or extension headers stand before it, it is a reset itself, or its source is no host's address.
    Unanswerable = 61, "unanswerable", Drop;
    /// A packet of a backend that is down, or whose flow has ended: its client is decided about anew.
    BackendSilenced = 62, "backend_silenced", Drop;
}

/// Reasons that are also counted by service, in `HEAD_LOSSES`.
pub const LOSSES: [Reason; 4] = [Reason::StashesExhausted, Reason::HeadShare, Reason::HeadLate, Reason::HeadDisplaced];

/// Entries of `REASONS`; room to append.
pub const REASON_SLOTS: u32 = 64;
