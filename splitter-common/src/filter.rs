//! The bitmap that tells most foreign packets apart before any table is read.
//!
//! A blocked Bloom filter: an endpoint sets two bits of one 64-bit word, so a test is one load. With 160,000 endpoints (40,000
//! services with three backends) about 0.7% of foreign endpoints pass a test by chance. Never a false "no".

use crate::abi::Addr;

/// Words of the filter (512 KiB).
pub const WORDS: u32 = 1 << 16;

/// What an endpoint is to us; a VIP must not look like a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Destination of client packets.
    Frontend,
    /// Source of replies.
    Backend,
    /// Destination of whatever goes to the address of a frontend; port and protocol are 0.
    Vip,
}

/// Word and bits of an endpoint. `words`: the address's 32-bit words as loaded from the packet; `port`: as loaded (network order).
#[inline(always)]
pub fn bits(role: Role, words: &[u32], port: u16, proto: u8) -> (u32, u64) {
    let role = match role {
        Role::Frontend => 1u64,
        Role::Backend => 2,
        Role::Vip => 3,
    };
    let mut h = (port as u64 | (proto as u64) << 16 | role << 24) << 32;
    match words {
        [a] => h |= *a as u64,
        [a, b, c, d] => {
            h ^= *a as u64 | (*b as u64) << 32;
            h = h.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            h ^= h >> 32;
            h ^= *c as u64 | (*d as u64) << 32;
        }
        _ => {}
    }
    h = h.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    h ^= h >> 32;
    h = h.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((h >> 48) as u32 & (WORDS - 1), 1u64 << (h >> 42 & 63) | 1u64 << (h >> 36 & 63))
}

/// Bits of the same word that an endpoint of a `mode: http` service sets besides its own [`bits`]: its packets belong to the splice. Other
/// endpoints may have them by chance.
#[inline(always)]
pub const fn http(bits: u64) -> u64 {
    bits.rotate_left(21)
}

/// As [`bits`], from an address in the ABI's form: what the agent sets.
pub fn bits_of(role: Role, addr: &Addr, port: [u8; 2], proto: u8) -> (u32, u64) {
    let word = |i: usize| u32::from_ne_bytes([addr[i], addr[i + 1], addr[i + 2], addr[i + 3]]);
    let port = u16::from_ne_bytes(port);
    if addr[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff] {
        bits(role, &[word(12)], port, proto)
    } else {
        bits(role, &[word(0), word(4), word(8), word(12)], port, proto)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::mapped;

    #[test]
    fn few_foreign_endpoints_pass_a_full_filter() {
        let mut words = vec![0u64; WORDS as usize];
        let vip = |i: u32| mapped((0x0ac8_0000 + i).to_be_bytes());
        for i in 0..40_000 {
            let (w, b) = bits_of(Role::Frontend, &vip(i), 80u16.to_be_bytes(), 6);
            words[w as usize] |= b;
        }
        for i in 0..120_000u32 {
            let (w, b) = bits_of(Role::Backend, &mapped((0x0a00_0000 + i).to_be_bytes()), 8080u16.to_be_bytes(), 6);
            words[w as usize] |= b;
        }
        let hit = |role, addr: &Addr, port: u16| {
            let (w, b) = bits_of(role, addr, port.to_be_bytes(), 6);
            words[w as usize] & b == b
        };
        assert!((0..40_000).all(|i| hit(Role::Frontend, &vip(i), 80)));
        let chance = (0..100_000).filter(|i| hit(Role::Frontend, &mapped((0xc0a8_0000u32 + i).to_be_bytes()), 443)).count();
        assert!(chance < 1_500, "{chance} of 100,000");
    }
}
