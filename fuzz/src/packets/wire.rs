//! What is sound of a frame, by code that shares nothing with the pipeline. And frames made sound.

/// Where a frame's parts are, when it is an IPv4 or IPv6 packet without extension headers, not a fragment, and whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    pub ipv6: bool,
    pub proto: u8,
    /// First byte of the transport header.
    pub transport: usize,
    /// First byte behind the packet; the link may have padded it.
    pub end: usize,
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// One's complement sum (RFC 1071).
fn sum(bytes: &[u8], start: u32) -> u32 {
    let mut sum = bytes.chunks(2).fold(start, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// The headers' own lengths, without a look at checksums.
pub fn parts(bytes: &[u8]) -> Option<Parts> {
    if bytes.len() < 34 {
        return None;
    }
    let parts = match (word(bytes, 12), bytes[14] >> 4) {
        (0x0800, 4) => {
            let header = usize::from(bytes[14] & 15) * 4;
            let whole = word(bytes, 20) & 0x3fff == 0;
            let parts = Parts { ipv6: false, proto: bytes[23], transport: 14 + header, end: 14 + usize::from(word(bytes, 16)) };
            (header >= 20 && whole).then_some(parts)
        }
        (0x86dd, 6) if bytes.len() >= 54 => {
            Some(Parts { ipv6: true, proto: bytes[20], transport: 54, end: 54 + usize::from(word(bytes, 18)) })
        }
        _ => None,
    }?;
    let least = match parts.proto {
        6 => 20,
        17 | 1 | 58 => 8,
        _ => return None,
    };
    (parts.transport + least <= parts.end && parts.end <= bytes.len()).then_some(parts)
}

/// Offset of the transport checksum.
pub fn checksum_at(parts: Parts) -> usize {
    parts.transport
        + match parts.proto {
            6 => 16,
            17 => 6,
            _ => 2,
        }
}

fn pseudo(bytes: &[u8], parts: Parts) -> u32 {
    if !parts.ipv6 && parts.proto == 1 {
        return 0;
    }
    let addresses = if parts.ipv6 { &bytes[22..54] } else { &bytes[26..34] };
    sum(addresses, u32::from(parts.proto) + (parts.end - parts.transport) as u32)
}

/// Why the frame is not sound; `Ok(None)`: not of a kind that is looked into.
pub fn soundness(bytes: &[u8]) -> Result<Option<Parts>, &'static str> {
    let header = if bytes.len() >= 34 && word(bytes, 12) == 0x0800 { usize::from(bytes[14] & 15) * 4 } else { 0 };
    if header >= 20 && bytes.len() >= 14 + header && sum(&bytes[14..14 + header], 0) != 0xffff {
        return Err("the checksum of the IPv4 header");
    }
    let Some(parts) = parts(bytes) else { return Ok(None) };
    if parts.proto == 17 && usize::from(word(bytes, parts.transport + 4)) != parts.end - parts.transport {
        return Err("the length of the datagram");
    }
    if parts.proto == 6 && !(20..=parts.end - parts.transport).contains(&(usize::from(bytes[parts.transport + 12] >> 4) * 4)) {
        return Err("the length of the TCP header");
    }
    // Of IPv4, a datagram may do without.
    if parts.proto == 17 && !parts.ipv6 && word(bytes, parts.transport + 6) == 0 {
        return Ok(Some(parts));
    }
    if sum(&bytes[parts.transport..parts.end], pseudo(bytes, parts)) != 0xffff {
        return Err("the checksum of the transport");
    }
    Ok(Some(parts))
}

/// Puts right checksums into a frame, as far as its lengths make sense.
pub fn mend(bytes: &mut [u8]) {
    if bytes.len() >= 34 && word(bytes, 12) == 0x0800 {
        let header = usize::from(bytes[14] & 15) * 4;
        if header >= 20 && bytes.len() >= 14 + header {
            bytes[24..26].fill(0);
            let sum = !(sum(&bytes[14..14 + header], 0) as u16);
            bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        }
    }
    if let Some(parts) = parts(bytes) {
        let at = checksum_at(parts);
        bytes[at..at + 2].fill(0);
        let sum = !(sum(&bytes[parts.transport..parts.end], pseudo(bytes, parts)) as u16);
        let sum = if parts.proto == 17 && sum == 0 { 0xffff } else { sum };
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}
