//! Chunked bodies (RFC 9112, 7.1), followed without reading their data: who knows a chunk's size can wait for the byte behind it.
//!
//! Bytes are read while [`Chunks::skip`] is 0; otherwise that many bytes are data and may pass unread ([`Chunks::pass`]). The end is found
//! to the byte. Whatever two parsers might read in two ways makes the body odd, for good: bare CR or LF, control bytes, blanks beside a
//! size, a size of 2 GB or more, a trailer that is no field line.

use super::{Loop, words};
use crate::barrier;

/// Most bytes that are read in one call.
pub const WINDOW: u32 = 32;

/// Where in a chunked body a connection stands. All zero is its beginning.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunks {
    /// The size read so far; of data: what is left of it.
    left: u32,
    /// [`place`] constant.
    place: u8,
    pad: [u8; 3],
}

mod place {
    pub const SIZE_FIRST: u8 = 0;
    pub const SIZE: u8 = 1;
    pub const EXTENSION: u8 = 2;
    pub const SIZE_LF: u8 = 3;
    pub const DATA: u8 = 4;
    pub const DATA_CR: u8 = 5;
    pub const DATA_LF: u8 = 6;
    pub const LINE: u8 = 7;
    pub const TRAILER_NAME: u8 = 8;
    pub const TRAILER: u8 = 9;
    pub const TRAILER_LF: u8 = 10;
    pub const LAST_LF: u8 = 11;
    pub const END: u8 = 12;
    pub const ODD: u8 = 13;
}

impl Chunks {
    /// Bytes of data that come next.
    #[inline(always)]
    pub const fn skip(&self) -> u32 {
        if self.place == place::DATA { self.left } else { 0 }
    }

    /// The body has ended: what follows is the next message.
    #[inline(always)]
    pub const fn is_end(&self) -> bool {
        self.place == place::END
    }

    /// Not to be followed any further.
    #[inline(always)]
    pub const fn is_odd(&self) -> bool {
        self.place == place::ODD
    }

    /// Data that has passed unread; more than [`Chunks::skip`] makes the body odd.
    #[inline(always)]
    pub fn pass(&mut self, bytes: u32) {
        if bytes > self.skip() {
            self.place = place::ODD;
        } else if bytes > 0 {
            self.left -= bytes;
            if self.left == 0 {
                self.place = place::DATA_CR;
            }
        }
    }

    /// Reads up to `len` bytes of the window and returns how many: fewer when data begins, the body ends or is odd. What stands behind `len`
    /// does not matter.
    #[inline(always)]
    pub fn feed<L: Loop>(&mut self, window: &[u8; WINDOW as usize], len: u32) -> u32 {
        let limit = if len > WINDOW { WINDOW } else { len };
        let mut used = 0;
        let count = &mut used;
        L::repeat(WINDOW, move |_| {
            if *count >= limit || self.place == place::DATA || self.place >= place::END {
                return true;
            }
            // SAFETY: masked to the window's length.
            let byte = unsafe { *window.as_ptr().add((barrier::opaque(*count) & (WINDOW - 1)) as usize) };
            *count += 1;
            self.place = self.next(byte);
            false
        });
        used
    }

    /// The place behind a byte.
    #[inline(always)]
    fn next(&mut self, byte: u8) -> u8 {
        match (self.place, byte) {
            (place::SIZE, b';') => place::EXTENSION,
            (place::SIZE | place::EXTENSION, b'\r') => place::SIZE_LF,
            (place::SIZE_FIRST | place::SIZE, _) => self.digit(byte),
            (place::SIZE_LF, b'\n') if self.left == 0 => place::LINE,
            (place::SIZE_LF, b'\n') => place::DATA,
            (place::DATA_CR, b'\r') => place::DATA_LF,
            (place::DATA_LF, b'\n') => place::SIZE_FIRST,
            (place::LINE, b'\r') => place::LAST_LF,
            (place::TRAILER_NAME, b':') => place::TRAILER,
            (place::TRAILER, b'\r') => place::TRAILER_LF,
            (place::TRAILER_LF, b'\n') => place::LINE,
            (place::LAST_LF, b'\n') => place::END,
            (place::EXTENSION, _) if is_text(byte) => place::EXTENSION,
            (place::TRAILER, _) if is_text(byte) => place::TRAILER,
            (place::LINE | place::TRAILER_NAME, _) if words::is_token(byte) => place::TRAILER_NAME,
            _ => place::ODD,
        }
    }

    /// A hexadecimal digit of a size below 2^31.
    #[inline(always)]
    fn digit(&mut self, byte: u8) -> u8 {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => return place::ODD,
        };
        if self.left >= 1 << 27 {
            return place::ODD;
        }
        self.left = self.left << 4 | digit as u32;
        place::SIZE
    }
}

/// Neither a control byte nor DEL.
#[inline(always)]
fn is_text(byte: u8) -> bool {
    byte >= b' ' && byte != 0x7f || byte == b'\t'
}
