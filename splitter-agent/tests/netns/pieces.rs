//! A client of an http service whose segments a router on the way cuts.

use crate::support::{Bed, Split, document, tool, vip};

/// The client in backend 2's namespace, behind a router in backend 1's: their own links carry 1,500 bytes, the way to the VIP 1,000. The client lets
/// routers cut its packets.
#[test]
fn a_client_whose_segments_are_cut_is_served() {
    let splits = [Split { versions: vec![(1, vec![3])], ..Split::http(1, 0) }];
    let mut bed = Bed::prepare("pieces", Default::default(), &splits);
    let (router, client) = (bed.lab.backend(1).clone(), bed.lab.backend(2).clone());
    router.sysctls(&[("net/ipv4/ip_forward", "1")]).unwrap();
    router
        .batch(&format!(
            "link add far type veth peer name near netns {}\nlink set far up\naddress add 10.3.0.1/24 dev far\n",
            client.name()
        ))
        .unwrap();
    router.batch("route add 10.9.9.9/32 via 10.2.1.1 mtu lock 1000\n").unwrap();
    client.sysctls(&[("net/ipv4/ip_no_pmtu_disc", "1")]).unwrap();
    client.batch("link set near up\naddress add 10.3.0.2/24 dev near\nroute replace default via 10.3.0.1\n").unwrap();
    bed.lab.node.batch("route add 10.3.0.0/24 via 10.2.1.2\n").unwrap();
    bed.write_policy(&document(&bed.lab, &splits));
    bed.start();
    let script = "import socket, sys
s = socket.create_connection((sys.argv[1], 80), 10)
s.settimeout(10)
for i in range(3):
    s.sendall(b'GET / HTTP/1.1\\r\\nHost: a\\r\\nX-Long: ' + b'x' * 4000 + b'\\r\\n\\r\\n')
    answer = b''
    while not answer.endswith(b'b3\\n'):
        data = s.recv(4000)
        assert data, answer
        answer += data
    assert answer.startswith(b'HTTP/1.1 200'), answer
print('served')
";
    let mut python = client.command("python3");
    python.args(["-c", script, &vip(false).ip().to_string()]);
    assert_eq!(tool(python).trim(), "served");
    let cut = bed.reason("http_fragment");
    // It was told at the beginning, and remembers.
    assert!((1..40).contains(&cut), "{cut} fragments");
    assert_eq!(bed.status().services[0].versions[0].requests, 3);
}
