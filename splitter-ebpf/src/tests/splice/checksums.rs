//! Segments of http with a wrong checksum are neither read nor kept, answered or believed.
use super::*;

/// One wrong bit, wherever.
fn damaged(lab: &Http, wire: &Wire) -> Vec<Vec<u8>> {
    let bytes = wire.build();
    let tcp = if lab.ipv6() { 54 } else { 34 };
    [bytes.len() - 1, tcp + 16, tcp + 4, tcp + 14]
        .map(|at| {
            let mut bytes = bytes.clone();
            bytes[at] ^= 4;
            bytes
        })
        .to_vec()
}

fn dropped(lab: &Http, wire: &Wire, side: u32) {
    for bytes in damaged(lab, wire) {
        let before = (lab.counted(Reason::Checksum), lab.entries(), lab.maps.taken());
        assert_eq!(lab.run_bytes(&bytes, side), []);
        assert_eq!((lab.counted(Reason::Checksum), lab.entries(), lab.maps.taken()), (before.0 + 1, before.1, before.2));
    }
}

#[test]
fn a_wrong_checksum_moves_nothing() {
    // What a process of the node sends was damaged by nobody.
    for lab in Http::both().into_iter().filter(|lab| lab.own.is_empty()) {
        dropped(&lab, &lab.stranger().wire(SYN, &[]), CLIENT_SIDE);
        let mut client = lab.client();
        // The first request, whole and in parts.
        for part in [GET, &GET[..10]] {
            dropped(&lab, &client.wire(ACK | PSH, part), CLIENT_SIDE);
        }
        let told = one(client.say(&GET[..10]));
        client.hear(&told);
        dropped(&lab, &client.wire(ACK | PSH, &GET[10..]), CLIENT_SIDE);
        dropped(&lab, &client.wire(RST, &[]), CLIENT_SIDE);
        let syn = one(client.say(&GET[10..]));
        let (mut server, syn_ack) = lab.backend_of(&syn);
        dropped(&lab, &syn_ack, BACKEND_SIDE);
        lab.run(&syn_ack, BACKEND_SIDE).iter().for_each(|wire| server.hear(wire));
        dropped(&lab, &server.wire(ACK | PSH, OK), BACKEND_SIDE);
        dropped(&lab, &server.wire(RST | ACK, &[]), BACKEND_SIDE);
        assert_eq!(lab.maps.version(1).status, [0; 6]);
        lab.respond(&mut client, &mut server, OK);
        // On an open connection.
        for (flags, payload) in [(ACK | PSH, GET2), (FIN | ACK, b""), (RST, b"")] {
            dropped(&lab, &client.wire(flags, payload), CLIENT_SIDE);
        }
        assert_eq!((lab.maps.version(1).requests, lab.maps.version(2).requests, lab.maps.version(1).closed), (1, 0, 0));
        server.hear(&one(client.say(GET)));
        lab.respond(&mut client, &mut server, OK);
        client.send(RST, &[]);
        assert_eq!(lab.entries(), [0, 0]);
    }
}

/// What is only translated keeps its error, so that its receiver sees it.
#[test]
fn a_wrong_checksum_is_never_repaired() {
    for lab in Http::redirected() {
        let mut client = lab.client();
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n";
        let mut server = lab.open(&mut client, head);
        let mut bytes = client.wire(ACK, &[b'x'; 500]).build();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let mut frame = Frame::<false>::new(&bytes, ROUTE);
        assert_eq!(frame.run(&lab.maps), Action::Redirect(BACKEND_SIDE));
        frame.bytes[last] ^= 1;
        server.hear(&Wire::parse(&frame.bytes));
        client.seq = client.seq.wrapping_add(500);
        client.send(RST, &[]);
    }
}
