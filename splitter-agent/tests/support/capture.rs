//! What arrives on a wire, in order: a packet socket at one end of a veth.

use splitter_lab::lab::Namespace;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// A TCP segment as it was seen. Numbers in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    /// Of these, [`FIN`], [`SYN`], [`RST`] and [`ACK`] have names.
    pub flags: u8,
    /// As it stands in the header.
    pub window: u16,
    /// Bytes of payload.
    pub len: usize,
}

/// Frames are kept by the kernel, as many as its buffer holds, until they are asked for.
pub struct Capture(OwnedFd);

impl Capture {
    /// Everything that goes in and out of `eth0` of a namespace from now on.
    ///
    /// # Panics
    /// Without root.
    pub fn start(namespace: &Namespace) -> Capture {
        namespace.run(open).expect("a namespace").expect("a packet socket")
    }

    /// The TCP segments seen since the last time.
    pub fn take(&self) -> Vec<Seen> {
        let mut frames = Vec::new();
        let mut frame = vec![0u8; 70_000];
        loop {
            // SAFETY: the buffer is as long as said.
            let length = unsafe { libc::recv(self.0.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), libc::MSG_DONTWAIT) };
            let Ok(length) = usize::try_from(length) else { return frames };
            frames.extend(parse(&frame[..length]));
        }
    }
}

fn open() -> io::Result<Capture> {
    const EVERYTHING: u16 = libc::ETH_P_ALL as u16;
    let buffer: libc::c_int = 16 << 20;
    // SAFETY: plain calls; the address and the option are as long as said.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(EVERYTHING.to_be()));
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = OwnedFd::from_raw_fd(fd);
        let size = size_of_val(&buffer) as libc::socklen_t;
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, (&raw const buffer).cast(), size);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = EVERYTHING.to_be();
        address.sll_ifindex = libc::if_nametoindex(c"eth0".as_ptr()) as i32;
        let size = size_of_val(&address) as libc::socklen_t;
        if libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Capture(fd))
    }
}

/// Lengths come from the frame's own headers: what a device pads or joins is not counted twice.
fn parse(frame: &[u8]) -> Option<Seen> {
    let word = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let long = |at: usize| Some(u32::from(word(at)?) << 16 | u32::from(word(at + 2)?));
    let address = |at: usize, len: usize| -> Option<IpAddr> {
        let bytes = frame.get(at..at + len)?;
        Some(if len == 4 { <[u8; 4]>::try_from(bytes).ok()?.into() } else { <[u8; 16]>::try_from(bytes).ok()?.into() })
    };
    let (src, dst, tcp) = match word(12)? {
        0x0800 if *frame.get(23)? == 6 => (address(26, 4)?, address(30, 4)?, 14 + usize::from(frame[14] & 15) * 4),
        0x86dd if *frame.get(20)? == 6 => (address(22, 16)?, address(38, 16)?, 54),
        _ => return None,
    };
    let header = usize::from(*frame.get(tcp + 12)? >> 4) * 4;
    Some(Seen {
        src: SocketAddr::new(src, word(tcp)?),
        dst: SocketAddr::new(dst, word(tcp + 2)?),
        seq: long(tcp + 4)?,
        ack: long(tcp + 8)?,
        flags: *frame.get(tcp + 13)?,
        window: word(tcp + 14)?,
        len: frame.len().checked_sub(tcp + header)?,
    })
}
