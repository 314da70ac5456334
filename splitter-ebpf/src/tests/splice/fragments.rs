//! Segments of http services that come in fragments: nobody puts them together, so their sender is told to make smaller ones.

use super::{super::icmp::open, *};

/// An IP packet cut behind `at` bytes of its transport part, a multiple of eight: two fragments.
fn cut(bytes: &[u8], at: usize) -> [Vec<u8>; 2] {
    let ipv6 = bytes[14] >> 4 == 6;
    let one = |offset: usize, more: bool, part: &[u8]| {
        let mut out = bytes[..if ipv6 { 54 } else { 34 }].to_vec();
        if ipv6 {
            out[18..20].copy_from_slice(&(part.len() as u16 + 8).to_be_bytes());
            out[20] = 44;
            out.extend([TCP, 0]);
            out.extend((offset as u16 | u16::from(more)).to_be_bytes());
            out.extend([0, 0, 0, 7]);
        } else {
            let mut header = etherparse::Ipv4Header::from_slice(&out[14..]).expect("a header").0;
            header.identification = 77;
            (header.dont_fragment, header.more_fragments) = (false, more);
            header.fragment_offset = etherparse::IpFragOffset::try_new(offset as u16 / 8).expect("small");
            header.set_payload_len(part.len()).expect("small");
            header.header_checksum = header.calc_header_checksum();
            out.truncate(14);
            header.write(&mut out).expect("a vector");
        }
        out.extend(part);
        out
    };
    let part = &bytes[if ipv6 { 54 } else { 34 }..];
    [one(0, true, &part[..at]), one(at, false, &part[at..])]
}

/// What becomes of a frame, whatever it is.
fn run(maps: &Maps, bytes: &[u8], side: u32) -> (Action, Vec<u8>) {
    let mut frame = Frame::<false>::new(bytes, ROUTE);
    frame.ifindex = side;
    (frame.run(maps), frame.bytes)
}

/// The largest packet that an ICMP error says, and from and to whom it is.
fn limit(bytes: &[u8]) -> (u32, IpAddr, IpAddr) {
    let (from, to, _) = open(bytes);
    if bytes[14] >> 4 == 6 {
        assert_eq!(bytes[54], 2, "too big");
        return (u32::from_be_bytes([bytes[58], bytes[59], bytes[60], bytes[61]]), from, to);
    }
    assert_eq!(bytes[34..36], [3, 4], "fragmentation needed");
    (u32::from(u16::from_be_bytes([bytes[40], bytes[41]])), from, to)
}

#[test]
fn a_request_in_fragments_is_asked_for_in_smaller_segments() {
    for lab in Http::both() {
        let (mut client, mut server) = lab.ready();
        let long = [b"GET /?", &[b'x'; 1300][..], b" HTTP/1.1\r\nHost: a\r\nx-v: 2\r\n\r\n"].concat();
        let whole = client.wire(ACK | PSH, &long).build();
        let [first, second] = cut(&whole, 1000);
        for again in 1..3 {
            let (action, told) = run(&lab.maps, &first, CLIENT_SIDE);
            assert_eq!(action, Action::Return(CLIENT_SIDE));
            // IPv6 never goes below what every link carries.
            assert_eq!(limit(&told), (if lab.ipv6() { 1280 } else { 1020 }, lab.vip.ip(), lab.client.ip()));
            assert_eq!(run(&lab.maps, &second, CLIENT_SIDE).0, Action::Drop);
            assert_eq!((lab.counted(Reason::HttpFragment), lab.entries()), (again * 2, [1, 1]), "never layer 4's");
        }
        // In the order that a network makes of them.
        assert_eq!(run(&lab.maps, &cut(&whole, 1200)[1], CLIENT_SIDE).0, Action::Drop);
        // The client's stack does as it was told.
        let request = one(client.say(GET));
        assert_eq!(request.payload, GET);
        server.hear(&request);
        lab.respond(&mut client, &mut server, OK);
    }
}

#[test]
fn a_response_in_fragments_is_asked_for_in_smaller_segments() {
    for lab in Http::both() {
        let mut client = lab.client();
        let mut server = lab.open(&mut client, GET);
        let long = [b"HTTP/1.1 200 OK\r\nContent-Length: 1300\r\n\r\n", &[b'x'; 1300][..]].concat();
        let [first, second] = cut(&server.wire(ACK | PSH, &long).build(), 1200);
        let (action, told) = run(&lab.maps, &first, BACKEND_SIDE);
        assert_eq!(action, Action::Return(BACKEND_SIDE));
        assert_eq!(limit(&told), (if lab.ipv6() { 1280 } else { 1220 }, server.peer.ip(), server.me.ip()));
        assert_eq!(run(&lab.maps, &second, BACKEND_SIDE).0, Action::Drop);
        lab.respond(&mut client, &mut server, OK);
    }
}

/// The filter takes some endpoints of layer 4 for those of http by chance: their fragments go on.
#[test]
fn fragments_of_layer_4_go_on_whatever_the_filter_says() {
    for ipv6 in [false, true] {
        let lab = Http::new(ipv6);
        lab.layer4.set(true);
        lab.maps.change_service(1, |service| service.mode = service_mode::L4);
        let client = lab.stranger();
        let syn = client.wire(SYN, &[]);
        assert_eq!(run(&lab.maps, &syn.build(), CLIENT_SIDE).0, Action::Redirect(BACKEND_SIDE));
        let [first, second] = cut(&client.wire(ACK, &[1; 200]).build(), 104);
        for piece in [first, second] {
            let (action, bytes) = run(&lab.maps, &piece, CLIENT_SIDE);
            assert_eq!(action, Action::Redirect(BACKEND_SIDE));
            let at = if ipv6 { 38 } else { 30 };
            assert_ne!(bytes[at..at + 4], piece[at..at + 4], "translated");
        }
    }
}
