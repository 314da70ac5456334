//! The seam to the kernel's maps and clock: the one interface under which the pipeline runs in the kernel and over fakes on a host.

use crate::{
    bytes::Ref,
    packet::Parsed,
    state::{Claim, Out, Pieces, Probe, Rest, Seen, Stamps, Translation},
    verdict::Verdict,
};
use splitter_common::{
    abi::*,
    decide::{Choice, Facts, Search},
    http::{HeadText, RequestHead, ResponseHead, Scan},
};

/// How loops of many rounds run.
#[cfg(target_arch = "bpf")]
pub type KernelLoop = crate::packet::http::BpfLoop;
/// As above.
#[cfg(not(target_arch = "bpf"))]
pub type KernelLoop = splitter_common::http::Plain;

/// Which flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    Tcp,
    Udp,
    Closing,
}

/// What a program tells of a packet that was not usual, with a service and a detail.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A connection or a flow of datagrams was given to a backend.
    Given = 1,
    /// The same, begun by a packet in the middle of a connection.
    TakenUp = 2,
    /// Given to nobody, for a [`Reason`].
    Unserved = 3,
    /// A request goes to the backend of the leg in use.
    Kept = 4,
    /// A connection stays with its leg, for a [`Reason`].
    Pinned = 5,
    /// The node answers itself with a status; 0: a reset.
    Answered = 6,
    /// The head of a response came, with a status.
    Responded = 7,
    /// An ICMP error was translated, of a type and code; no service.
    Icmp = 8,
    /// A request goes to a backend by another leg.
    Sent = 9,
}

/// Maps without a family, and time.
pub trait Env: Tables<V4> + Tables<V6> {
    /// Jiffies, wrapping.
    fn ticks(&self) -> u32;
    /// Nanoseconds of the monotonic clock.
    fn now(&self) -> u64;

    fn config(&self) -> Option<Ref<Config>>;
    /// The entry of [`Config::xdp_ports`] at the index of an interface.
    fn xdp_port(&self, ifindex: u32) -> u64;
    fn filter_word(&self, index: u32) -> u64;
    fn frontend(&self, key: &FrontendKey) -> Option<u32>;
    fn service(&self, id: u32) -> Option<Ref<Service>>;
    fn maglev(&self, key: &MaglevKey) -> Option<Ref<MaglevChunk>>;
    /// Index of the version that the longest matching source network names.
    fn rule(&self, service: u32, client: &Addr) -> Option<u32>;
    fn backend(&self, id: u32) -> Option<Ref<Backend>>;
    fn iface(&self, ifindex: u32) -> Option<Ref<Iface>>;
    /// [`vip_flag`] bits of an address that a frontend has.
    fn vip(&self, addr: &Addr) -> Option<u32>;
    /// Whether an address is the node's own.
    fn owned(&self, addr: &Addr) -> bool;
    /// ICMP errors that this CPU has sent: in which second, counted as `now` / 2^30, and how many.
    fn errors(&self) -> Option<Ref<[u32; 2]>>;
    fn nexthop(&self, slot: u32) -> Option<Ref<NextHop>>;
    fn nexthop_owner(&self, slot: u32) -> Option<Ref<NextHop>>;
    /// `false` when the slot has an owner.
    fn claim_nexthop(&self, slot: u32, hop: &NextHop) -> bool;
    /// Tick until which a backend is avoided.
    fn suspect(&self, backend: u32) -> Option<u32>;
    fn set_suspect(&self, backend: u32, until: u32);
    /// The suspects of a version, made when they are not there; `None` without memory.
    fn suspected(&self, version: u32) -> Option<Ref<Suspected>>;
    /// The same, not made.
    fn known_suspected(&self, version: u32) -> Option<Ref<Suspected>>;
    /// Tick at which a segment of an unknown connection was first seen.
    fn stray(&self, connection: u32) -> Option<u32>;
    fn set_stray(&self, connection: u32, since: u32);
    fn counters(&self, version: u32) -> Option<Ref<VersionCounters>>;
    /// Tells who judges a version that its trials are about to change.
    fn moved(&self, version: u32);
    /// The octave of a histogram, made when it is not there; `None` without memory.
    fn octave(&self, key: &HistogramKey) -> Option<Ref<HistogramOctave>>;
    fn count(&self, reason: Reason);
    /// Working memory of the choice of a backend, of whichever family: see [`Scratch`].
    fn search(&self) -> Option<Ref<Search>>;
    fn http_rules(&self, service: u32) -> Option<Ref<HttpRules>>;
    fn stash(&self, slot: u32) -> Option<Ref<Stash>>;
    fn stash_set(&self, set: u32) -> Option<Ref<StashSet>>;
    /// Cookies that have begun a connection.
    fn spent(&self, set: u32) -> Option<Ref<CookieSet>>;
    /// What clients said in their SYN.
    fn handshakes(&self, set: u32) -> Option<Ref<CookieSet>>;
    /// Wrong cookies that services get.
    fn guesses(&self, slot: u32) -> Option<Ref<Guesses>>;
    fn count_loss(&self, key: &LossKey);
    /// 0: nobody holds it.
    fn splice_lock(&self, slot: u32) -> Option<Ref<u64>>;
    /// Copies the first `len` bytes of a stash's text.
    fn copy_text(&self, to: &mut HeadText, from: &HeadText, len: u32);
    /// Whether somebody looks at decisions, and at which.
    fn trace(&self) -> Option<Ref<Trace>>;
    fn trace_cpu(&self) -> Option<Ref<TraceCpu>>;
    /// What stands for a connection whose request was told and whose answer was not; 0: nothing.
    fn told(&self, slot: u32) -> Option<Ref<u64>>;
    /// Copies the beginning of a text into an event.
    fn copy_start(&self, to: &mut [u8; TRACE_TEXT], from: &HeadText);
    /// Whether the programs tell what they do (`--debug-programs`): never changes while they run, so that verifiers remove what depends on it.
    fn speaks(&self) -> bool;
    /// Notes what the packet is about, for the line that its last program writes. The last note counts.
    fn note(&self, what: Note, service: u32, detail: u32);
    /// Hands an event to the agent; `false`: there is no room.
    fn emit(&self, event: &TraceEvent) -> bool;
}

/// Working memory of the unusual path, one per CPU: BPF allows 512 bytes of stack for all frames together, and IPv6 keys are large.
/// Every function uses its own field. A program is not re-entered on its CPU, with one exception: a copy that [`crate::bytes::Packet::clone_to`] sends goes
/// through the egress program at once. It is nobody's by then, so of all fields only `parsed` is written, by IPv6, with offsets that are the same:
/// behind a copy the key in it is the copy's.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Scratch<F: Family> {
    pub parsed: Parsed<F>,
    pub translation: Translation<F>,
    pub facts: Facts,
    pub choice: Choice,
    pub search: Search,
    /// What a connection remembers of its trial, and the backend that it tried; 0: the packet begins a new one.
    pub trial: u32,
    pub tried: u32,
    /// 1: the packet's flow was ended by a RST, and may live on.
    pub old: u32,
    pub frontend: FrontendKey,
    pub half: HalfOpen<F>,
    pub partner: FlowKey<F>,
    pub quoted: FlowKey<F>,
    /// What is added to a quoted sequence number.
    pub renumber: u32,
    pub snat: Snat<F>,
    pub probe: Probe,
    pub spliced: Spliced<F>,
    pub leg: Leg<F>,
    pub out: Out<F>,
    pub pieces: Pieces,
    pub claim: Claim,
    pub seen: Seen,
    pub rest: Rest,
    pub stamps: Stamps,
    pub client: FlowKey<F>,
    /// Link addresses of the packet in hand, as it came to `splice::steps`.
    pub link: [u16; 6],
    pub step: Verdict,
    /// Slot of the lock that the packet holds, plus 1, and what is written there.
    pub locked: u32,
    pub lock: u64,
    /// Bytes of `text` in use.
    pub read: u32,
    /// Version that a rule names, or [`splitter_common::decide::NO_RULE`].
    pub ruled: u32,
    /// 1: all of the request whose head was read is here.
    pub whole: u32,
    /// Requests of a pinned connection that were read in the packet.
    pub more: u32,
    /// Backend of the leg that the request in hand has turned idle; 0: none, or it has been told.
    pub parked: u32,
    /// What `splice::fit::of_client` said of the packet; 0: nobody has asked.
    pub fits: u32,
    pub scan: Scan,
    /// Which rules it goes by: [`HttpRules::id`].
    pub rules: u64,
    pub request: RequestHead,
    pub response: ResponseHead,
    pub text: HeadText,
}

/// `place!(scratch.field)`: a field of a [`Ref`] to write to.
#[macro_export]
macro_rules! place {
    ($r:ident . $f:ident) => {
        // SAFETY: a Ref points to live memory of this CPU; each field has one user at a time.
        unsafe { &mut *(&raw mut (*$r.as_ptr()).$f) }
    };
}

/// Flow tables of one family. `put_*` answers whether the entry is in the table now; `new_*` puts only what is not there, and answers whether
/// it did.
pub trait Tables<F: Family> {
    fn scratch(&self) -> Option<Ref<Scratch<F>>>;
    fn flow(&self, table: Table, key: &FlowKey<F>) -> Option<Ref<Flow<F>>>;
    fn put_flow(&self, table: Table, key: &FlowKey<F>, flow: &Flow<F>) -> bool;
    fn new_flow(&self, table: Table, key: &FlowKey<F>, flow: &Flow<F>) -> bool;
    fn drop_flow(&self, table: Table, key: &FlowKey<F>);
    fn half(&self, key: &FlowKey<F>) -> Option<Ref<HalfOpen<F>>>;
    fn put_half(&self, key: &FlowKey<F>, half: &HalfOpen<F>) -> bool;
    fn new_half(&self, key: &FlowKey<F>, half: &HalfOpen<F>) -> bool;
    fn drop_half(&self, key: &FlowKey<F>);
    /// Of whatever flow.
    fn snat(&self, key: &FlowKey<F>) -> Option<Ref<Snat<F>>>;
    /// Of a flow that was answered.
    fn put_snat(&self, key: &FlowKey<F>, snat: &Snat<F>) -> bool;
    /// Of whatever flow.
    fn drop_snat(&self, key: &FlowKey<F>);
    /// Of a flow that nobody has answered yet.
    fn claim(&self, key: &FlowKey<F>) -> Option<Ref<Snat<F>>>;
    fn put_claim(&self, key: &FlowKey<F>, snat: &Snat<F>) -> bool;
    fn new_claim(&self, key: &FlowKey<F>, snat: &Snat<F>) -> bool;
    fn drop_claim(&self, key: &FlowKey<F>);
    fn spliced(&self, key: &FlowKey<F>) -> Option<Ref<Spliced<F>>>;
    fn put_spliced(&self, key: &FlowKey<F>, spliced: &Spliced<F>) -> bool;
    fn drop_spliced(&self, key: &FlowKey<F>);
    /// A client that the node has answered itself.
    fn answered(&self, key: &FlowKey<F>) -> Option<Ref<Spliced<F>>>;
    fn put_answered(&self, key: &FlowKey<F>, spliced: &Spliced<F>) -> bool;
    fn drop_answered(&self, key: &FlowKey<F>);
    fn leg(&self, key: &FlowKey<F>) -> Option<Ref<Leg<F>>>;
    fn put_leg(&self, key: &FlowKey<F>, leg: &Leg<F>) -> bool;
    fn new_leg(&self, key: &FlowKey<F>, leg: &Leg<F>) -> bool;
    fn drop_leg(&self, key: &FlowKey<F>);
    fn fragment(&self, key: &FragmentKey<F>) -> Option<u32>;
    fn put_fragment(&self, key: &FragmentKey<F>, ports: u32);
}
