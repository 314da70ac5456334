//! Packets that the node writes, several at a time, to one receiver. Copies of the packet in hand go through the interface's queue;
//! `bpf_redirect_peer` delivers at once, and would overtake them.
use super::*;

/// The backends sit behind veths whose other ends are in other namespaces.
fn containers() -> [Http; 4] {
    let labs = Http::redirected();
    for lab in &labs {
        lab.maps.add_iface(BACKEND_SIDE, Iface { flags: iface_flag::PEER, ..Iface::default() });
    }
    labs
}

#[test]
fn a_single_packet_takes_the_short_way() {
    for lab in containers() {
        let mut client = lab.client();
        let syn = one(client.say(GET));
        assert_eq!(lab.last.get(), Action::RedirectPeer(BACKEND_SIDE));
        let mut server = lab.accept(&syn, GET);
        assert_eq!(lab.last.get(), Action::RedirectPeer(BACKEND_SIDE));
        lab.respond(&mut client, &mut server, OK);
        server.hear(&one(client.say(GET)));
        assert_eq!(lab.last.get(), Action::RedirectPeer(BACKEND_SIDE));
    }
}

#[test]
fn a_stale_legs_reset_comes_before_the_syn() {
    for lab in containers() {
        let mut client = lab.client();
        let (server, _) = lab.backend_of(&one(client.say(GET)));
        let out = lab.run(&Wire { seq: 5, ack: 77_000, ..server.wire(ACK, &[]) }, BACKEND_SIDE);
        assert_eq!(out.iter().map(|wire| wire.flags).collect::<Vec<_>>(), [RST, SYN]);
        assert_eq!(lab.last.get(), Action::Redirect(BACKEND_SIDE), "as its copy goes");
        client.send(RST, &[]);
    }
}

#[test]
fn pieces_of_a_head_come_in_order() {
    for lab in containers() {
        for len in [100, 3000, 7000] {
            let mut client = lab.client();
            let head = [b"GET / HTTP/1.1\r\nHost: a\r\nx-long: ", &vec![b'x'; len][..], b"\r\n\r\n"].concat();
            let mut server = lab.open(&mut client, &head);
            let one_piece = lab.last.get() == Action::RedirectPeer(BACKEND_SIDE);
            assert_eq!((one_piece, lab.last.get() == Action::Redirect(BACKEND_SIDE)), (len == 100, len != 100), "{len} bytes");
            lab.respond(&mut client, &mut server, OK);
            client.send(RST, &[]);
        }
    }
}
