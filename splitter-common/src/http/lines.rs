//! Heads of responses that come in several packets, read byte by byte: what they have shown so far is three words, and nothing of the head
//! is kept.
//!
//! Says of a head what [`super::response()`] says, which reads one that lies in one text, at an eighth of the cost. A head that is broken may be known as
//! such some bytes earlier.

use super::{
    Loop, ResponseHead, field, response,
    state::{is_blank, seen},
    verdict, words,
};
use crate::barrier;

/// Most bytes that are read in one call.
pub const WINDOW: u32 = 64;
/// Room behind a window, for reading words.
pub const SLACK: u32 = 8;
/// Longest head that is read, bytes.
pub const LIMIT: u32 = 65_536;

/// From this on a length does not grow: such a body is not counted.
const LONG: u32 = 1 << 31;

/// Where in the head of a response a connection stands. All zero: in none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// `Content-Length` so far.
    length: u32,
    /// Bytes of the head that have been read.
    read: u32,
    status: u16,
    /// [`place`] constant.
    place: u8,
    /// Of what is compared or counted here: bytes so far, in the low five bits. Above: [`LENGTH`], [`CODING`], [`HTTP_1_0`].
    notes: u8,
}

const INDEX: u8 = 31;
/// The fields that were seen, and the version.
const LENGTH: u8 = 32;
const CODING: u8 = 64;
const HTTP_1_0: u8 = 128;

mod place {
    pub const NONE: u8 = 0;
    pub const STATUS: u8 = 1;
    /// Up to the end of the line, whatever it says.
    pub const TEXT: u8 = 2;
    pub const TEXT_LF: u8 = 3;
    pub const LINE: u8 = 4;
    /// In a name that so far is that of the field.
    pub const NAME_LENGTH: u8 = 5;
    pub const NAME_CODING: u8 = 6;
    /// In a name that began like one of them.
    pub const NAME: u8 = 7;
    pub const LENGTH: u8 = 8;
    pub const CODING: u8 = 9;
    /// Behind such a value.
    pub const BLANKS: u8 = 10;
    pub const LAST_LF: u8 = 11;
    pub const END: u8 = 12;
    pub const ODD: u8 = 13;
}

/// The first eight letters tell whether a name is looked at at all, as in `Head::says_nothing_of_framing`.
const TELLING: u8 = 8;
const CONTENT_LENGTH: [u64; 3] = [field::CONTENT_LENGTH[0], field::CONTENT_LENGTH[1], 0];
const TRANSFER_ENCODING: [u64; 3] = [field::TRANSFER_ENCODING[0], field::TRANSFER_ENCODING[1], b'g' as u64];

impl Lines {
    /// Before the first byte of a head.
    pub const BEGIN: Self = Self { length: 0, read: 0, status: 0, place: place::STATUS, notes: 0 };

    /// Whether a head is read here: it has begun, or is to begin.
    #[inline(always)]
    pub const fn is_begun(&self) -> bool {
        self.place != place::NONE
    }

    /// Whether no byte of the head has been read.
    #[inline(always)]
    pub const fn is_fresh(&self) -> bool {
        self.read == 0
    }

    /// Whether the head has ended, or is not to be read any further.
    #[inline(always)]
    pub const fn is_over(&self) -> bool {
        self.place >= place::END
    }

    /// The head is not read any further.
    #[inline(always)]
    pub fn give_up(&mut self) {
        self.place = place::ODD;
    }

    /// Reads up to `len` bytes of the window and returns how many: fewer when the head ends or is odd. What stands behind `len` does not
    /// matter.
    #[inline(always)]
    pub fn feed<L: Loop>(&mut self, window: &[u8; (WINDOW + SLACK) as usize], len: u32) -> u32 {
        let limit = if len > WINDOW { WINDOW } else { len };
        let left = LIMIT.saturating_sub(self.read);
        let limit = if limit > left { left } else { limit };
        let mut used = 0;
        {
            let (count, lines) = (&mut used, &mut *self);
            L::repeat(WINDOW, move |_| {
                if *count >= limit || lines.is_over() {
                    return true;
                }
                // SAFETY: masked to the window's length, behind which there is room for a word.
                let at = unsafe { window.as_ptr().add(barrier::masked::<WINDOW>(*count)) };
                // SAFETY: as above.
                if lines.place == place::TEXT && limit - *count >= 8 && !words::has_control(unsafe { barrier::load::<0>(at) }) {
                    *count += 8;
                    return false;
                }
                *count += 1;
                // SAFETY: as above.
                lines.place = lines.next(unsafe { *at });
                false
            });
        }
        self.read = self.read.wrapping_add(used);
        if self.read >= LIMIT && !self.is_over() {
            self.give_up();
        }
        used
    }

    /// What [`super::response()`] would say of the bytes so far. Of lengths from 2^31 on it says 2^31.
    #[inline(always)]
    pub fn head(&self, answers_head: bool, out: &mut ResponseHead) {
        let status = if self.place == place::STATUS { 0 } else { self.status };
        *out = ResponseHead { status, ..ResponseHead::default() };
        if self.place == place::END {
            out.verdict = verdict::COMPLETE;
            let fields = if self.notes & LENGTH != 0 { seen::LENGTH } else { 0 } | if self.notes & CODING != 0 { seen::CODING } else { 0 };
            response::finish(fields, self.length as u64, self.read, answers_head, out);
        } else if self.place == place::ODD {
            out.verdict = if self.read >= LIMIT { verdict::TOO_LONG } else { verdict::PIN };
        }
    }

    /// The place behind a byte.
    #[inline(always)]
    fn next(&mut self, byte: u8) -> u8 {
        match self.place {
            place::TEXT => text(byte),
            place::TEXT_LF => when(byte == b'\n', place::LINE),
            place::LINE => self.line(byte),
            place::NAME_LENGTH => self.name(byte, CONTENT_LENGTH, 14),
            place::NAME_CODING => self.name(byte, TRANSFER_ENCODING, 17),
            place::NAME if byte == b':' => place::TEXT,
            place::NAME => when(words::is_token(byte), place::NAME),
            place::LENGTH => self.digit(byte),
            place::CODING => self.coding(byte),
            place::BLANKS if byte == b'\r' => place::TEXT_LF,
            place::BLANKS => when(is_blank(byte), place::BLANKS),
            place::LAST_LF => when(byte == b'\n', place::END),
            _ => self.status(byte),
        }
    }

    #[inline(always)]
    fn index(&self) -> u8 {
        self.notes & INDEX
    }

    /// The status line up to the byte behind the status (RFC 9112, 4).
    #[inline(always)]
    fn status(&mut self, byte: u8) -> u8 {
        const START: u64 = u64::from_le_bytes(*b"HTTP/1.1");
        let at = self.index();
        self.notes += 1;
        let digit = byte.wrapping_sub(b'0');
        let right = match at {
            0..7 => byte == letter([START, 0, 0], at),
            7 => digit < 2,
            8 => byte == b' ',
            9 => digit < 10 && digit != 0,
            10 | 11 => digit < 10,
            _ => byte == b' ' || byte == b'\r',
        };
        if !right {
            self.status = 0;
            return place::ODD;
        }
        match at {
            7 if digit == 0 => self.notes |= HTTP_1_0,
            9..12 => self.status = self.status * 10 + digit as u16,
            12 => return text(byte),
            _ => {}
        }
        place::STATUS
    }

    /// The first byte of a line.
    #[inline(always)]
    fn line(&mut self, byte: u8) -> u8 {
        self.notes = self.notes & !INDEX | 1;
        match byte {
            b'\r' => place::LAST_LF,
            b'c' | b'C' => place::NAME_LENGTH,
            b't' | b'T' => place::NAME_CODING,
            _ => when(words::is_token(byte), place::TEXT),
        }
    }

    /// A byte of a name that may be `name`, which has `len` letters.
    #[inline(always)]
    fn name(&mut self, byte: u8, name: [u64; 3], len: u8) -> u8 {
        let at = self.index();
        let equal = at < len && byte | 0x20 == letter(name, at);
        if at < TELLING && !equal {
            return text(byte);
        }
        if byte == b':' {
            return if at == len { self.value() } else { place::TEXT };
        }
        if !words::is_token(byte) {
            return place::ODD;
        }
        if !equal {
            return place::NAME;
        }
        self.notes += 1;
        self.place
    }

    /// The colon behind one of the names.
    #[inline(always)]
    fn value(&mut self) -> u8 {
        let before = self.notes;
        let (field, wrong) =
            if self.place == place::NAME_LENGTH { (LENGTH, LENGTH | CODING) } else { (CODING, LENGTH | CODING | HTTP_1_0) };
        self.notes = before & !INDEX | field;
        let place = if field == LENGTH { place::LENGTH } else { place::CODING };
        when(before & wrong == 0, place)
    }

    /// A number of 1 to 19 digits, blanks before it and behind it.
    #[inline(always)]
    fn digit(&mut self, byte: u8) -> u8 {
        let (digit, so_far) = (byte.wrapping_sub(b'0'), self.index());
        if digit < 10 {
            let length = self.length as u64 * 10 + digit as u64;
            self.length = if length > LONG as u64 { LONG } else { length as u32 };
            self.notes += 1;
            return when(so_far < field::DIGITS as u8, place::LENGTH);
        }
        behind(byte, so_far, so_far != 0, place::LENGTH)
    }

    /// `chunked`, blanks before it and behind it.
    #[inline(always)]
    fn coding(&mut self, byte: u8) -> u8 {
        let so_far = self.index();
        if so_far < 7 && byte | 0x20 == letter([field::CHUNKED, 0, 0], so_far) {
            self.notes += 1;
            return place::CODING;
        }
        behind(byte, so_far, so_far == 7, place::CODING)
    }
}

/// A byte of a value of which `so_far` bytes are read, and that may end here.
#[inline(always)]
fn behind(byte: u8, so_far: u8, whole: bool, place: u8) -> u8 {
    match byte {
        b'\r' => when(whole, place::TEXT_LF),
        b' ' | b'\t' if so_far == 0 => place,
        b' ' | b'\t' => when(whole, place::BLANKS),
        _ => place::ODD,
    }
}

#[inline(always)]
fn text(byte: u8) -> u8 {
    match byte {
        b'\r' => place::TEXT_LF,
        b'\t' => place::TEXT,
        _ => when(byte >= b' ' && byte != 0x7f, place::TEXT),
    }
}

#[inline(always)]
fn when(right: bool, place: u8) -> u8 {
    if right { place } else { place::ODD }
}

/// The letter at an index below 24.
#[inline(always)]
fn letter(words: [u64; 3], at: u8) -> u8 {
    let word = match at >> 3 {
        0 => words[0],
        1 => words[1],
        _ => words[2],
    };
    (word >> (8 * (at & 7))) as u8
}
