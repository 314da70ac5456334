//! Every map as a static: those that are pinned as `splitter_common::abi` describes them, and the programs' own. Sizes are the smallest that make sense:
//! the agent sets the real ones when it loads.
//!
//! All maps are pinned by name, so that a new agent or a new binary takes them over.
use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray, RingBuf},
};
use splitter_common::{abi::*, filter};
use splitter_ebpf::{
    bytes::{Ref, opaque},
    env::Scratch,
};

/// Key bytes of `RULES` after the prefix length.
type RuleData = [u8; 20];

macro_rules! pinned {
    ($($variant:ident $name:ident: $kind:ident<$key:ty => $value:ty>, $entries:expr, $role:ident $layout:literal;)*) => { $(one! { $name $kind $key, $value, $entries })* };
}
macro_rules! one {
    ($name:ident Array $key:ty, $value:ty, $entries:expr) => {
        #[map]
        pub static $name: Array<$value> = Array::pinned($entries, 0);
    };
    ($name:ident MappedArray $key:ty, $value:ty, $entries:expr) => {
        #[map]
        pub static $name: Array<$value> = Array::pinned($entries, BPF_F_MMAPABLE);
    };
    ($name:ident PerCpuArray $key:ty, $value:ty, $entries:expr) => {
        #[map]
        pub static $name: PerCpuArray<$value> = PerCpuArray::pinned($entries, 0);
    };
    ($name:ident HashMap $key:ty, $value:ty, $entries:expr) => {
        #[map]
        pub static $name: HashMap<$key, $value> = HashMap::pinned($entries, BPF_F_NO_PREALLOC);
    };
    ($name:ident PerCpuHashMap $key:ty, $value:ty, $entries:expr) => {
        #[map]
        pub static $name: PerCpuHashMap<$key, $value> = PerCpuHashMap::pinned($entries, BPF_F_NO_PREALLOC);
    };
    ($name:ident LruHashMap $key:ty, $value:ty, $entries:expr) => {
        #[map]
        pub static $name: LruHashMap<$key, $value> = LruHashMap::pinned($entries, 0);
    };
    ($name:ident LpmTrie $key:ty, $value:ty, $entries:expr) => {
        #[map]
        pub static $name: LpmTrie<RuleData, $value> = LpmTrie::pinned($entries, BPF_F_NO_PREALLOC);
    };
}
splitter_common::shared_tables!(pinned);
splitter_common::kernel_tables!(pinned);

/// ICMP errors that were sent: the second, as it is counted, and how many in it.
#[map]
pub static ERRORS: PerCpuArray<[u32; 2]> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static SCRATCH4: PerCpuArray<Scratch<V4>> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static SCRATCH6: PerCpuArray<Scratch<V6>> = PerCpuArray::with_max_entries(1, 0);
/// Programs that are reached by tail call; pinned, because the kernel empties such a map when nobody holds it.
#[map]
pub static TC_CALLS: ProgramArray = ProgramArray::pinned(TC_CALL_SLOTS, 0);
#[map]
pub static XDP_CALLS: ProgramArray = ProgramArray::pinned(XDP_CALL_SLOTS, 0);
/// A histogram octave of zeros: the template of new ones, too large for the stack.
#[map]
pub static EMPTY_OCTAVE: Array<HistogramOctave> = Array::with_max_entries(1, 0);

/// Events for the agent that loaded the programs: its own, as are the counts of what was not written.
#[map]
pub static TRACE_RING: RingBuf = RingBuf::with_byte_size(512 << 10, 0);
#[map]
pub static TRACE_CPU: PerCpuArray<TraceCpu> = PerCpuArray::with_max_entries(1, 0);
/// Connections whose request was told and whose answer was not: see `trace`.
#[map]
pub static TRACE_TOLD: Array<u64> = Array::with_max_entries(TRACE_MARKS, 0);

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

/// The entry of `Config::xdp_ports` at the index of an interface.
#[inline(always)]
pub fn xdp_port(ifindex: u32) -> u64 {
    let Some(config) = CONFIG.get_ptr(0) else { return 0 };
    let index = (opaque(ifindex) & (XDP_PORTS - 1)) as usize;
    // SAFETY: the index is masked to the array's length.
    unsafe { *(&raw const (*config).xdp_ports).cast::<u64>().add(index) }
}

/// Counts a reason.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(value) = reference(REASONS.get_ptr_mut(reason as u32)) {
        value.set(value.get() + 1);
    }
}
