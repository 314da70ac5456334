//! Every map, declared once. Sizes here are the smallest that make sense: the agent sets the real ones when it loads.
//!
//! All maps are pinned by name, so that a new agent or a new binary takes them over.
use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap},
};
use splitter_common::{abi::*, filter};

/// Key bytes of `RULES` after the prefix length.
pub type RuleData = [u8; 20];
/// The one value of `FILTER`.
pub type Filter = [u64; filter::WORDS as usize];

#[map]
static CONFIG: Array<Config> = Array::pinned(1, 0);
#[map]
static FILTER: Array<Filter> = Array::pinned(1, 0);
#[map]
static FRONTENDS: HashMap<FrontendKey, u32> = HashMap::pinned(131_072, BPF_F_NO_PREALLOC);
#[map]
static SERVICES: HashMap<u32, Service> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
static MAGLEV: HashMap<MaglevKey, MaglevChunk> = HashMap::pinned(2_097_152, BPF_F_NO_PREALLOC);
#[map]
static RULES: LpmTrie<RuleData, u32> = LpmTrie::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
static BACKENDS: Array<Backend> = Array::pinned(4_096, 0);
#[map]
static IDS: HashMap<[u8; 16], Identity> = HashMap::pinned(524_288, BPF_F_NO_PREALLOC);
#[map]
static IFACES: HashMap<u32, Iface> = HashMap::pinned(4_096, BPF_F_NO_PREALLOC);
#[map]
static NEXTHOPS: Array<NextHop> = Array::pinned(NEXTHOP_SLOTS, 0);
#[map]
static NEXTHOP_OWNERS: HashMap<u32, NextHop> = HashMap::pinned(NEXTHOP_SLOTS, BPF_F_NO_PREALLOC);
/// Backend id to the tick until which it gets no new flow while others can.
#[map]
static SUSPECTS: LruHashMap<u32, u32> = LruHashMap::pinned(4_096, 0);

macro_rules! flow_maps {
    ($($tcp:ident $udp:ident $half:ident $closing:ident $snat:ident $fragments:ident $family:ty;)*) => { $(
        #[map]
        static $tcp: LruHashMap<FlowKey<$family>, Flow<$family>> = LruHashMap::pinned(1_024, 0);
        #[map]
        static $udp: LruHashMap<FlowKey<$family>, Flow<$family>> = LruHashMap::pinned(1_024, 0);
        #[map]
        static $half: LruHashMap<FlowKey<$family>, HalfOpen<$family>> = LruHashMap::pinned(1_024, 0);
        #[map]
        static $closing: LruHashMap<FlowKey<$family>, Flow<$family>> = LruHashMap::pinned(1_024, 0);
        #[map]
        static $snat: LruHashMap<FlowKey<$family>, Snat<$family>> = LruHashMap::pinned(1_024, 0);
        #[map]
        static $fragments: LruHashMap<FragmentKey<$family>, u32> = LruHashMap::pinned(1_024, 0);
    )* };
}
flow_maps! {
    TCP4 UDP4 HALF4 CLOSING4 SNAT4 FRAGMENTS4 V4;
    TCP6 UDP6 HALF6 CLOSING6 SNAT6 FRAGMENTS6 V6;
}

#[map]
static COUNTERS: PerCpuArray<VersionCounters> = PerCpuArray::pinned(1_024, 0);
#[map]
static HISTOGRAMS: PerCpuHashMap<HistogramKey, HistogramOctave> = PerCpuHashMap::pinned(262_144, BPF_F_NO_PREALLOC);
#[map]
static REASONS: PerCpuArray<u64> = PerCpuArray::pinned(REASON_SLOTS, 0);
