//! One client port for two frontends at once, as Linux gives to connections whose destinations differ, and the same backend behind both.

use crate::support::{Bed, PATIENCE, Split, client_ip, socket::Conversation, vip};
use splitter_lab::lab::Namespace;
use std::net::{IpAddr, SocketAddr, UdpSocket};

const ROUNDS: usize = 200;

/// A frontend of one family by its last byte and port.
fn frontend(v6: bool, host: u8, port: u16) -> SocketAddr {
    let ip: IpAddr = match vip(v6).ip() {
        IpAddr::V4(ip) => IpAddr::from([ip.octets()[0], ip.octets()[1], ip.octets()[2], host]),
        IpAddr::V6(ip) => IpAddr::from(std::array::from_fn::<u8, 16, _>(|i| if i < 15 { ip.octets()[i] } else { host })),
    };
    SocketAddr::new(ip, port)
}

/// Services of layer 4 and of http, all with the one backend `b3`.
fn services(v6: bool) -> Vec<Split> {
    let tcp = |name, host, port| Split { v6, frontends: vec![frontend(v6, host, port)], ..Split::tcp(0, 1) }.named(name);
    let http = |name, host, port| Split { http: true, ..tcp(name, host, port) };
    if v6 {
        return vec![
            tcp("one6", 9, 80),
            tcp("two6", 10, 80),
            http("three6", 9, 81),
            http("four6", 9, 82),
            tcp("dns6", 9, 53).udp(),
            tcp("dnt6", 10, 53).udp(),
        ];
    }
    vec![
        tcp("one", 9, 80),
        tcp("two", 10, 80),
        http("three", 9, 81),
        http("four", 9, 82),
        tcp("dns", 9, 53).udp(),
        tcp("dnt", 10, 53).udp(),
    ]
}

/// Both ask at once, again and again.
fn both_ask(what: &str, pair: &mut [Conversation]) {
    std::thread::scope(|scope| {
        for (i, conversation) in pair.iter_mut().enumerate() {
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let name = conversation.ask().unwrap_or_else(|error| panic!("{what}, connection {i}, round {round}: {error}"));
                    assert_eq!(name, "b3", "{what}, connection {i}");
                }
            });
        }
    });
}

/// Connections from `client` to pairs of frontends, one port a pair.
fn connections(bed: &Bed, client: &Namespace, ip: IpAddr, first_port: u16) {
    let v6 = ip.is_ipv6();
    let (tcp, http) = ([frontend(v6, 9, 80), frontend(v6, 10, 80)], [frontend(v6, 9, 81), frontend(v6, 9, 82)]);
    let pairs = [("tcp and tcp", tcp), ("http and http", http), ("tcp and http", [tcp[0], http[0]]), ("http and tcp", [http[1], tcp[1]])];
    for (port, (what, pair)) in (first_port..).zip(pairs) {
        let from = SocketAddr::new(ip, port);
        let what = format!("{what} from {from}");
        let open = |to| Conversation::open(from, to).unwrap_or_else(|error| panic!("{what}: {to}: {error}"));
        let mut pair: Vec<Conversation> = client.run(|| pair.map(open)).unwrap().into();
        both_ask(&what, &mut pair);
        let rows: Vec<_> = bed.flows().into_iter().filter(|flow| flow.client == from.to_string()).collect();
        let mut given: Vec<SocketAddr> = rows.iter().filter_map(|flow| flow.snat.as_deref()).map(|snat| snat.parse().unwrap()).collect();
        assert_eq!((rows.len(), given.len()), (2, 1), "{what}: {rows:?}");
        let given = given.remove(0);
        assert_eq!(given.ip(), ip, "{what}: the backend sees who it is");
        assert!((1_024..32_768).contains(&given.port()), "{what}: {given}");
        // One ends, the other goes on.
        drop(pair.remove(0));
        both_ask(&what, &mut pair);
    }
}

/// One socket for both, as a resolver has it.
fn datagrams(client: &Namespace, ip: IpAddr, port: u16) {
    let socket = client.run(|| UdpSocket::bind(SocketAddr::new(ip, port))).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let frontends = [9, 10].map(|host| frontend(ip.is_ipv6(), host, 53));
    for round in 0..ROUNDS {
        frontends.iter().for_each(|to| assert_eq!(socket.send_to(b"hello", to).unwrap(), 5));
        let mut buffer = [0; 64];
        let mut answers = [0, 1].map(|_| {
            let (length, from) = socket.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{ip}, round {round}: {error}"));
            assert_eq!(&buffer[..length], b"b3 hello");
            from
        });
        answers.sort();
        assert_eq!(answers, frontends, "{ip}, round {round}");
    }
}

#[test]
fn one_client_port_for_two_frontends() {
    let bed = Bed::new("collide", &[services(false), services(true)].concat());
    for v6 in [false, true] {
        let ip = client_ip(&bed, v6);
        connections(&bed, bed.lab.client(), ip, 41_000);
        datagrams(bed.lab.client(), ip, 42_000);
    }
    assert_eq!(bed.reason("snat_ports_exhausted") + bed.reason("flow_insert_failed"), 0);
}

/// The node's own processes: translated when they leave.
#[test]
fn one_port_of_the_node_for_two_frontends() {
    let bed = Bed::new("collnode", &[services(false), services(true)].concat());
    let gateway = [false, true].map(|v6| format!("route add default via {}\n", client_ip(&bed, v6)));
    bed.lab.node.batch(&gateway.concat()).unwrap();
    for v6 in [false, true] {
        let ip = bed.lab.node_ip(0, v6);
        connections(&bed, &bed.lab.node, ip, 41_000);
        datagrams(&bed.lab.node, ip, 42_000);
    }
}
