//! What the optimiser must not see: the verifier only believes a mask that is really there. Does nothing on the host.

/// Hides a value from the optimiser, which would otherwise drop a mask that it thinks redundant and the verifier does not.
#[inline(always)]
pub fn opaque(value: u32) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: no instruction at all; the constraint makes the register opaque.
        unsafe { core::arch::asm!("{0} = {0}", inout(wreg) value, options(pure, nomem, nostack)) };
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    value
}

/// The value when it is 1 to `MOST`, a power of two. Verifiers learn the limits from the mask alone: of two compares LLVM makes one of
/// `value - 1`, which verifiers that do not carry what they learn back to the value (seen on Linux 6.1 and 6.12) know nothing from; and that
/// a value is not zero says nothing to those before Linux 6.8.
#[inline(always)]
pub fn within<const MOST: u32>(value: u32) -> Option<u32> {
    let less = value.wrapping_sub(1);
    if less < MOST { Some(masked::<MOST>(less) as u32 + 1) } else { None }
}

/// The value's bits below `LIMIT`, a power of two: a mask that the optimiser cannot drop, in one instruction.
#[inline(always)]
pub fn masked<const LIMIT: u32>(value: u32) -> usize {
    const { assert!(LIMIT.is_power_of_two()) };
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value as u64;
        // SAFETY: arithmetic on the register alone.
        unsafe { core::arch::asm!("{0} &= {1}", inout(reg) value, const LIMIT - 1, options(pure, nomem, nostack)) };
        value as usize
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        (value & (LIMIT - 1)) as usize
    }
}

/// Puts a value into memory and takes it out again. When the memory is a map's, the verifier knows it no more: what follows a loop is then
/// checked once, and not for each value that the loop may have left.
#[inline(always)]
pub fn forget(memory: &mut u32, value: u32) -> u32 {
    let memory = &raw mut *memory;
    // SAFETY: made of a reference.
    unsafe {
        memory.write_volatile(value);
        memory.read_volatile()
    }
}

/// Takes a value out of memory, whatever was put there just before: as [`forget`], and nothing is put there.
#[inline(always)]
pub fn recall<T: Copy>(memory: &T) -> T {
    // SAFETY: made of a reference.
    unsafe { (&raw const *memory).read_volatile() }
}

/// The eight bytes at `base + AHEAD`, the first one lowest. BPF loads words at any address where the machine does; the compiler would take
/// them byte by byte.
///
/// # Safety
/// `base + AHEAD .. base + AHEAD + 8` may be read.
#[inline(always)]
pub unsafe fn load<const AHEAD: usize>(base: *const u8) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let word: u64;
        // SAFETY: the caller's promise; a load and nothing else.
        unsafe {
            core::arch::asm!("{0} = *(u64 *)({1} + {2})", out(reg) word, in(reg) base, const AHEAD, options(pure, readonly, nostack));
        }
        u64::from_le(word)
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's promise.
    u64::from_le(unsafe { base.add(AHEAD).cast::<u64>().read_unaligned() })
}

/// The two bytes at `base`, as [`load`].
///
/// # Safety
/// `base .. base + 2` may be read.
#[inline(always)]
pub unsafe fn load_two(base: *const u8) -> u16 {
    #[cfg(target_arch = "bpf")]
    {
        let word: u64;
        // SAFETY: the caller's promise; a load and nothing else.
        unsafe { core::arch::asm!("{0} = *(u16 *)({1} + 0)", out(reg) word, in(reg) base, options(pure, readonly, nostack)) };
        u16::from_le(word as u16)
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's promise.
    u16::from_le(unsafe { base.cast::<u16>().read_unaligned() })
}
