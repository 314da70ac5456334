//! The node as a backend: its private addresses, and what a connection to them was sent to.

use crate::{FlowTables, TableError, Tables, netlink, plan};
use splitter_common::abi::{FlowKey, TCP, V4, V6, flow_flag};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

/// Gives the loopback interface the addresses that the kernel programs send connections of the userspace tier to; returns those that can be listened on.
/// Those it has stay. A kernel without IPv6 has no address of it, which is no error: it has no clients either.
///
/// # Errors
/// When the kernel refuses.
pub fn add_addresses() -> io::Result<Vec<SocketAddr>> {
    let mut usable = Vec::new();
    for address in plan::node::ADDRESSES {
        match netlink::add_to_loopback(address.ip()) {
            Ok(()) => await_route(address.ip())?,
            Err(error) if address.is_ipv6() => {
                tracing::info!(%error, "no IPv6 for the userspace tier");
                continue;
            }
            Err(error) => return Err(error),
        }
        usable.push(address);
    }
    Ok(usable)
}

/// The kernel brings an address of IPv6 up some moments after it has taken it.
fn await_route(address: IpAddr) -> io::Result<()> {
    const PAUSE: Duration = Duration::from_millis(2);
    const TRIES: u32 = 500;
    for _ in 0..TRIES {
        if netlink::route_to(address)? == netlink::Route::Local {
            return Ok(());
        }
        thread::sleep(PAUSE);
    }
    Err(io::Error::other(format!("{address} does not come up: is the loopback interface up?")))
}

/// Removes them; those that were there.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_addresses() -> io::Result<Vec<IpAddr>> {
    let mut removed = Vec::new();
    for address in plan::node::ADDRESSES {
        if netlink::remove_from_loopback(address.ip())? {
            removed.push(address.ip());
        }
    }
    Ok(removed)
}

/// What a client has connected to, of a connection that was accepted at a private address (`local`), as the kernel programs' own entry of its answers
/// says. `None`: they have not sent it.
///
/// # Errors
/// When the tables cannot be read.
pub fn destination(tables: &impl Tables, local: SocketAddr, client: SocketAddr) -> Result<Option<SocketAddr>, TableError> {
    match (local.is_ipv4(), client.is_ipv4()) {
        (true, true) => find::<V4>(tables, local, client),
        (false, false) => find::<V6>(tables, local, client),
        _ => Ok(None),
    }
}

fn find<F: FlowTables>(tables: &impl Tables, local: SocketAddr, client: SocketAddr) -> Result<Option<SocketAddr>, TableError> {
    let [[a, b], [c, d]] = [local, client].map(|address| address.port().to_be_bytes());
    let key = FlowKey::<F> {
        src: F::words(&plan::addr(local.ip())),
        dst: F::words(&plan::addr(client.ip())),
        ports: u32::from_ne_bytes([a, b, c, d]),
        proto: u32::from(TCP),
    };
    let flow = match F::TCP.get(tables, key)? {
        Some(flow) => Some(flow),
        None => F::HALF.get(tables, key)?.map(|half| half.flow),
    };
    Ok(flow.filter(|flow| flow.is(flow_flag::REVERSE)).map(|flow| {
        let ip = plan::ip(&F::mapped(&flow.peer));
        SocketAddr::new(ip, u16::from_be_bytes(flow.peer_port.to_ne_bytes()))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;
    use splitter_common::abi::{Flow, HalfOpen, owner};

    #[test]
    fn what_the_kernel_has_not_sent_is_nobodys() {
        let mut tables = Memory::new();
        let [local, client, vip] =
            ["169.254.77.77:15443", "10.1.0.1:40000", "10.9.9.9:443"].map(|text| text.parse::<SocketAddr>().unwrap());
        let look = |tables: &Memory, client| destination(tables, local, client).unwrap();
        assert_eq!(look(&tables, client), None);
        let words = |address: SocketAddr| V4::words(&plan::addr(address.ip()));
        let key = |port: u16| {
            let [[a, b], [c, d]] = [local.port(), port].map(u16::to_be_bytes);
            FlowKey::<V4> { src: words(local), dst: words(client), ports: u32::from_ne_bytes([a, b, c, d]), proto: 6 }
        };
        let port = u16::from_ne_bytes(vip.port().to_be_bytes());
        let flow = |flags| Flow::<V4> { peer: words(vip), peer_port: port, nexthop: 0, owner: owner(3, flags), last: 0 };
        V4::TCP.put_one(&mut tables, key(40_000), flow(flow_flag::REVERSE)).unwrap();
        V4::HALF.put_one(&mut tables, key(40_001), HalfOpen { flow: flow(flow_flag::REVERSE), expect: 0, trial: 0, stamp: 0 }).unwrap();
        V4::TCP.put_one(&mut tables, key(40_002), flow(0)).unwrap();
        assert_eq!(look(&tables, client), Some(vip));
        assert_eq!(look(&tables, SocketAddr::new(client.ip(), 40_001)), Some(vip));
        // The client's own direction tells nothing of the kind.
        assert_eq!(look(&tables, SocketAddr::new(client.ip(), 40_002)), None);
        assert_eq!(look(&tables, "[fd00::1]:40000".parse().unwrap()), None);
    }
}
