//! Requests that are longer than a slot, while their legs are being opened.
use super::*;

/// What a slot holds, bytes.
const LIMIT: usize = HEAD_LIMIT as usize;

/// A request with a body, `len` bytes together.
fn upload(version: u32, len: usize) -> Vec<u8> {
    let head = |body: usize| format!("POST / HTTP/1.1\r\nHost: a\r\nx-v: {version}\r\nContent-Length: {body:05}\r\n\r\n").into_bytes();
    let body = len - head(0).len();
    let bytes = (0..body).map(|i| (i % 251) as u8);
    head(body).into_iter().chain(bytes).collect()
}

/// What a backend has of a request: bytes that came, in any order.
fn received(out: &[Wire], begin: u32, len: usize) -> Vec<Option<u8>> {
    let mut bytes = vec![None; len];
    for wire in out {
        let at = wire.seq.wrapping_sub(begin) as usize;
        wire.payload.iter().enumerate().for_each(|(i, byte)| bytes[at + i] = Some(*byte));
    }
    bytes
}

/// On a new connection and on a kept one: the end of what was sent arrives with its beginning, so that the client hears at once what is missing.
#[test]
fn the_end_of_a_long_request_goes_along() {
    for lab in Http::both() {
        for kept in [false, true] {
            for len in [LIMIT + 1, LIMIT + 808, LIMIT + 6_288, LIMIT + 11_808, 60_000] {
                let mut client = if kept { lab.ready().0 } else { lab.client() };
                let request = upload(2, len);
                let before = lab.counted(Reason::RequestCut);
                let syn = one(client.say(&request));
                assert_eq!(lab.counted(Reason::RequestCut), before + 1);
                let (mut server, syn_ack) = lab.backend_of(&syn);
                let out = lab.run(&Wire { window: 65_160, ..syn_ack }, BACKEND_SIDE);
                let has = received(&out, server.ack, len);
                let holes = has.iter().enumerate().filter(|(_, byte)| byte.is_none()).map(|(at, _)| at).collect::<Vec<_>>();
                assert!(has.iter().zip(&request).all(|(has, byte)| has.is_none_or(|has| has == *byte)), "{len} bytes");
                let (first, last) = (holes[0], *holes.last().expect("a hole"));
                assert_eq!((holes.len(), last + 1 + 3 * 1448), (last - first + 1, len.max(last + 1 + 3 * 1448)), "{len} bytes: one hole");
                let behind = out.iter().filter(|wire| wire.seq.wrapping_sub(server.ack) as usize > last).count();
                assert!(behind >= 3 || len < LIMIT + 2, "{len} bytes: {behind} segments tell of the hole");
                // The client hears of it in its own numbers.
                server.ack = server.ack.wrapping_add(first as u32);
                let edges = (server.ack.wrapping_add((holes.len()) as u32), server.ack.wrapping_add((len - first) as u32));
                let mut ack = server.wire(ACK, &[]);
                ack.options.extend([Opt::Noop, Opt::Noop, Opt::SelectiveAcknowledgement(edges, [None; 3])]);
                let told = one(lab.run(&ack, BACKEND_SIDE));
                assert_eq!(told.ack, client.seq.wrapping_sub((len - first) as u32));
                let end = (client.seq.wrapping_sub((len - last - 1) as u32), client.seq);
                assert!(told.options.contains(&Opt::SelectiveAcknowledgement(end, [None; 3])), "{told:?}");
                for (i, part) in request[first..=last].chunks(1400).enumerate() {
                    let missing = Wire { seq: told.ack.wrapping_add(1400 * i as u32), ..client.wire(ACK, part) };
                    let seen = one(lab.run(&missing, CLIENT_SIDE));
                    assert_eq!((seen.seq, &seen.payload[..]), (server.ack.wrapping_add(1400 * i as u32), part));
                }
                server.ack = server.ack.wrapping_add((len - first) as u32);
                lab.respond(&mut client, &mut server, OK);
                server.hear(&one(client.say(GET2)));
                lab.respond(&mut client, &mut server, OK);
                client.send(RST, &[]);
                assert_eq!(lab.entries(), [0, 0]);
            }
        }
    }
}

/// Where the request ends is not known, or the client would be told what is not so: nothing is kept.
#[test]
fn nothing_is_kept_of_what_may_be_the_next_request() {
    for lab in Http::both() {
        let chunked = [&b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000\r\n"[..], &[b'x'; 30_000]].concat();
        let pipelined = [upload(1, LIMIT + 808), vec![b'G'; 11_000]].concat();
        for request in [chunked, pipelined] {
            let mut client = lab.client();
            let syn = one(client.say(&request));
            let (server, syn_ack) = lab.backend_of(&syn);
            let out = lab.run(&Wire { window: 65_160, ..syn_ack }, BACKEND_SIDE);
            let has = received(&out, server.ack, request.len());
            let known = has.iter().take_while(|byte| byte.is_some()).count();
            assert!(known <= LIMIT && has[known..].iter().all(Option::is_none), "{known} bytes");
            client.send(RST, &[]);
        }
    }
}

/// A backend whose window is small gets no more than it said.
#[test]
fn pieces_respect_a_small_window() {
    for lab in Http::both() {
        for (len, window) in [(6_000, 1_000), (6_000, 0), (20_000, 5_000), (20_000, 19_999), (20_000, 20_000), (6_000, 6_000)] {
            let mut client = lab.client();
            let request = upload(2, len);
            let syn = one(client.say(&request));
            let (server, syn_ack) = lab.backend_of(&syn);
            let out = lab.run(&Wire { window, ..syn_ack }, BACKEND_SIDE);
            let end = out.iter().map(|wire| wire.seq.wrapping_sub(server.ack) + wire.payload.len() as u32).max().expect("a piece");
            assert!(end <= u32::from(window).max(1), "{len} bytes, a window of {window}: {end}");
            assert_eq!(end as usize == len, window as usize >= len, "{len} bytes, a window of {window}");
            // The client sends the rest.
            let rest = &request[end as usize..];
            if let Some(part) = rest.chunks(1400).next() {
                let more = Wire { seq: client.seq.wrapping_sub(rest.len() as u32), ..client.wire(ACK, part) };
                assert_eq!(one(lab.run(&more, CLIENT_SIDE)).payload, part);
            }
            client.send(RST, &[]);
        }
    }
}
