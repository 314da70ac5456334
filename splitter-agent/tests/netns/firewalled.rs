//! A node with a firewall that knows the connections it has seen, which are none of ours.

use crate::support::{
    Bed, PORT, Split, document, eventually,
    socket::{transfer, unfragmented},
    tool, vip,
};
use splitter_lab::lab::Options;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};

/// Rules as they stand on many hosts: what is forwarded must belong to a connection, what belongs to none is dropped at once.
const RULES: &str = "table inet guard {
    chain early { type filter hook prerouting priority mangle; policy accept; ct state invalid drop; }
    chain forward { type filter hook forward priority filter; policy drop; ct state established,related accept; }
}";
/// What lets clients through that go by the stack.
const NEW: &str = "add rule inet guard forward meta l4proto { tcp, udp } th dport 8080 ct state new accept";

/// A node with the rules, whose only backend is two hops away: behind backend 1's namespace, which is a router here. Its link to there carries
/// 1,500 bytes, its route 1,400.
fn bed(name: &str, path: &str) -> Bed {
    let one = |split: Split| Split { versions: vec![(1, vec![2])], ..split.with(path) };
    let tcp = [one(Split::tcp(1, 0)), one(Split::tcp(1, 0).v6().named("web6"))];
    let udp = [one(Split::tcp(1, 0).udp().named("dns")), one(Split::tcp(1, 0).udp().v6().named("dns6"))];
    let splits = [tcp, udp].concat();
    let mut bed = Bed::prepare(name, Options { backends: 2, ..Options::default() }, &splits);
    let (router, server) = (bed.lab.backend(1).clone(), bed.lab.backend(2).clone());
    router.sysctls(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")]).unwrap();
    router.batch(&format!("link add far type veth peer name near netns {}\nlink set far up\n", server.name())).unwrap();
    router.batch("address add 10.3.0.1/24 dev far\naddress add fd03::1/64 dev far nodad\n").unwrap();
    router.batch("route add 10.3.0.2/32 dev far mtu lock 1400\nroute add fd03::2/128 dev far mtu lock 1400\n").unwrap();
    server.batch("link set near up\naddress add 10.3.0.2/24 dev near\naddress add fd03::2/64 dev near nodad\n").unwrap();
    server.batch("route replace default via 10.3.0.1\nroute replace default via fd03::1\n").unwrap();
    bed.lab.node.batch("route add 10.3.0.0/24 via 10.2.1.2\nroute add fd03::/64 via fd02:1::2\n").unwrap();
    let mut nft = bed.lab.node.command("nft");
    nft.arg(RULES);
    tool(nft);
    if path.ends_with("stack") {
        let mut nft = bed.lab.node.command("nft");
        nft.arg(NEW);
        tool(nft);
    }
    let mut policy = document(&bed.lab, &splits);
    for v6 in [false, true] {
        policy = policy.replace(&bed.lab.backend_addr(2, v6, PORT).to_string(), &backend(v6).to_string());
    }
    bed.write_policy(&policy);
    bed.start();
    bed
}

fn backend(v6: bool) -> SocketAddr {
    SocketAddr::new(if v6 { "fd03::2" } else { "10.3.0.2" }.parse().expect("an address"), PORT)
}

/// Datagrams of this length, until one comes back.
fn echoed(what: &str, socket: &UdpSocket, length: usize) {
    socket.set_read_timeout(Some(std::time::Duration::from_millis(200))).expect("a socket");
    let mut buffer = vec![0; length + 100];
    eventually(what, || {
        // An error that came meanwhile is told first.
        socket.send(&vec![1; length]).ok()?;
        let got = socket.recv(&mut buffer).ok()?;
        (got == length + 3).then_some(())
    });
}

#[test]
fn errors_of_the_network_pass_a_firewall() {
    errors_arrive(bed("guarded", "path: redirect"));
}

/// On the stack's path it knows the connections, and errors are related to them.
#[test]
fn errors_of_the_network_are_related() {
    errors_arrive(bed("related", "path: stack"));
}

fn errors_arrive(mut bed: Bed) {
    // TCP over the narrow hop: its router's word must reach the client, by both versions of IP.
    bed.stop_server(2);
    let server = bed.lab.backend(2).clone();
    for v6 in [false, true] {
        let any = if v6 { SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT) } else { SocketAddr::new([0; 4].into(), PORT) };
        let before = bed.reason("icmp_translated");
        transfer(bed.lab.client(), (&server, any), vip(v6), 4 << 20);
        assert!(bed.reason("icmp_translated") > before, "the path is narrow");
    }
    for family in ["-4", "-6"] {
        let mut forget = bed.lab.client().command("ip");
        forget.args([family, "route", "flush", "cache"]);
        tool(forget);
    }
    // Nobody listens: the client hears it at once.
    for v6 in [false, true] {
        let socket = unfragmented(bed.lab.client(), vip(v6));
        let refused = eventually("the refusal", || socket.send(b"x").err());
        assert_eq!(refused.raw_os_error(), Some(libc::ECONNREFUSED), "{refused}");
    }
    // Datagrams: one that must not be cut, and one that its sender cuts, for a path that it does not know yet.
    bed.start_server(2);
    for v6 in [false, true] {
        let header = if v6 { 48 } else { 28 };
        let socket = unfragmented(bed.lab.client(), vip(v6));
        socket.send(&vec![1; 1_500 - header]).ok();
        let error =
            eventually("EMSGSIZE", || socket.send(&vec![1; 1_500 - header]).err().filter(|e| e.raw_os_error() == Some(libc::EMSGSIZE)));
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{error}");
        let mut forget = bed.lab.client().command("ip");
        forget.args([if v6 { "-6" } else { "-4" }, "route", "flush", "cache"]);
        tool(forget);
        let cut = bed.lab.client().run(|| UdpSocket::bind(if v6 { "[::]:0" } else { "0.0.0.0:0" })).unwrap().unwrap();
        cut.connect(vip(v6)).unwrap();
        echoed("a datagram in fragments", &cut, 4_000);
    }
}
