//! Questions to the kernel by netlink, and their answers.

use netlink_packet_core::{NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload, NetlinkSerializable};
use netlink_sys::{Socket, SocketAddr};
use std::{fmt::Debug, io};

/// A socket for questions to the kernel.
pub fn connect(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// `flags`: beside `NLM_F_REQUEST`; a dump, or one that is acknowledged.
pub fn request<M>(socket: &Socket, message: M, flags: u16, mut each: impl FnMut(M)) -> io::Result<()>
where
    M: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<M>> + Debug,
{
    let mut packet = NetlinkMessage::from(message);
    packet.header.flags = NLM_F_REQUEST | flags;
    packet.finalize();
    let mut buffer = vec![0; packet.buffer_len()];
    packet.serialize(&mut buffer);
    socket.send(&buffer, 0)?;
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = &bytes[..];
        while rest.len() >= 16 {
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            if length < 16 || length > rest.len() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "netlink: a message is longer than its datagram"));
            }
            match NetlinkMessage::<M>::deserialize(&rest[..length]).map(|message| message.payload) {
                Ok(NetlinkPayload::Done(_)) => return Ok(()),
                Ok(NetlinkPayload::Error(error)) if error.code.is_some() => return Err(error.to_io()),
                Ok(NetlinkPayload::Error(_)) => return Ok(()),
                Ok(NetlinkPayload::InnerMessage(message)) => each(message),
                Ok(_) => {}
                // One interface with an attribute newer than the parser must not hide the others.
                Err(error) => tracing::debug!(%error, "netlink message not understood"),
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
    }
}
