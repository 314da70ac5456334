//! A SYN flood from addresses that answer nothing.

use splitter_lab::{
    lab::{Namespace, VIP4},
    poll::check,
};
use std::{
    net::Ipv4Addr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// SYNs a second.
pub const RATE: u64 = 100_000;
pub const TIME: Duration = Duration::from_secs(5);

/// Sum of 16-bit words, folded and inverted (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// An IPv4 packet with a SYN to the VIP.
fn syn(from: Ipv4Addr, port: u16) -> [u8; 40] {
    let mut packet = [0; 40];
    packet[0] = 0x45;
    packet[3] = 40;
    packet[8] = 64;
    packet[9] = 6;
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&VIP4.octets());
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[23] = 80;
    packet[32] = 5 << 4;
    packet[33] = 2;
    packet[34] = 0x20;
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum);
    let pseudo = [&packet[12..20], &[0, 6, 0, 20], &packet[20..]].concat();
    let sum = checksum(&pseudo);
    packet[36..38].copy_from_slice(&sum);
    packet
}

/// A socket that sends whole IPv4 packets, in the calling thread's namespace.
fn raw_socket() -> std::io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends SYNs to the VIP for [`TIME`] at [`RATE`]; says when it is over, and how many went out.
pub fn flood(client: &Namespace, over: &AtomicBool) -> u64 {
    let send = || {
        let socket = raw_socket().expect("a raw socket");
        // SAFETY: all zeroes is a valid address.
        let mut to: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        to.sin_family = libc::AF_INET as u16;
        to.sin_addr.s_addr = u32::from_ne_bytes(VIP4.octets());
        let (began, mut tried, mut sent) = (Instant::now(), 0u64, 0);
        while began.elapsed() < TIME {
            let due = (began.elapsed().as_secs_f64() * RATE as f64) as u64;
            for i in tried..due {
                // 10.1.1.0 to 10.1.250.255, where nobody lives.
                let from = Ipv4Addr::new(10, 1, 1 + (i / 256 % 250) as u8, i as u8);
                let packet = syn(from, 1_024 + (i / 64_000 % 60_000) as u16);
                // SAFETY: packet and address live through the call. What the queue has no room for is not counted.
                let result = unsafe {
                    libc::sendto(socket.as_raw_fd(), packet.as_ptr().cast(), 40, 0, (&raw const to).cast(), size_of_val(&to) as u32)
                };
                sent += u64::from(result == 40);
            }
            tried = due;
            std::thread::sleep(Duration::from_micros(200));
        }
        over.store(true, Ordering::SeqCst);
        sent
    };
    client.run(send).expect("the client's namespace")
}
