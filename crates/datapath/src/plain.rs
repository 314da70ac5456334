//! Plain data seen as bytes: the only place that reinterprets memory.

use splitter_common::abi::*;

// What the layouts rest on: the object is little-endian, and the kernel's structures have no other padding than here.
const _: () = assert!(cfg!(all(target_endian = "little", target_pointer_width = "64", target_has_atomic = "64")) && align_of::<u64>() == 8);

/// Types without padding or invalid values.
///
/// # Safety
/// Every byte of a value is initialised, and any bytes are a value.
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($t:ty),* $(,)?) => { $(
        // SAFETY: integers, and ABI types of integers and byte arrays with explicit padding (`layout_is_golden`).
        unsafe impl Plain for $t {}
    )* };
}
plain!(
    u8,
    u32,
    u64,
    FrontendKey,
    Service,
    MaglevKey,
    MaglevChunk,
    RuleKey,
    HttpRules,
    Backend,
    Identity,
    Iface,
    NextHop,
    Config,
    VersionCounters,
    Outcomes,
    HistogramKey,
    HistogramOctave,
    Stash,
    StashSet,
    CookieSet,
    Guesses,
    LossKey,
    Suspected,
    Trace,
    TraceEvent,
    Lapsed,
);

macro_rules! plain_flows {
    ($($t:ident),*) => { $(
        // SAFETY: as above; `Family` is implemented for the two families alone, whose words are arrays of u32.
        unsafe impl<F: Family> Plain for $t<F> {}
    )* };
}
plain_flows!(FlowKey, Flow, HalfOpen, Snat, FragmentKey, Spliced, Leg);

// SAFETY: an array of plain values has no padding between them.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// The memory of values.
pub fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` promises no padding; the length is that of the slice.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// As [`bytes_of`], to be written.
pub fn bytes_of_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and `Plain` promises that any bytes are a value.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

/// A value from the first bytes of a slice, at any alignment. Zero when the slice is too short.
pub fn read<T: Plain>(bytes: &[u8]) -> T {
    if bytes.len() < size_of::<T>() {
        return zeroed();
    }
    // SAFETY: long enough; any bytes are a value of a plain type.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}

pub fn zeroed<T: Plain>() -> T {
    // SAFETY: any bytes are a value of a plain type.
    unsafe { std::mem::zeroed() }
}
