//! Heads in pieces, and heads that are none.
use super::*;

/// Sends a head cut at the given places; the SYN that its last piece becomes.
fn in_pieces(client: &mut End<'_>, head: &[u8], cuts: &[usize]) -> Wire {
    let mut at = 0;
    for cut in cuts {
        let ack = one(client.say(&head[at..*cut]));
        // Rounded up: the window must not close before the last byte.
        let left = if client.window == 64_000 { (LIMIT - cut).div_ceil(128) } else { LIMIT - cut };
        assert_eq!((ack.flags, ack.payload.len(), ack.window as usize), (ACK, 0, left), "at {cut}");
        client.hear(&ack);
        at = *cut;
    }
    one(client.say(&head[at..]))
}

#[test]
fn a_head_is_read_wherever_it_is_cut() {
    for lab in Http::both() {
        for cut in 1..GET2.len() {
            let mut client = lab.client();
            let first = client.seq;
            let syn = in_pieces(&mut client, GET2, &[cut]);
            assert_eq!((syn.seq, syn.dst), (first.wrapping_sub(1), backend(lab.ipv6(), 3)), "cut at {cut}");
            let mut server = lab.accept(&syn, GET2);
            assert_eq!(lab.maps.taken(), 1, "the client's copy of the first piece is gone");
            lab.respond(&mut client, &mut server, OK);
            assert_eq!(lab.maps.taken(), 0, "cut at {cut}");
            server.hear(&one(client.send(RST, &[])));
            assert_eq!(lab.entries(), [0, 0]);
        }
    }
}

#[test]
fn a_head_comes_byte_by_byte() {
    for lab in Http::both() {
        let mut client = lab.client();
        let cuts: Vec<usize> = (1..GET2.len()).collect();
        let syn = in_pieces(&mut client, GET2, &cuts);
        assert_eq!(syn.dst, backend(lab.ipv6(), 3));
        let mut server = lab.accept(&syn, GET2);
        lab.respond(&mut client, &mut server, OK);
    }
}

#[test]
fn a_later_head_comes_in_pieces_too() {
    for lab in Http::both() {
        for head in [GET, GET2] {
            for cut in [1, 20, head.len() - 1] {
                let (mut client, mut server) = lab.ready();
                let ack = one(client.say(&head[..cut]));
                client.hear(&ack);
                assert_eq!((ack.flags, lab.maps.taken()), (ACK, 1));
                // What the backend's leg still has to say is acknowledged as ever.
                // But one byte of it looks like a probe.
                if cut != 1 {
                    server.hear(&one(lab.run(&Wire { seq: client.seq.wrapping_sub(cut as u32), ..client.wire(ACK, &[]) }, CLIENT_SIDE)));
                }
                let out = client.say(&head[cut..]);
                let mut server = if head == GET {
                    assert_eq!(payloads(&out), head);
                    out.iter().for_each(|wire| server.hear(wire));
                    server
                } else {
                    lab.accept(&one(out), head)
                };
                lab.respond(&mut client, &mut server, OK);
                client.send(RST, &[]);
            }
        }
        assert_eq!((lab.maps.version(1).requests, lab.maps.version(2).requests, lab.maps.version(2).switches), (9, 3, 3));
    }
}

#[test]
fn a_piece_that_comes_again_is_acknowledged_again() {
    for lab in Http::both() {
        let mut client = lab.client();
        let ack = one(client.say(&GET[..9]));
        client.hear(&ack);
        let ack = one(client.again(ACK, &GET[..9]));
        assert_eq!((ack.flags, ack.ack), (ACK, client.seq));
        // A piece from behind a gap says what is missing.
        let behind = End { seq: client.seq.wrapping_add(5), ..client.clone() };
        let ack = one(behind.clone().say(&GET[14..]));
        assert_eq!((ack.flags, ack.ack), (ACK, client.seq));
        let syn = one(client.say(&GET[9..]));
        lab.accept(&syn, GET);
        client.send(RST, &[]);
    }
}

#[test]
fn what_was_acknowledged_is_delivered_again_until_the_backend_has_it() {
    for lab in Http::both() {
        let mut client = lab.client();
        let syn = in_pieces(&mut client, GET, &[10]);
        let (mut server, syn_ack) = lab.backend_of(&syn);
        assert_eq!(payloads(&lab.run(&syn_ack, BACKEND_SIDE)), GET);
        // Lost. The client sends what it was told nobody has; a backend that heard nothing sends its SYN-ACK again.
        assert_eq!(payloads(&client.again(ACK | PSH, &GET[10..])), GET);
        assert_eq!(payloads(&lab.run(&syn_ack, BACKEND_SIDE)), GET);
        let out = client.again(ACK | PSH, &GET[10..]);
        assert_eq!(lab.maps.taken(), 1);
        out.iter().for_each(|wire| server.hear(wire));
        lab.respond(&mut client, &mut server, OK);
        assert_eq!(lab.maps.taken(), 0);
    }
}

/// A sender may join what it sends again with what follows (Linux: `tcp_retrans_try_collapse`).
#[test]
fn a_joined_retransmission_delivers_what_was_acknowledged() {
    for lab in Http::both() {
        let mut client = lab.client();
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n";
        let syn = in_pieces(&mut client, head, &[10]);
        let (mut server, syn_ack) = lab.backend_of(&syn);
        lab.run(&syn_ack, BACKEND_SIDE);
        client.say(b"0123456789");
        let joined = [&head[10..], b"0123456789"].concat();
        let out = client.again(ACK | PSH, &joined);
        assert!(payloads(&out).starts_with(head), "{out:?}");
        assert_eq!(out[0].seq, server.ack);
        server.ack = server.ack.wrapping_add(payloads(&out).len() as u32);
        assert_eq!(one(server.send(ACK, &[])).dst, lab.client);
        client.send(RST, &[]);
    }
}

#[test]
fn what_is_no_head_is_refused_and_closed() {
    for lab in Http::both() {
        for pieces in
            [&[&b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"[..]][..], &[b"GET /", b" HTTP/1.1\r\nContent-Length: 1, 2\r\n\r\n"]]
        {
            let mut client = lab.client();
            let mut out = Vec::new();
            for piece in pieces {
                out = client.say(piece);
            }
            let answer = one(out);
            assert!(answer.payload.starts_with(b"HTTP/1.1 400 Bad Request\r\n") && answer.payload.ends_with(b"\r\n\r\n"));
            assert_eq!((answer.flags, lab.maps.taken(), lab.entries(), lab.answered()), (FIN | PSH | ACK, 0, [0, 0], 1));
            // The answer was lost.
            let again = one(client.again(ACK | PSH, pieces[pieces.len() - 1]));
            assert_eq!(again.unstamped(), answer.clone().unstamped());
            client.hear(&answer);
            assert_eq!(client.send(ACK, &[]), []);
            let last = one(client.send(FIN | ACK, &[]));
            client.hear(&last);
            assert_eq!((last.flags, lab.entries(), lab.answered()), (ACK, [0, 0], 0));
        }
        assert_eq!((lab.counted(Reason::HeadRefused), lab.maps.version(1).requests), (4, 0));
    }
}

#[test]
fn both_ends_close_after_a_refusal_at_once() {
    for lab in Http::both() {
        let mut client = lab.client();
        let answer = one(client.say(b"nonsense\r\n\r\n"));
        let ack = one(client.send(FIN | ACK, &[]));
        assert_eq!((ack.flags, ack.ack), (ACK, client.seq));
        client.ack = answer.seq.wrapping_add(answer.len());
        client.send(ACK, &[]);
        assert_eq!((lab.entries(), lab.answered()), ([0, 0], 0));
    }
}

/// However many are answered and do not close: they are in nobody's way, and their ports serve again.
#[test]
fn answers_hold_no_entry_of_a_connection() {
    for lab in Http::both() {
        let (mut kept, mut server) = lab.ready();
        for round in 0..2 {
            for port in 50_000..50_100 {
                let mut client = End { me: SocketAddr::new(lab.client.ip(), port), seq: 7_000 + round, ..lab.stranger() };
                let syn_ack = one(client.send(SYN, &[]));
                client.ack = syn_ack.seq;
                client.hear(&syn_ack);
                assert!(one(client.say(b"nonsense\r\n\r\n")).payload.starts_with(b"HTTP/1.1 400 "));
            }
            assert_eq!((lab.entries(), lab.answered()), ([1, 1], 100));
        }
        server.hear(&one(kept.say(GET)));
        kept.send(RST, &[]);
    }
}

#[test]
fn a_refused_client_may_reset() {
    let lab = Http::new(false);
    let mut client = lab.client();
    client.say(b"nonsense\r\n\r\n");
    assert_eq!((client.send(RST, &[]), lab.entries(), lab.answered()), (vec![], [0, 0], 0));
}

#[test]
fn a_later_head_that_is_none_stays_with_its_backend() {
    for lab in Http::both() {
        let (mut client, mut server) = lab.ready();
        let seen = one(client.say(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nx-v: 2\r\n\r\n"));
        server.hear(&seen);
        lab.respond(&mut client, &mut server, OK);
        server.hear(&one(client.say(GET2)));
        assert_eq!((lab.counted(Reason::PinnedHead), lab.entries()), (1, [1, 1]));
    }
}

#[test]
fn a_head_that_is_too_long_is_pinned() {
    for lab in Http::both() {
        let mut head = b"GET / HTTP/1.1\r\nHost: a\r\nx-v: 2\r\nlong: ".to_vec();
        head.resize(LIMIT, b'x');
        let mut client = lab.client();
        let mut last = Vec::new();
        for piece in head.chunks(1400) {
            if let [ack] = &last[..] {
                client.hear(ack);
            }
            last = client.say(piece);
        }
        let mut server = lab.accept(&one(last), &head);
        assert_eq!((lab.version_of(&server), lab.counted(Reason::HeadTooLong)), (1, 1), "no rule, but a weight");
        let seen = one(client.say(b"end\r\n\r\n"));
        server.hear(&seen);
        lab.respond(&mut client, &mut server, OK);
        server.hear(&one(client.say(GET2)));
    }
}

#[test]
fn a_client_that_leaves_before_its_head_is_complete_leaves_nothing() {
    for lab in Http::both() {
        let mut client = lab.client();
        client.say(&GET[..10]);
        assert_eq!((lab.maps.taken(), client.send(RST, &[]), lab.entries()), (1, vec![], [0, 0]));
        // Half a connection cannot end a head.
        let mut client = lab.client();
        client.say(&GET[..10]);
        client.send(FIN | ACK, &[]);
        assert_eq!((lab.maps.taken(), lab.entries()), (0, [0, 0]));
    }
}

#[test]
fn without_a_stash_a_request_waits() {
    for lab in Http::both() {
        lab.maps.take_all_stashes(true);
        let mut client = lab.client();
        assert_eq!(client.say(GET), []);
        assert_eq!((lab.counted(Reason::StashesExhausted), lab.entries()), (1, [0, 0]));
        lab.maps.take_all_stashes(false);
        let mut server = lab.accept(&one(client.again(ACK | PSH, GET)), GET);
        lab.respond(&mut client, &mut server, OK);
        // The next request has to change its version: it does not go to the old one instead.
        lab.maps.take_all_stashes(true);
        assert_eq!(client.say(GET2), []);
        assert_eq!(client.again(ACK | PSH, GET2), []);
        lab.maps.take_all_stashes(false);
        let mut server = lab.accept(&one(client.again(ACK | PSH, GET2)), GET2);
        lab.respond(&mut client, &mut server, OK);
        assert_eq!((lab.version_of(&server), lab.maps.version(2).status[2]), (2, 1));
    }
}

/// A head that dawdles, and another client whose head needs a slot meanwhile.
#[test]
fn no_stash_has_two_owners() {
    let lab = Http::new(false);
    let mut slow = lab.client();
    let ack = one(slow.say(&GET2[..25]));
    slow.hear(&ack);
    lab.maps.pass(70_000);
    // All other slots are taken: whoever comes next finds the old one, or none.
    let mut others = Vec::new();
    for port in 50_000..54_000 {
        let mut stranger = End { me: SocketAddr::new(lab.client.ip(), port), ..lab.stranger() };
        let syn_ack = one(stranger.send(SYN, &[]));
        stranger.ack = syn_ack.seq;
        stranger.hear(&syn_ack);
        stranger.say(b"GET /secret HTTP/1.1\r\nHost: a\r\n");
        others.push(stranger);
    }
    let out = slow.say(&GET2[25..]);
    assert!(out.iter().all(|wire| wire.flags & SYN == 0 || wire.dst == backend(false, 3)), "{out:?}");
    if out.iter().any(|wire| wire.flags & SYN != 0) {
        lab.accept(&out[0], GET2);
    }
    slow.send(RST, &[]);
    for mut other in others {
        other.send(RST, &[]);
    }
}

/// A client that pauses within a head, and whose stack asks whether the other end is alive (RFC 9293, 3.8.4), is answered: of the first head, and of a
/// later one, whose beginning no backend has.
#[test]
fn a_client_that_pauses_within_a_head_is_told_that_the_node_is_alive() {
    for lab in Http::both() {
        for later in [false, true] {
            for garbage in [0, 1] {
                let mut client = if later { lab.ready().0 } else { lab.client() };
                let ack = one(client.say(&GET[..9]));
                client.hear(&ack);
                for _ in 0..5 {
                    lab.maps.pass(2_000);
                    let probe = Wire { seq: client.seq.wrapping_sub(1), ..client.wire(ACK, &GET[8..8 + garbage]) };
                    let answer = one(lab.run(&probe, CLIENT_SIDE));
                    assert_eq!((answer.flags, answer.seq, answer.ack), (ACK, client.ack, client.seq), "later: {later}, {garbage} bytes");
                    assert_eq!((answer.src, answer.dst), (lab.vip, lab.client));
                }
                client.say(&GET[9..]);
                client.send(RST, &[]);
            }
        }
    }
}

/// A head goes on with the rules that it was begun with, or is read anew with those that have come.
#[test]
fn rules_that_change_in_the_middle_of_a_head_are_those_of_all_of_it() {
    for lab in Http::both() {
        for (changed, version) in [(false, 2), (true, 1)] {
            let mut client = lab.client();
            let ack = one(client.say(&GET2[..GET2.len() - 1]));
            client.hear(&ack);
            if changed {
                let mut other = rules();
                // What was the value of the second version is another one.
                (other.pool[4], other.id) = (b'9', 1);
                lab.maps.serve_http(1, MSS, Some(other));
                if lab.stamps {
                    lab.maps.change_service(1, |service| service.flags |= service_flag::STAMPS);
                }
            }
            let syn = one(client.say(&GET2[GET2.len() - 1..]));
            let server = lab.accept(&syn, GET2);
            assert_eq!(lab.version_of(&server), version, "changed: {changed}");
            client.send(RST, &[]);
        }
    }
}
