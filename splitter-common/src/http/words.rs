//! Eight bytes at a time (SWAR: Lamport, Multiple byte processing with full-word instructions, CACM 1975). Owns every read of the text and of
//! the pool; each search is exact for the first byte that it finds.

use super::{HEAD_LIMIT, HeadText};
use crate::{abi::HTTP_POOL, barrier};

const HIGH: u64 = each(0x80);
const LOW7: u64 = each(0x7f);

const fn each(byte: u8) -> u64 {
    byte as u64 * 0x0101_0101_0101_0101
}

/// Bytes that [`name_end`] and [`host_end`] look at in one call.
pub const SHORT: u32 = 32;
/// Bytes that the other searches look at in one call.
pub const LONG: u32 = 64;

const _: () = assert!(super::HEAD_SLACK >= LONG);

/// A byte of the text; positions behind its end wrap.
#[inline(always)]
pub fn byte(text: &HeadText, at: u32) -> u8 {
    // SAFETY: masked to the text's length.
    unsafe { *text.as_ptr().add(barrier::masked::<HEAD_LIMIT>(at)) }
}

/// Two bytes of the text, the first one lowest; positions behind its end wrap.
#[inline(always)]
pub fn two(text: &HeadText, at: u32) -> u16 {
    // SAFETY: masked to the text's length, behind which there is room.
    unsafe { barrier::load_two(text.as_ptr().add(barrier::masked::<HEAD_LIMIT>(at))) }
}

/// 64 bytes of the text.
#[derive(Clone, Copy)]
struct Window(*const u8);

impl Window {
    #[inline(always)]
    fn new(text: &HeadText, at: u32) -> Self {
        // SAFETY: masked; 64 bytes follow the last position.
        Self(unsafe { text.as_ptr().add(barrier::masked::<HEAD_LIMIT>(at)) })
    }
    #[inline(always)]
    fn word<const AHEAD: usize>(self) -> u64 {
        const { assert!(AHEAD + 8 <= LONG as usize) };
        // SAFETY: inside the 64 bytes.
        unsafe { barrier::load::<AHEAD>(self.0) }
    }
}

/// Eight bytes of the text, the first one lowest.
#[inline(always)]
pub fn word(text: &HeadText, at: u32) -> u64 {
    Window::new(text, at).word::<0>()
}

/// Eight bytes of the pool.
#[inline(always)]
pub fn pool_word(pool: &[u8; HTTP_POOL + 8], at: u32) -> u64 {
    // SAFETY: masked to the pool's length, eight bytes follow.
    unsafe { barrier::load::<0>(pool.as_ptr().add(barrier::masked::<{ HTTP_POOL as u32 }>(at))) }
}

/// Ones in the lowest `bytes` bytes; 8 and more are all.
#[inline(always)]
pub fn below(bytes: u32) -> u64 {
    if bytes >= 8 { u64::MAX } else { (1u64 << (bytes * 8)) - 1 }
}

/// The word without the case of ASCII letters, and nothing else changed.
#[inline(always)]
pub fn lower(word: u64) -> u64 {
    let t = word & LOW7;
    let upper = (t + each(0x80 - b'A')) & (each(0x80 + b'Z') - t) & !word & HIGH;
    word | upper >> 2
}

/// The word with bit 5 of each byte set: equal for letters that differ in case. Exact in comparisons with lower-case letters.
#[inline(always)]
pub fn folded(word: u64) -> u64 {
    word | each(0x20)
}

/// The bit of a name in a filter, from [`folded`] first bytes (zero behind its end) and its length.
#[inline(always)]
pub const fn bit(first: u64, len: u32) -> u64 {
    1 << ((first.wrapping_add(len as u64)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58)
}

/// Index of the lowest marked byte, 7 when there is none; BPF has no count of trailing zeros.
#[inline(always)]
fn lowest(marks: u64) -> u32 {
    ((marks.wrapping_sub(1) & each(1)).wrapping_mul(each(1)) >> 56) as u32 - 1
}

/// Marks every byte below `first` and DEL, exactly.
#[inline(always)]
fn outside<const FIRST: u8>(word: u64) -> u64 {
    let t = word & LOW7;
    let visible = (t + each(0x80 - FIRST)) & (each(0xfe) - t);
    !(visible | word) & HIGH
}

/// Whether one of the eight bytes is a control byte (horizontal tab and DEL are some).
#[inline(always)]
pub fn has_control(word: u64) -> bool {
    outside::<b' '>(word) != 0
}

/// Marks every byte equal to `byte`, exactly.
#[inline(always)]
fn same(word: u64, byte: u64) -> u64 {
    let x = word ^ byte;
    !(((x & LOW7) + LOW7) | x) & HIGH
}

/// Marks every byte that is neither a space nor a horizontal tab, exactly.
#[inline(always)]
fn filled(word: u64) -> u64 {
    !(same(word, each(b' ')) | same(word, each(b'\t'))) & HIGH
}

/// Marks bytes that are not visible ASCII or a space, the lowest one exactly: only marked bytes borrow from the next one or carry to it.
#[inline(always)]
fn special(word: u64) -> u64 {
    (word.wrapping_sub(each(b' ')) | word.wrapping_add(each(1))) & HIGH
}

/// Marks bytes that are no letter, no digit, no `-` or `.`, and not between them and `LAST`; the lowest one exactly: bytes of ASCII neither
/// carry nor borrow, the others are marked.
#[inline(always)]
fn uncommon<const LAST: u8>(word: u64) -> u64 {
    let l = word | each(0x20);
    let letter = l.wrapping_add(each(0x80 - b'a')) & each(0x80 + b'z').wrapping_sub(l);
    let other = word.wrapping_add(each(0x80 - b'-')) & each(0x80 + LAST).wrapping_sub(word) & (word ^ each(b'/')).wrapping_add(LOW7);
    !(letter | other) & HIGH
}

/// Marks bytes equal to `byte`, the lowest one exactly.
#[inline(always)]
fn equal(word: u64, byte: u64) -> u64 {
    let x = word ^ byte;
    x.wrapping_sub(each(1)) & !x & HIGH
}

/// Position of the first marked byte of a window, or its end. The position is computed in one place for all words: less to verify.
macro_rules! search {
    ($text:expr, $at:expr, $word:ident => $marks:expr, [$($ahead:literal),*], $end:expr) => {{
        let window = Window::new($text, $at);
        let mut marks;
        // `lowest(0)` is 7.
        let mut ahead = $end - 7;
        'found: {
            $(
                let $word = window.word::<$ahead>();
                marks = $marks;
                if marks != 0 {
                    ahead = $ahead;
                    break 'found;
                }
            )*
        }
        $at.wrapping_add(barrier::opaque(ahead)).wrapping_add(lowest(marks))
    }};
}

/// First byte that is not common in field names; `at + SHORT` without one.
#[inline(always)]
pub fn name_end(text: &HeadText, at: u32) -> u32 {
    search!(text, at, word => uncommon::<b'9'>(word), [0, 8, 16, 24], SHORT)
}

/// The same of host names and ports, in which `:` is common.
#[inline(always)]
pub fn host_end(text: &HeadText, at: u32) -> u32 {
    search!(text, at, word => uncommon::<b':'>(word), [0, 8, 16, 24], SHORT)
}

/// First byte that is not visible ASCII or a space.
#[inline(always)]
pub fn line_end(text: &HeadText, at: u32) -> u32 {
    search!(text, at, word => special(word), [0, 8, 16, 24, 32, 40, 48, 56], LONG)
}

/// First control byte but horizontal tab (DEL is one).
#[inline(always)]
pub fn control(text: &HeadText, at: u32) -> u32 {
    search!(text, at, word => outside::<b' '>(word) & !same(word, each(b'\t')), [0, 8, 16, 24, 32, 40, 48, 56], LONG)
}

/// First byte that is neither a space nor a horizontal tab.
#[inline(always)]
pub fn not_blank(text: &HeadText, at: u32) -> u32 {
    search!(text, at, word => filled(word), [0, 8, 16, 24, 32, 40, 48, 56], LONG)
}

/// How many of the bytes before `end` are spaces and horizontal tabs, in words of eight: 32, 8 or 0.
#[inline(always)]
pub fn blank_words(text: &HeadText, end: u32) -> u32 {
    if filled(word(text, end.wrapping_sub(8))) != 0 {
        return 0;
    }
    let window = Window::new(text, end.wrapping_sub(32));
    if filled(window.word::<0>()) | filled(window.word::<8>()) | filled(window.word::<16>()) == 0 { 32 } else { 8 }
}

/// First control byte or space.
#[inline(always)]
pub fn blank(text: &HeadText, at: u32) -> u32 {
    search!(text, at, word => outside::<b'!'>(word), [0, 8, 16, 24, 32, 40, 48, 56], LONG)
}

/// First byte equal to `a` or `b`.
#[inline(always)]
pub fn either(text: &HeadText, at: u32, a: u8, b: u8) -> u32 {
    let (a, b) = (each(a), each(b));
    search!(text, at, word => equal(word, a) | equal(word, b), [0, 8, 16, 24, 32, 40, 48, 56], LONG)
}

/// First byte equal to `byte`.
#[inline(always)]
pub fn find(text: &HeadText, at: u32, byte: u8) -> u32 {
    search!(text, at, word => equal(word, each(byte)), [0, 8, 16, 24, 32, 40, 48, 56], LONG)
}

/// The same of the next [`SHORT`] bytes.
#[inline(always)]
pub fn find_near(text: &HeadText, at: u32, byte: u8) -> u32 {
    search!(text, at, word => equal(word, each(byte)), [0, 8, 16, 24], SHORT)
}

/// Whether a byte may stand in a token (RFC 9110, 5.6.2).
#[inline(always)]
pub const fn is_token(byte: u8) -> bool {
    member(byte, TOKEN)
}

/// Whether a byte may stand in a `Host` (RFC 3986, 3.2.2 and 3.2.3). The comma, which the grammar has, is left out: it is what a list of two
/// hosts would show.
#[inline(always)]
pub const fn is_host(byte: u8) -> bool {
    member(byte, HOST)
}

const TOKEN: [u64; 2] = set(b"!#$%&'*+-.^_`|~");
const HOST: [u64; 2] = set(b"-._~%!$&'()*+;=:[]");

#[inline(always)]
const fn member(byte: u8, set: [u64; 2]) -> bool {
    let half = if byte & 64 == 0 { set[0] } else { set[1] };
    byte < 128 && half >> (byte & 63) & 1 == 1
}

/// Letters, digits and these.
const fn set(others: &[u8]) -> [u64; 2] {
    let mut set = [0u64; 2];
    let mut byte = 0u8;
    while byte < 128 {
        if byte.is_ascii_alphanumeric() {
            set[byte as usize / 64] |= 1 << (byte % 64);
        }
        byte += 1;
    }
    let mut i = 0;
    while i < others.len() {
        set[others[i] as usize / 64] |= 1 << (others[i] % 64);
        i += 1;
    }
    set
}

#[cfg(test)]
mod tests {
    use super::super::HEAD_SLACK;
    use super::*;

    /// Every byte at every place of a word, beside every other of a few.
    fn each_byte(check: impl Fn(u64, u32, u8)) {
        for byte in 0..=255u8 {
            for at in 0..8 {
                for rest in [b'a', b'-', 0x7e, 0x80, 0xff] {
                    let word = each(rest) & !(0xff << (8 * at)) | u64::from(byte) << (8 * at);
                    check(word, at, byte);
                }
            }
        }
    }

    #[test]
    fn classes_are_exact_for_every_byte() {
        each_byte(|word, at, byte| {
            let marked = |marks: u64| marks >> (8 * at) & 0xff == 0x80;
            assert_eq!(marked(outside::<b' '>(word)), byte < 0x20 || byte == 0x7f, "{byte:#x} as control");
            assert_eq!(marked(outside::<b'!'>(word)), byte <= 0x20 || byte == 0x7f, "{byte:#x} as blank");
            assert_eq!(lower(word) >> (8 * at) & 0xff, u64::from(byte.to_ascii_lowercase()), "{byte:#x} lowered");
        });
    }

    /// Every pair of bytes at every place of a word, among others.
    #[test]
    fn the_first_byte_of_a_class_is_found() {
        let common = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
        let check = |marks: u64, word: u64, class: &dyn Fn(u8) -> bool| {
            let first = word.to_le_bytes().iter().position(|byte| class(*byte));
            assert_eq!((marks != 0).then(|| lowest(marks) as usize), first, "{word:#018x}");
            assert_eq!(marks & !HIGH, 0);
        };
        for pair in 0..=u16::MAX {
            for at in 0..7 {
                let rest = [b'a', b'-', b'Z', b'0'][at as usize % 4];
                let word = each(rest) & !(0xffff << (8 * at)) | u64::from(pair) << (8 * at);
                check(special(word), word, &|byte| !(0x20..0x7f).contains(&byte));
                check(uncommon::<b'9'>(word), word, &|byte| !common(byte));
                check(uncommon::<b':'>(word), word, &|byte| !(common(byte) || byte == b':'));
                check(equal(word, each(b';')), word, &|byte| byte == b';');
            }
        }
    }

    #[test]
    fn the_first_equal_byte_is_found() {
        for found in 0..64usize {
            for second in found..64 {
                let mut text = [0u8; HEAD_LIMIT as usize + HEAD_SLACK as usize];
                text[..64].fill(b'<');
                (text[found], text[second]) = (b';', b'=');
                let first = if found == second { second } else { found };
                assert_eq!(either(&text, 0, b';', b'='), first as u32);
            }
        }
        assert_eq!(either(&[b'a'; HEAD_LIMIT as usize + HEAD_SLACK as usize], 7, b';', b'='), 7 + LONG);
    }

    #[test]
    fn tokens_and_hosts() {
        for byte in 0..=255u8 {
            let token = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            assert_eq!(is_token(byte), token, "{byte:#x}");
        }
        assert!(is_host(b'[') && is_host(b':') && !is_host(b',') && !is_host(b'/') && !is_host(b'@') && !is_host(0xc3));
    }

    #[test]
    fn masks() {
        assert_eq!([below(0), below(1), below(7), below(8), below(9)], [0, 0xff, u64::MAX >> 8, u64::MAX, u64::MAX]);
        assert_eq!((0..8).map(|i| lowest(0x80 << (8 * i) | HIGH << (8 * i))).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(lowest(0), 7);
    }
}
