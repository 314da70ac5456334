//! What has been sent before, sent again by somebody else.
use super::*;

const POST: &[u8] = b"POST /pay HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";

/// A connection from the handshake to its end; its SYN and its first segment.
fn whole(lab: &Http, request: &[u8], fins: bool) -> [Wire; 2] {
    let options = [Opt::MaximumSegmentSize(1460)];
    let isn = lab.fresh();
    let syn = End { seq: isn, ..lab.stranger() }.wire(SYN, &[]).saying(&options);
    let mut client = lab.client_with(isn, &options);
    let first = client.wire(ACK | PSH, request);
    let mut server = lab.open(&mut client, request);
    lab.respond(&mut client, &mut server, OK);
    if fins {
        server.hear(&one(client.send(FIN | ACK, &[])));
        client.hear(&one(server.send(FIN | ACK, &[])));
        client.send(ACK, &[]);
    } else {
        client.send(RST, &[]);
    }
    assert_eq!(lab.entries(), [0, 0]);
    [syn, first]
}

#[test]
fn the_first_segment_of_a_connection_that_is_over_begins_nothing() {
    for lab in Http::both() {
        for (i, fins) in [true, false].into_iter().enumerate() {
            let [syn, first] = whole(&lab, POST, fins);
            for wait in [0, 1_000, 50_000] {
                lab.maps.pass(wait);
                let reset = one(lab.run(&first, CLIENT_SIDE));
                assert_eq!((reset.flags, reset.seq, lab.entries(), lab.maps.taken()), (RST, first.ack, [0, 0], 0), "after {wait} ms");
                // Nor with its SYN before it.
                assert_eq!(one(lab.run(&syn, CLIENT_SIDE)).flags, SYN | ACK);
                assert_eq!(one(lab.run(&first, CLIENT_SIDE)).flags, RST);
                // Nor cut, nor with more behind it.
                for payload in [&first.payload[..7], &[&first.payload[..], b"more"].concat()] {
                    assert_eq!(one(lab.run(&Wire { payload: payload.to_vec(), ..first.clone() }, CLIENT_SIDE)).flags, RST);
                }
            }
            assert_eq!((lab.counted(Reason::Replayed), lab.entries()), (12 * (i as u64 + 1), [0, 0]));
            assert_eq!(lab.maps.version(1).requests, i as u64 + 1, "each was executed once");
        }
    }
}

#[test]
fn the_same_port_opens_a_new_connection_as_often_as_it_likes() {
    for lab in Http::both() {
        for round in 0..20 {
            let [_, first] = whole(&lab, POST, round % 2 == 0);
            assert_eq!(one(lab.run(&first, CLIENT_SIDE)).flags, RST);
        }
        assert_eq!((lab.maps.version(1).requests, lab.counted(Reason::UnknownConnection)), (20, 0));
    }
}

/// While the connection lives, a SYN and the first segment again neither end it nor ask twice.
#[test]
fn a_living_connection_is_not_begun_again() {
    for lab in Http::both() {
        let isn = lab.fresh();
        let syn = End { seq: isn, ..lab.stranger() }.wire(SYN, &[]);
        let mut client = lab.client_with(isn, &[]);
        let first = client.wire(ACK | PSH, POST);
        let mut server = lab.open(&mut client, POST);
        lab.respond(&mut client, &mut server, OK);
        assert_eq!(one(lab.run(&syn, CLIENT_SIDE)).flags, SYN | ACK);
        let again = one(lab.run(&first, CLIENT_SIDE));
        assert_eq!((again.dst, again.seq.wrapping_add(POST.len() as u32)), (server.me, server.ack), "its backend sees that it has it");
        server.hear(&one(client.say(GET)));
        lab.respond(&mut client, &mut server, OK);
        assert_eq!((lab.entries(), lab.maps.version(1).requests), ([1, 1], 2));
        client.send(RST, &[]);
    }
}

/// A head that came in parts, one that was refused, one that nobody served: none is read twice.
#[test]
fn answers_of_the_node_are_not_given_again() {
    for lab in Http::both() {
        for text in [&b"no head at all\r\n\r\n"[..], GET] {
            if text == GET {
                (1..=4).for_each(|id| lab.maps.set_state(id, backend_state::DOWN));
            }
            let mut client = lab.client();
            let first = client.wire(ACK | PSH, text);
            let answer = one(client.say(text));
            client.hear(&answer);
            one(client.send(FIN | ACK, &[]));
            assert_eq!(lab.answered(), 0);
            (1..=4).for_each(|id| lab.maps.set_state(id, backend_state::READY));
            assert_eq!((one(lab.run(&first, CLIENT_SIDE)).flags, lab.entries()), (RST, [0, 0]));
        }
        let mut client = lab.client();
        let first = client.wire(ACK | PSH, &GET[..9]);
        let ack = one(client.say(&GET[..9]));
        client.hear(&ack);
        client.send(RST, &[]);
        assert_eq!((one(lab.run(&first, CLIENT_SIDE)).flags, lab.entries(), lab.maps.taken()), (RST, [0, 0], 0));
    }
}

/// Who opens connections without number makes the node forget that others are over, and refuses nobody.
#[test]
fn filling_the_table_breaks_no_honest_connection() {
    let lab = Http::new(false);
    let [_, first] = whole(&lab, POST, true);
    lab.maps.spend_all();
    let mut client = lab.client();
    let mut server = lab.open(&mut client, POST);
    lab.respond(&mut client, &mut server, OK);
    client.send(RST, &[]);
    assert_ne!(one(lab.run(&first, CLIENT_SIDE)).flags, RST, "that one is forgotten");
    lab.client().send(RST, &[]);
}
