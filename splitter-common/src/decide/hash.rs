//! Hashes of the decision. Part of the published contract: changing one moves users between versions.
//!
//! The mixer is SplitMix64's finaliser (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014; constants by
//! Stafford), which passes avalanche tests and needs only 64-bit multiplication, which BPF has.

use crate::abi::Addr;

#[inline(always)]
const fn mix(mut h: u64) -> u64 {
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ (h >> 31)
}

#[inline(always)]
fn halves(addr: &Addr) -> (u64, u64) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *addr;
    (u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes([i, j, k, l, m, n, o, p]))
}

/// A service's salt: FNV-1a (64 bits) of its name, mixed. Depends on nothing else, so that all nodes agree.
pub const fn salt(name: &[u8]) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325u64;
    let mut i = 0;
    while i < name.len() {
        h = (h ^ name[i] as u64).wrapping_mul(0x0100_0000_01b3);
        i += 1;
    }
    mix(h)
}

/// Key of `splitBy: client-ip`.
#[inline(always)]
pub fn client_key(client: &Addr) -> u64 {
    let (a, b) = halves(client);
    mix(mix(a ^ 0x9e37_79b9_7f4a_7c15) ^ b)
}

/// Key of `splitBy: connection`: the client's endpoint and the frontend's. Ports in host order.
#[inline(always)]
pub fn connection_key(client: &Addr, client_port: u16, vip: &Addr, vip_port: u16, proto: u8) -> u64 {
    let (a, b) = halves(vip);
    let ports = client_port as u64 | (vip_port as u64) << 16 | (proto as u64) << 32;
    mix(mix(client_key(client) ^ ports) ^ a.rotate_left(23) ^ b)
}

/// Key of `splitBy: request`: the connection and the request's place in it (sequence number of its first byte, which starts at random).
#[inline(always)]
pub const fn request_key(connection: u64, sequence: u32) -> u64 {
    mix(connection ^ (sequence as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// First state of [`value_step`].
pub const VALUE_START: u64 = 0xcbf2_9ce4_8422_2325;

/// Key of `splitBy: {header: NAME}` and `{cookie: NAME}`: FNV-1a (64 bits) of the value's bytes; [`value_key`] finishes it.
#[inline(always)]
pub const fn value_step(hash: u64, byte: u8) -> u64 {
    (hash ^ byte as u64).wrapping_mul(0x0100_0000_01b3)
}

/// See [`value_step`].
#[inline(always)]
pub const fn value_key(hash: u64) -> u64 {
    mix(hash)
}

/// The bucket of a key, uniform over 32 bits.
#[inline(always)]
pub const fn bucket(salt: u64, key: u64) -> u32 {
    (mix(salt ^ key) >> 32) as u32
}

/// Backends that are tried before a suspect one is taken. With two backends, one of which failed, one key in 2^(n-1) finds no other.
pub const BACKEND_TRIES: u32 = 24;

/// The hash that picks a backend inside the version: independent of the bucket, so that a version's keys spread over all its backends.
/// `attempt` counts the backends already tried in vain.
#[inline(always)]
pub const fn backend_hash(salt: u64, key: u64, attempt: u32) -> u32 {
    (mix(mix(salt ^ key).wrapping_add(0x9e37_79b9_7f4a_7c15) ^ attempt as u64) >> 32) as u32
}
