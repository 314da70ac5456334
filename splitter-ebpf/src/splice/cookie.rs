//! Initial sequence numbers towards clients: a keyed hash of the connection (RFC 6528) that also carries what the client's SYN said, so
//! that the node keeps nothing until the first request (SYN cookies, RFC 4987, 3.6). A flood of SYNs finds no table to fill.
//!
//! 24 bits of the number are SipHash-2-4 (Aumasson, Bernstein, 2012) over addresses, ports, the client's number and a counter of a
//! minute; the low 8 bits say window scale, SACK and a class of segment sizes, hidden by the hash. Where somebody guesses (see [`guard`]) all 32 bits are
//! of the hash, and what the client said is remembered: see [`seen`].

use super::{
    guard, seen,
    segment::{OPENS, Segment},
};
use crate::{
    bytes::Ref,
    env::{Env, Tables},
    field,
    packet::Ip,
    place,
};
use splitter_common::{abi::*, barrier::masked};

/// Segment sizes that a cookie can say; a client's is rounded down.
const SIZES: [u16; 8] = [536, 1024, 1220, 1340, 1380, 1440, 1460, 8940];
/// Scale that stands for "not scaled".
const NO_SCALE: u8 = 15;

/// What a cookie says of its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    pub mss: u16,
    pub options: u8,
    pub scale: u8,
}

impl Client {
    /// From what [`super::segment::options`] found.
    #[inline(always)]
    pub const fn of(found: u32) -> Self {
        Self { mss: found as u16, options: (found >> 24) as u8, scale: (found >> 16 & 15) as u8 }
    }
    #[inline(always)]
    const fn pack(self) -> u8 {
        let mut class = 7;
        let mut i = 7;
        while i > 0 {
            if self.mss < SIZES[i] {
                class = i as u8 - 1;
            }
            i -= 1;
        }
        let scale = if self.options & tcp_option::SCALE != 0 { self.scale } else { NO_SCALE };
        class << 5 | scale << 1 | (self.options & tcp_option::SACK != 0) as u8
    }
    #[inline(always)]
    const fn unpack(bits: u8) -> Self {
        let scale = bits >> 1 & 15;
        let mut options = if bits & 1 != 0 { tcp_option::SACK } else { 0 };
        if scale != NO_SCALE {
            options |= tcp_option::SCALE;
        }
        let mss = match bits >> 5 {
            0 => SIZES[0],
            1 => SIZES[1],
            2 => SIZES[2],
            3 => SIZES[3],
            4 => SIZES[4],
            5 => SIZES[5],
            6 => SIZES[6],
            _ => SIZES[7],
        };
        Self { mss, options, scale: if scale == NO_SCALE { 0 } else { scale } }
    }
}

/// What can be agreed on with a client that said `options`: no cookie has zeros for its client, which stand for one that is remembered.
#[inline(always)]
pub const fn agreed(options: u32) -> u32 {
    if Client::of(options).pack() == 0 { options & !((tcp_option::SCALE as u32) << 24) } else { options }
}

/// The number for the answer to a SYN to a service, of a client with which [`agreed`] options.
#[inline(never)]
pub fn make<F: Ip, E: Env + Tables<F>>(env: &E, key: &FlowKey<F>, segment: &Segment, service: u32, options: u32) -> u32 {
    let (Some(config), Some(scratch)) = (env.config(), Tables::<F>::scratch(env)) else { return 0 };
    let hash = hash(config, key, segment.seq, step(env.now(), 0));
    if guard::is_up(env, service) != 0 {
        place!(scratch.seen).hash = hash;
        seen::keep::<F, E>(env, options);
        return hash as u32;
    }
    hash as u32 & !0xff | (hash as u8 ^ Client::of(options).pack()) as u32
}

/// [`open`]: it would, had it not begun a connection before.
pub const SPENT: u32 = 1;

/// What the client said, when the segment continues a handshake that the node answered: its first byte follows the client's SYN, and
/// it acknowledges nothing but the node's. With [`OPENS`], as [`super::segment::options`]; [`SPENT`]; 0: it does not. Leaves the hash in
/// `scratch.seen`, for [`seen::spend`].
#[inline(never)]
pub fn open<F: Ip, E: Env + Tables<F>>(env: &E, key: &FlowKey<F>, segment: &Segment, service: u32) -> u32 {
    let (Some(config), Some(scratch)) = (env.config(), Tables::<F>::scratch(env)) else { return 0 };
    let cookie = segment.ack.wrapping_sub(1);
    let now = env.now();
    let mut age = 0;
    while age < 2 {
        let hash = hash(config, key, segment.seq.wrapping_sub(1), step(now, age));
        if (hash as u32 ^ cookie) >> 8 == 0 {
            place!(scratch.seen).hash = hash;
            if seen::is_spent::<F, E>(env) != 0 {
                return SPENT;
            }
            let packed = (cookie ^ hash as u32) as u8;
            if packed == 0 {
                return seen::kept::<F, E>(env);
            }
            if guard::is_up(env, service) != 0 {
                env.count(Reason::CookieGuarded);
                return 0;
            }
            let client = Client::unpack(packed);
            return OPENS | (client.options as u32) << 24 | (client.scale as u32) << 16 | client.mss as u32;
        }
        age += 1;
    }
    0
}

/// A name of a connection that nobody can tell beforehand.
#[inline(never)]
pub fn name<F: Ip, E: Env>(env: &E, key: &FlowKey<F>) -> u64 {
    let Some(config) = env.config() else { return 0 };
    sip(field!(config.secret), key, 0, 0)
}

/// The counter `age` steps ago. A client may wait one step with its first request: browsers connect ahead of need.
#[inline(always)]
const fn step(now: u64, age: u32) -> u32 {
    ((now >> COOKIE_STEP) as u32).wrapping_sub(age)
}

#[inline(always)]
fn hash<F: Ip>(config: Ref<Config>, key: &FlowKey<F>, number: u32, counter: u32) -> u64 {
    // SAFETY: masked to the array's length; a Ref points to a live map value.
    let secret = unsafe { *(&raw const (*config.as_ptr()).cookies).cast::<[u64; 2]>().add(masked::<2>(cookie_epoch(counter))) };
    sip(secret, key, number, counter as u64)
}

#[inline(always)]
fn sip<F: Ip>(secret: [u64; 2], key: &FlowKey<F>, number: u32, last: u64) -> u64 {
    let mut state = Sip::new(secret);
    let (src, dst) = (key.src.as_ref(), key.dst.as_ref());
    state.feed(src[0] as u64 | (dst[0] as u64) << 32);
    if F::IPV6 {
        let mut i = 1;
        while i < 4 {
            state.feed(src[i] as u64 | (dst[i] as u64) << 32);
            i += 1;
        }
    }
    state.feed(key.ports as u64 | (number as u64) << 32);
    state.feed(last);
    state.finish()
}

/// SipHash-2-4 over whole words.
struct Sip(u64, u64, u64, u64);

impl Sip {
    #[inline(always)]
    fn new([a, b]: [u64; 2]) -> Self {
        Self(a ^ 0x736f_6d65_7073_6575, b ^ 0x646f_7261_6e64_6f6d, a ^ 0x6c79_6765_6e65_7261, b ^ 0x7465_6462_7974_6573)
    }
    #[inline(always)]
    fn round(&mut self) {
        self.0 = self.0.wrapping_add(self.1);
        self.2 = self.2.wrapping_add(self.3);
        self.1 = self.1.rotate_left(13) ^ self.0;
        self.3 = self.3.rotate_left(16) ^ self.2;
        self.0 = self.0.rotate_left(32);
        self.2 = self.2.wrapping_add(self.1);
        self.0 = self.0.wrapping_add(self.3);
        self.1 = self.1.rotate_left(17) ^ self.2;
        self.3 = self.3.rotate_left(21) ^ self.0;
        self.2 = self.2.rotate_left(32);
    }
    #[inline(always)]
    fn feed(&mut self, word: u64) {
        self.3 ^= word;
        self.round();
        self.round();
        self.0 ^= word;
    }
    #[inline(always)]
    fn finish(mut self) -> u64 {
        self.2 ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.round();
        self.0 ^ self.1 ^ self.2 ^ self.3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference's test vector for 15 bytes, as the words that its padding makes of them.
    #[test]
    fn siphash_is_siphash() {
        let mut state = Sip::new([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]);
        state.feed(0x0706_0504_0302_0100);
        state.feed(0x0f0e_0d0c_0b0a_0908);
        assert_eq!(state.finish(), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn a_client_survives_its_cookie() {
        for (mss, rounded) in [(0, 536), (536, 536), (1459, 1440), (1460, 1460), (8000, 1460), (9000, 8940)] {
            for (options, scale) in [(0, 0), (tcp_option::SCALE, 0), (tcp_option::SCALE | tcp_option::SACK, 14), (tcp_option::SACK, 0)] {
                let client = Client { mss, options, scale };
                assert_eq!(Client::unpack(client.pack()), Client { mss: rounded, ..client });
            }
        }
    }
}
