//! Internet checksum by difference (RFC 1624, equation 3), on words as they are loaded: one's complement sums do not mind byte order.

/// What replacing a 32-bit word by another adds to the sum.
#[inline(always)]
pub const fn difference(old: u32, new: u32) -> u64 {
    !old as u64 + new as u64
}

/// Folds a sum of up to 2^32 words to 16 bits.
#[inline(always)]
pub const fn fold(sum: u64) -> u32 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u32
}

/// The checksum after a difference.
#[inline(always)]
pub const fn apply(checksum: u16, difference: u32) -> u16 {
    !(fold(!checksum as u64 + difference as u64) as u16)
}

/// Sum of 16-bit words of a header that was built as bytes.
#[inline(always)]
pub fn sum<const N: usize>(bytes: &[u8; N]) -> u64 {
    let mut sum = 0u64;
    let mut i = 0;
    while i + 1 < N {
        sum += u16::from_ne_bytes([bytes[i], bytes[i + 1]]) as u64;
        i += 2;
    }
    sum
}
