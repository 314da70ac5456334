//! Sockets as the kernel wants them: bound, non-blocking, shared by port. Knows nothing of HTTP.

use crate::poll::check;
use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// A bound, non-blocking socket with SO_REUSEPORT; TCP ones listen.
pub(super) fn socket(address: SocketAddr, kind: i32) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(family, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let set = |level, option, value: i32| {
        // SAFETY: the value is an int that lives through the call.
        check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), size_of::<i32>() as u32) })
    };
    set(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    set(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    if family == libc::AF_INET6 {
        let any = address.ip() == Ipv6Addr::UNSPECIFIED;
        set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, i32::from(!any))?;
    }
    let (storage, length) = raw_address(address);
    // SAFETY: the storage holds an address of that length.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const storage).cast(), length) })?;
    if kind == libc::SOCK_STREAM {
        // SAFETY: no pointers.
        check(unsafe { libc::listen(fd.as_raw_fd(), 16_384) })?;
    }
    Ok(fd)
}

/// An address as the kernel wants it, and its length in bytes.
pub fn raw_address(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all zeroes is a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let length = match address {
        SocketAddr::V4(address) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is larger than and aligned for every address type.
            unsafe { std::ptr::write((&raw mut storage).cast(), raw) };
            size_of_val(&raw)
        }
        SocketAddr::V6(address) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            };
            // SAFETY: as above.
            unsafe { std::ptr::write((&raw mut storage).cast(), raw) };
            size_of_val(&raw)
        }
    };
    (storage, length as libc::socklen_t)
}
