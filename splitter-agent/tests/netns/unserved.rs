//! What is sent to a VIP and no service has: the programs answer like a host, whatever routes the node has.

use crate::support::{Bed, Split, eventually, tool, vip};
use splitter_lab::lab::{Namespace, VIP4};
use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

/// The VIP, at a port that no service has.
fn closed(v6: bool) -> SocketAddr {
    SocketAddr::new(vip(v6).ip(), 9_999)
}

fn refused(client: &Namespace, to: SocketAddr) {
    let (tcp, udp) = client
        .run(|| {
            let tcp = TcpStream::connect_timeout(&to, Duration::from_secs(5)).map_err(|error| error.kind());
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).expect("a socket");
            socket.connect(to).expect("a socket");
            socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket");
            socket.send(b"x").expect("a datagram");
            (tcp.err(), socket.recv(&mut [0; 10]).map_err(|error| error.kind()).err())
        })
        .expect("a namespace");
    assert_eq!((tcp, udp), (Some(ErrorKind::ConnectionRefused), Some(ErrorKind::ConnectionRefused)), "{to}");
}

/// An echo request with `length` bytes; whether they come back.
fn ping(client: &Namespace, to: SocketAddr, length: usize) -> bool {
    let script = "import os, select, socket, struct, sys, time
to, length = sys.argv[1], int(sys.argv[2])
v6 = ':' in to
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58) if v6 else socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
kind, reply = (128, 129) if v6 else (8, 0)
rest = struct.pack('!HH', os.getpid() & 65535, 1) + b'ab' * (length // 2)
words = struct.unpack('!%dH' % (len(rest) // 2), rest)
total = (kind << 8) + sum(words)
while total >> 16:
    total = (total & 65535) + (total >> 16)
s.sendto(struct.pack('!BBH', kind, 0, ~total & 65535) + rest, (to, 0))
end = time.time() + 2
while time.time() < end:
    if select.select([s], [], [], end - time.time())[0]:
        data, sender = s.recvfrom(4000)
        data = data if v6 else data[20:]
        if data[0] == reply and data[4:] == rest and sender[0] == to:
            sys.exit(0)
sys.exit(1)
";
    let mut command = client.command("python3");
    command.args(["-c", script, &to.ip().to_string(), &length.to_string()]);
    command.status().expect("python runs").success()
}

/// Frames that left the node by `c0`.
fn sent(bed: &Bed) -> u64 {
    let read = || std::fs::read_to_string("/proc/thread-self/net/dev").expect("the kernel counts");
    let text = bed.lab.node.run(read).expect("a namespace");
    let line = text.lines().find_map(|line| line.trim().strip_prefix("c0:")).expect("c0");
    line.split_whitespace().nth(9).and_then(|word| word.parse().ok()).expect("a number")
}

#[test]
fn what_is_not_served_is_answered_and_does_not_loop() {
    let one = |v6: bool| {
        let split = Split::tcp(1, 0).with("vip: {ping: true}");
        if v6 { split.v6().named("web6") } else { split }
    };
    let udp = Split { versions: vec![(0, vec![1]), (0, vec![2])], ..Split::tcp(0, 0).udp().named("dns") };
    let bed = Bed::new("unserved", &[one(false), one(true), udp.clone()]);
    let client = bed.lab.client();
    for v6 in [false, true] {
        // Without any route to the VIP, and with one back to the client, who would send it here again.
        refused(client, closed(v6));
        client.sysctls(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")]).unwrap();
        let gateway = bed.lab.client_ip(0, v6);
        bed.lab.node.batch(&format!("route add default via {gateway}\n")).unwrap();
        let before = sent(&bed);
        refused(client, closed(v6));
        let frames = sent(&bed) - before;
        assert!(frames < 12, "{frames} frames for two packets");
        assert!(ping(client, vip(v6), 0) && ping(client, vip(v6), 1_400), "IPv{}", if v6 { 6 } else { 4 });
        // Served all the same.
        bed.clean(splitter_lab::load::Plan::http(vip(v6)), 20);
    }
    // A service without anybody: told, not swallowed.
    let socket = client.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    socket.connect(vip(false)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.send(b"question").unwrap();
    assert_eq!(socket.recv(&mut [0; 10]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(bed.reason("vip_refused") >= 8 && bed.reason("vip_ping") >= 4 && bed.reason("no_version") >= 1);

    // An address that the node has itself is the stack's, as soon as it has it.
    let listener = bed.lab.node.run(|| std::net::TcpListener::bind("0.0.0.0:9999")).unwrap().unwrap();
    bed.lab.node.batch(&format!("address add {VIP4}/32 dev lo\n")).unwrap();
    let connect = || client.run(|| TcpStream::connect_timeout(&closed(false), Duration::from_secs(1)).ok()).unwrap();
    let _held = eventually("the node answers itself", connect);
    drop(listener);
    bed.clean(splitter_lab::load::Plan::http(vip(false)), 20);
    bed.lab.node.batch(&format!("address del {VIP4}/32 dev lo\n")).unwrap();

    // Nobody asked for answers to pings any more.
    bed.apply(&[Split::tcp(1, 0), one(true), udp]);
    assert!(!ping(client, vip(false), 8) && ping(client, vip(true), 8));
}

/// The first hop of a traceroute by TCP to the service: the node, which has no route to the VIP.
#[test]
fn the_node_answers_a_traceroute() {
    let bed = Bed::new("hops", &[Split::tcp(1, 0), Split::tcp(1, 0).v6().named("web6")]);
    for v6 in [false, true] {
        let (to, node) = (vip(v6), bed.lab.node_ip(0, v6));
        let script = "import socket, struct, sys
to, v6 = sys.argv[1], ':' in sys.argv[1]
s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_STREAM)
level, recverr, hops = (41, 25, 16) if v6 else (0, 11, 2)
s.setsockopt(level, recverr, 1)
s.setsockopt(level, hops, 1)
s.settimeout(5)
try:
    s.connect((to, 80))
except OSError as error:
    pass
data, ancillary, flags, address = s.recvmsg(0, 512, socket.MSG_ERRQUEUE)
for _, _, value in ancillary:
    offender = value[16:]
    print(socket.inet_ntop(s.family, offender[8:24] if v6 else offender[4:8]))
";
        let mut python = bed.lab.client().command("python3");
        python.args(["-c", script, &to.ip().to_string()]);
        assert_eq!(tool(python).trim(), node.to_string());
    }
    assert!(bed.reason("ttl_expired") >= 2);
}
