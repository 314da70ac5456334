//! Every map, declared once. Sizes here are the smallest that make sense: the agent sets the real ones when it loads.
//!
//! All maps are pinned by name, so that a new agent or a new binary takes them over.
use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray, RingBuf},
};
use splitter_common::{abi::*, filter};
use splitter_ebpf::{
    bytes::{Ref, opaque},
    env::Scratch,
};

/// Key bytes of `RULES` after the prefix length.
pub type RuleData = [u8; 20];
/// The one value of `FILTER`.
pub type Filter = [u64; filter::WORDS as usize];

#[map]
pub static CONFIG: Array<Config> = Array::pinned(1, 0);
#[map]
pub static FILTER: Array<Filter> = Array::pinned(1, 0);
#[map]
pub static FRONTENDS: HashMap<FrontendKey, u32> = HashMap::pinned(131_072, BPF_F_NO_PREALLOC);
#[map]
pub static SERVICES: HashMap<u32, Service> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static MAGLEV: HashMap<MaglevKey, MaglevChunk> = HashMap::pinned(2_097_152, BPF_F_NO_PREALLOC);
#[map]
pub static RULES: LpmTrie<RuleData, u32> = LpmTrie::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static HTTP_RULES: HashMap<u32, HttpRules> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static BACKENDS: Array<Backend> = Array::pinned(4_096, 0);
#[map]
pub static IDS: HashMap<[u8; 16], Identity> = HashMap::pinned(524_288, BPF_F_NO_PREALLOC);
#[map]
pub static IFACES: HashMap<u32, Iface> = HashMap::pinned(4_096, BPF_F_NO_PREALLOC);
#[map]
pub static NEXTHOPS: Array<NextHop> = Array::pinned(NEXTHOP_SLOTS, 0);
#[map]
pub static NEXTHOP_OWNERS: HashMap<u32, NextHop> = HashMap::pinned(NEXTHOP_SLOTS, BPF_F_NO_PREALLOC);
/// Backend id to the tick until which it gets no new flow while others can.
#[map]
pub static SUSPECTS: LruHashMap<u32, u32> = LruHashMap::pinned(4_096, 0);
/// Version id to its suspects.
#[map]
pub static SUSPECTED: LruHashMap<u32, Suspected> = LruHashMap::pinned(4_096, 0);
/// Hash of a connection that the splice does not know to the tick at which it was first seen.
#[map]
pub static STRAYS: LruHashMap<u32, u32> = LruHashMap::pinned(4_096, 0);

macro_rules! flow_maps {
    ($($tcp:ident $udp:ident $half:ident $closing:ident $snat:ident $fragments:ident $spliced:ident $answered:ident $legs:ident $family:ty;)*) => { $(
        #[map]
        pub static $tcp: LruHashMap<FlowKey<$family>, Flow<$family>> = LruHashMap::pinned(1_024, 0);
        #[map]
        pub static $udp: LruHashMap<FlowKey<$family>, Flow<$family>> = LruHashMap::pinned(1_024, 0);
        #[map]
        pub static $half: LruHashMap<FlowKey<$family>, HalfOpen<$family>> = LruHashMap::pinned(1_024, 0);
        #[map]
        pub static $closing: LruHashMap<FlowKey<$family>, Flow<$family>> = LruHashMap::pinned(1_024, 0);
        #[map]
        pub static $snat: LruHashMap<FlowKey<$family>, Snat<$family>> = LruHashMap::pinned(1_024, 0);
        #[map]
        pub static $fragments: LruHashMap<FragmentKey<$family>, u32> = LruHashMap::pinned(1_024, 0);
        #[map]
        pub static $spliced: LruHashMap<FlowKey<$family>, Spliced<$family>> = LruHashMap::pinned(1_024, 0);
        /// Clients that the node has answered itself, until they have closed: however many, they displace nobody else.
        #[map]
        pub static $answered: LruHashMap<FlowKey<$family>, Spliced<$family>> = LruHashMap::pinned(8_192, 0);
        #[map]
        pub static $legs: LruHashMap<FlowKey<$family>, Leg<$family>> = LruHashMap::pinned(1_024, 0);
    )* };
}
flow_maps! {
    TCP4 UDP4 HALF4 CLOSING4 SNAT4 FRAGMENTS4 SPLICED4 ANSWERED4 LEGS4 V4;
    TCP6 UDP6 HALF6 CLOSING6 SNAT6 FRAGMENTS6 SPLICED6 ANSWERED6 LEGS6 V6;
}

#[map]
pub static STASHES: Array<Stash> = Array::pinned(STASH_SLOTS, 0);
/// Who has which of them.
#[map]
pub static STASH_SETS: Array<StashSet> = Array::pinned(splitter_common::abi::STASH_SETS, 0);
/// What clients suffered for want of one.
#[map]
pub static HEAD_LOSSES: HashMap<LossKey, u64> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);
/// See `splice::lock`.
#[map]
pub static SPLICE_LOCKS: Array<u64> = Array::pinned(splitter_common::abi::SPLICE_LOCKS, 0);
#[map]
pub static COUNTERS: PerCpuArray<VersionCounters> = PerCpuArray::pinned(1_024, 0);
/// Written by the agent alone.
#[map]
pub static LAPSED: HashMap<u32, Lapsed> = HashMap::pinned(131_072, BPF_F_NO_PREALLOC);
#[map]
pub static HISTOGRAMS: PerCpuHashMap<HistogramKey, HistogramOctave> = PerCpuHashMap::pinned(262_144, BPF_F_NO_PREALLOC);
#[map]
pub static REASONS: PerCpuArray<u64> = PerCpuArray::pinned(REASON_SLOTS, 0);
#[map]
pub static SCRATCH4: PerCpuArray<Scratch<V4>> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static SCRATCH6: PerCpuArray<Scratch<V6>> = PerCpuArray::with_max_entries(1, 0);
/// Programs that are reached by tail call; pinned, because the kernel empties such a map when nobody holds it.
#[map]
pub static TC_CALLS: ProgramArray = ProgramArray::pinned(34, 0);
#[map]
pub static XDP_CALLS: ProgramArray = ProgramArray::pinned(17, 0);
/// A histogram octave of zeros: the template of new ones, too large for the stack.
#[map]
pub static EMPTY_OCTAVE: Array<HistogramOctave> = Array::with_max_entries(1, 0);

/// Who looks at decisions, and at which.
#[map]
pub static TRACE: Array<Trace> = Array::pinned(1, 0);
/// Events for the agent that loaded the programs: its own, as are the counts of what was not written.
#[map]
pub static TRACE_RING: RingBuf = RingBuf::with_byte_size(512 << 10, 0);
#[map]
pub static TRACE_CPU: PerCpuArray<TraceCpu> = PerCpuArray::with_max_entries(1, 0);

/// What `log` tells at the end of a packet's last program: a `Note`, service, detail.
#[map]
pub static NOTES: PerCpuArray<[u32; 3]> = PerCpuArray::with_max_entries(1, 0);

/// Insert only what is not there.
pub const NOEXIST: u64 = aya_ebpf::bindings::BPF_NOEXIST as u64;

/// The kernel's side of `splitter_ebpf::env`: see `kernel.rs`.
pub struct Kernel;

/// A map value as the pipeline sees it.
#[inline(always)]
pub fn reference<T: Copy>(value: Option<*mut T>) -> Option<Ref<T>> {
    // SAFETY: values that a lookup returns stay allocated while the program runs (RCU).
    value.map(|value| unsafe { Ref::new(value) })
}

/// Reads a value that a lookup returned.
#[inline(always)]
pub fn load<T: Copy>(value: *const T) -> T {
    // SAFETY: as in `reference`.
    unsafe { *value }
}

/// A word of the filter.
#[inline(always)]
pub fn filter_word(index: u32) -> u64 {
    let Some(filter) = FILTER.get_ptr(0) else { return 0 };
    let index = opaque(index) & (filter::WORDS - 1);
    // SAFETY: the index is masked to the array's length.
    unsafe { *filter.cast::<u64>().add(index as usize) }
}

/// Whether XDP may finish packets that come in by an interface.
#[inline(always)]
pub fn xdp_port(ifindex: u32) -> bool {
    let Some(config) = CONFIG.get_ptr(0) else { return false };
    if ifindex >= 4096 {
        return false;
    }
    let word = opaque(ifindex >> 6) as usize & 63;
    // SAFETY: the index is masked to the array's length.
    unsafe { *(&raw const (*config).xdp_ports).cast::<u64>().add(word) >> (ifindex & 63) & 1 != 0 }
}

/// Counts a reason.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(value) = reference(REASONS.get_ptr_mut(reason as u32)) {
        value.set(value.get() + 1);
    }
}
