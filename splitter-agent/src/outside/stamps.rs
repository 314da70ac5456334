//! Whether a backend agrees to TCP timestamps (RFC 7323): a connection is opened, looked at, and reset. Nothing is sent on it.

use std::{io, mem::size_of, net::SocketAddr, os::fd::AsRawFd, time::Duration};
use tokio::net::TcpStream;

/// A backend that needs longer is asked again another time.
const PATIENCE: Duration = Duration::from_secs(1);
/// `TCPI_OPT_TIMESTAMPS` of `linux/tcp.h`.
const TIMESTAMPS: u8 = 1;

/// `None`: it cannot be reached now. Never true where this host does without timestamps (`net.ipv4.tcp_timestamps`).
pub async fn agrees(backend: SocketAddr) -> Option<bool> {
    let stream = tokio::time::timeout(PATIENCE, TcpStream::connect(backend)).await.ok()?.ok()?;
    let options = options(&stream).ok()?;
    // No TIME-WAIT is left for it on either side; where this fails, one is.
    let _ = reset_on_close(&stream);
    Some(options & TIMESTAMPS != 0)
}

fn options(stream: &TcpStream) -> io::Result<u8> {
    // SAFETY: all zero is a value of this plain structure.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the pointers are to live values, and the length is the structure's.
    let result =
        unsafe { libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length) };
    if result == 0 { Ok(info.tcpi_options) } else { Err(io::Error::last_os_error()) }
}

fn reset_on_close(stream: &TcpStream) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let length = size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: the pointer is to a live value of the length given.
    let result = unsafe { libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Read, net::TcpListener};

    #[tokio::test]
    async fn a_backend_says_what_its_kernel_does() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_timestamps").unwrap().trim() != "0";
        assert_eq!(agrees(listener.local_addr().unwrap()).await, Some(ours));
        // It is reset without a byte.
        let (mut peer, _) = listener.accept().unwrap();
        assert_eq!(peer.read(&mut [0]).map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
        let nobody = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(agrees(nobody).await, None);
    }
}
