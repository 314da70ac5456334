//! The only packet pointers, and the only access to map memory.
//!
//! A [`Window`] is a bounds-checked view of `N` bytes of the frame. It borrows the packet, so the borrow checker refuses a view that
//! outlives a call which may move the frame (resize, checksum helpers): the verifier would refuse it too, less clearly.

use core::marker::PhantomData;
pub use splitter_common::barrier::{opaque, within};
use splitter_common::http::HeadText;

/// Most bytes that are copied at once between a frame and a text.
pub const COPY: u32 = splitter_common::http::HEAD_SLACK;

/// Plain integers that a frame can be read as, in the order in which they lie in memory (network order is not undone).
pub trait Wire: Copy {}
impl Wire for u8 {}
impl Wire for u16 {}
impl Wire for u32 {}
impl<const N: usize> Wire for [u8; N] {}
impl<const N: usize> Wire for [u16; N] {}
impl<const N: usize> Wire for [u32; N] {}

/// `N` bytes of a frame that were checked to be there.
pub struct Window<'a, const N: usize> {
    start: *mut u8,
    packet: PhantomData<&'a mut u8>,
}

impl<const N: usize> Window<'_, N> {
    /// # Safety
    /// `start` points to at least `N` readable and writable bytes for as long as the borrow lives.
    #[inline(always)]
    pub unsafe fn new(start: *mut u8) -> Self {
        Self { start, packet: PhantomData }
    }

    /// Reads a value at a constant offset.
    #[inline(always)]
    pub fn load<T: Wire, const AT: usize>(&self) -> T {
        const { assert!(AT + size_of::<T>() <= N) };
        // SAFETY: inside the N bytes (asserted above).
        unsafe { read(self.start.add(AT).cast()) }
    }

    /// Writes a value at a constant offset.
    #[inline(always)]
    pub fn store<T: Wire, const AT: usize>(&mut self, value: T) {
        const { assert!(AT + size_of::<T>() <= N) };
        // SAFETY: inside the N bytes (asserted above).
        unsafe { write(self.start.add(AT).cast(), value) }
    }
}

/// One load of the full width: BPF on a machine with unaligned access needs no alignment, but LLVM would split an `unaligned` read into
/// bytes there.
#[inline(always)]
unsafe fn read<T: Copy>(at: *const T) -> T {
    // SAFETY: the caller's promise.
    #[cfg(target_arch = "bpf")]
    return unsafe { *at };
    // SAFETY: the caller's promise.
    #[cfg(not(target_arch = "bpf"))]
    return unsafe { at.read_unaligned() };
}

#[inline(always)]
unsafe fn write<T: Copy>(at: *mut T, value: T) {
    // SAFETY: the caller's promise.
    #[cfg(target_arch = "bpf")]
    return unsafe { *at = value };
    // SAFETY: the caller's promise.
    #[cfg(not(target_arch = "bpf"))]
    return unsafe { at.write_unaligned(value) };
}

/// A frame and what its hook can do with it. Offsets count from the link header.
pub trait Packet {
    /// True for XDP: then what needs more than a rewrite is left to TC.
    const XDP: bool;
    /// True for TC egress: packets of the node's own processes.
    const EGRESS: bool;

    /// `None` when the frame ends before `at + N`.
    fn window<const N: usize>(&mut self, at: usize) -> Option<Window<'_, N>>;
    /// Bytes of the whole frame; of a GSO packet, of all its segments with one header.
    fn len(&self) -> u32;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The interface by which it came; at egress, by which it would leave.
    fn ifindex(&self) -> u32;
    /// As `ifindex`; at egress the interface by which it came into the node, 0: a process of the node sent it.
    fn came_by(&self) -> u32 {
        self.ifindex()
    }
    /// A VLAN tag that the hardware took off (TC).
    fn tagged(&self) -> bool;
    /// The frame is not for this host alone: for another one, or for many (TC ingress).
    fn foreign(&self) -> bool;
    /// Payload bytes of the segments that it will be cut into; 0: it is one packet (TC).
    fn segment(&self) -> u32;

    /// Applies one's complement differences to the transport checksum at `at`: `addresses` belongs to the pseudo-header, `ports` to the
    /// segment. `udp`: a checksum of zero means "none" and stays.
    fn update_transport_checksum(&mut self, at: usize, addresses: u32, ports: u32, ipv6: bool, udp: bool);

    /// The hop limit of an IPv6 packet was decremented: no checksum in the packet covers it, but one that the device computed does.
    fn hop_limit_changed(&mut self);

    /// Route and neighbour of a destination, from the interface by which the packet came.
    fn route(&mut self, query: &RouteQuery) -> Route;

    /// Whether the stack would hand a packet to a neighbour that has the destination's address itself; TC only.
    fn on_link(&mut self, query: &RouteQuery) -> bool;

    /// Writes through the stack's bookkeeping (checksum state of the buffer); TC only. `false`: not written.
    fn write<const N: usize>(&mut self, at: usize, bytes: &[u8; N]) -> bool;
    /// Reads bytes that may lie outside the linear part.
    fn read<const N: usize>(&mut self, at: usize) -> Option<[u8; N]>;
    /// Cuts or lengthens the frame; a packet with segmentation offload becomes a plain one. TC only.
    fn resize(&mut self, len: u32) -> bool;
    /// Copies `len` bytes of the frame, 1 to [`COPY`], to `offset` (below `HEAD_LIMIT`) in a text; TC only.
    fn copy_in(&mut self, at: u32, text: &mut HeadText, offset: u32, len: u32) -> bool;
    /// The other way round, through the stack's bookkeeping.
    fn copy_out(&mut self, at: u32, text: &HeadText, offset: u32, len: u32) -> bool;
    /// One's complement sum of the 16-bit words of a part of a text, as [`Packet::copy_in`] limits it.
    fn sum(text: &HeadText, offset: u32, len: u32) -> u64;
    /// The same of a part of the frame, of up to 64 KB, by way of a text; TC only.
    fn sum_frame(&mut self, text: &mut HeadText, from: u32, len: u32) -> u64;
    /// Sends a copy out of an interface; TC only.
    fn clone_to(&mut self, ifindex: u32) -> bool;
    /// Has a copy come in by an interface: its link header must lead to it. TC only.
    fn clone_in(&mut self, ifindex: u32) -> bool;
    /// Makes room of `N` bytes between link and network header; TC only.
    fn insert_after_link(&mut self, bytes: u32) -> bool;
    /// Whether the transport checksum at `at` is still to be completed by the sender's device (CHECKSUM_PARTIAL).
    fn checksum_pending(&mut self, at: usize) -> bool;
    /// What the kernel knows of the transport checksum at `at`. `unmade`: it looks as one that is still to be completed.
    fn vouched(&mut self, at: usize, unmade: bool) -> Vouched;
}

/// What is known of a transport checksum without a look at the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vouched {
    /// The device has found it to be right (CHECKSUM_UNNECESSARY), or the sender's is still to make it.
    Right,
    /// One's complement sum of all that follows the link header (CHECKSUM_COMPLETE), on words as they are loaded.
    Sum(u32),
    Nothing,
}

/// What to look up.
#[derive(Clone, Copy)]
pub struct RouteQuery {
    pub ipv6: bool,
    pub proto: u8,
    /// Network-order words; IPv4 uses the first.
    pub src: [u32; 4],
    pub dst: [u32; 4],
}

/// What the kernel's routing says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Found {
        ifindex: u32,
        /// Destination, then source.
        macs: [u32; 3],
        /// 0: not known.
        mtu: u16,
    },
    /// The neighbour has to be resolved first.
    NoNeighbour { ifindex: u32 },
    /// Local, unreachable, or routed by what only the stack does.
    Stack,
}

/// A value in a map. Others (CPUs, the agent) may change it at any time, so it is read and written field by field through copies.
pub struct Ref<T>(*mut T);

impl<T> Clone for Ref<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Ref<T> {}

impl<T: Copy> Ref<T> {
    /// # Safety
    /// `value` points to a map value that stays allocated while the program runs.
    #[inline(always)]
    pub unsafe fn new(value: *mut T) -> Self {
        Self(value)
    }
    /// A copy of the value; LLVM drops the loads of fields that are not used.
    #[inline(always)]
    pub fn get(self) -> T {
        // SAFETY: `new`'s promise; T is plain data, so any bit pattern that a race leaves is a value.
        unsafe { *self.0 }
    }
    #[inline(always)]
    pub fn set(self, value: T) {
        // SAFETY: as in `get`.
        unsafe { *self.0 = value }
    }
    /// Where the value lies, for `field!`.
    #[inline(always)]
    pub fn as_ptr(self) -> *mut T {
        self.0
    }
    /// The value in place, for reading what is too large to copy.
    #[inline(always)]
    pub fn with<R>(self, f: impl FnOnce(&T) -> R) -> R {
        // SAFETY: as in `get`; such values are replaced whole by the agent, never written in place.
        f(unsafe { &*self.0 })
    }
}

/// `flag!(set reference.owner, FLAG)` and `flag!(clear reference.owner, FLAG)`: changes a flow's flags, which both directions' CPUs do.
#[macro_export]
macro_rules! flag {
    (set $r:ident . $($f:ident).+, $flag:expr) => {{
        let owner: *mut splitter_common::abi::Owner = $crate::at!($r.$($f).+);
        let bits = splitter_common::abi::Owner::bits($flag);
        // SAFETY: a Ref points to a live map value.
        unsafe { $crate::bytes::set_bits(owner.cast(), bits) }
    }};
    (clear $r:ident . $($f:ident).+, $flag:expr) => {{
        let owner: *mut splitter_common::abi::Owner = $crate::at!($r.$($f).+);
        let bits = splitter_common::abi::Owner::bits($flag);
        // SAFETY: a Ref points to a live map value.
        unsafe { $crate::bytes::clear_bits(owner.cast(), bits) }
    }};
}

/// `at!(reference.name)`: where a field of a [`Ref`] lies.
#[macro_export]
macro_rules! at {
    ($r:ident . $($f:ident).+) => {
        // SAFETY: a Ref points to a live map value.
        unsafe { &raw mut (*$r.as_ptr()).$($f).+ }
    };
}

/// `field!(reference.name)` reads a field of a [`Ref`], `field!(reference.name = value)` writes it.
#[macro_export]
macro_rules! field {
    ($r:ident . $($f:ident).+ = $v:expr) => {{
        let value = $v;
        // SAFETY: a Ref points to a live map value.
        unsafe { (&raw mut (*$r.as_ptr()).$($f).+).write(value) }
    }};
    ($r:ident . $($f:ident).+ += $v:expr) => {{
        let value = $v;
        // SAFETY: a Ref points to a live map value.
        unsafe { *(&raw mut (*$r.as_ptr()).$($f).+) += value }
    }};
    ($r:ident . $($f:ident).+) => {
        // SAFETY: a Ref points to a live map value.
        unsafe { (&raw const (*$r.as_ptr()).$($f).+).read() }
    };
}

/// Sets bits of a word that other CPUs may write at the same time (Linux 5.12).
///
/// # Safety
/// `word` points to a live map value.
#[inline(always)]
pub unsafe fn set_bits(word: *mut u32, bits: u32) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!("lock *(u32 *)({0} + 0) |= {1}", in(reg) word, in(wreg) bits)
    };
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's promise; tests have one thread.
    unsafe {
        *word |= bits
    };
}

/// Adds to a word that other CPUs may write at the same time, modulo 2^32.
///
/// # Safety
/// As [`set_bits`].
#[inline(always)]
pub unsafe fn add_to(word: *mut u32, value: u32) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!("lock *(u32 *)({0} + 0) += {1}", in(reg) word, in(wreg) value)
    };
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's promise; tests have one thread.
    unsafe {
        *word = (*word).wrapping_add(value)
    };
}

/// As [`add_to`], of 64 bits.
///
/// # Safety
/// As [`set_bits`].
#[inline(always)]
pub unsafe fn add_to_long(word: *mut u64, value: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) word, in(reg) value)
    };
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's promise; tests have one thread.
    unsafe {
        *word = (*word).wrapping_add(value)
    };
}

/// Reads a word; what is read after it was written no earlier than the word (Linux 5.12).
///
/// # Safety
/// As [`set_bits`].
#[inline(always)]
pub unsafe fn ordered(word: *mut u32) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let found: u32;
        // SAFETY: the caller's promise.
        unsafe {
            core::arch::asm!("{1} = atomic_fetch_add((u32 *)({0} + 0), {1})", in(reg) word, inout(wreg) 0u32 => found);
        }
        found
    }
    // SAFETY: the caller's promise.
    #[cfg(not(target_arch = "bpf"))]
    unsafe {
        *word
    }
}

/// Writes `new` to a word that is `old`; what it was, which is `old` when it was written. Ordered before and after all else (Linux 5.12).
///
/// # Safety
/// As [`set_bits`].
#[inline(always)]
pub unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let found: u64;
        // SAFETY: the caller's promise.
        unsafe {
            core::arch::asm!("r0 = cmpxchg_64({0} + 0, r0, {1})", in(reg) word, in(reg) new, inout("r0") old => found);
        }
        found
    }
    // SAFETY: the caller's promise; tests have one thread.
    #[cfg(not(target_arch = "bpf"))]
    unsafe {
        if *word == old { word.replace(new) } else { *word }
    }
}

/// As [`set_bits`], clears. All that was written before is seen by who sees the bits clear and reads them by [`ordered`].
///
/// # Safety
/// As [`set_bits`].
#[inline(always)]
pub unsafe fn clear_bits(word: *mut u32, bits: u32) {
    // SAFETY: the caller's promise.
    unsafe { fetch_clear(word, bits) };
}

/// As [`clear_bits`]; what the word was.
///
/// # Safety
/// As [`set_bits`].
#[inline(always)]
pub unsafe fn fetch_clear(word: *mut u32, bits: u32) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let found: u32;
        // SAFETY: the caller's promise.
        unsafe {
            core::arch::asm!("{1} = atomic_fetch_and((u32 *)({0} + 0), {1})", in(reg) word, inout(wreg) !bits => found);
        }
        found
    }
    // SAFETY: the caller's promise; tests have one thread.
    #[cfg(not(target_arch = "bpf"))]
    unsafe {
        let found = *word;
        *word &= !bits;
        found
    }
}
