//! Requests that bind their connection to a backend.
use super::*;

/// Whatever comes now goes to `server`.
fn is_pinned(lab: &Http, client: &mut End<'_>, server: &mut End<'_>, reason: Reason) {
    for text in [GET2, b"anything at all"] {
        let seen = one(client.say(text));
        assert_eq!(seen.payload, text);
        server.hear(&seen);
        lab.respond(client, server, b"and back");
    }
    assert_eq!((lab.counted(reason), lab.maps.version(2).requests), (1, 0), "{reason:?}");
}

#[test]
fn requests_in_one_segment() {
    for lab in Http::both() {
        let mut client = lab.client();
        let both = [GET, GET2].concat();
        let mut server = lab.open(&mut client, &both);
        assert_eq!(lab.version_of(&server), 1);
        lab.respond(&mut client, &mut server, &[OK, OK].concat());
        is_pinned(&lab, &mut client, &mut server, Reason::PinnedPipeline);
    }
}

#[test]
fn a_request_while_the_leg_is_opened() {
    for lab in Http::both() {
        let mut client = lab.client();
        let syn = one(client.say(GET));
        assert_eq!(client.say(GET2), []);
        let mut server = lab.accept(&syn, &[GET, GET2].concat());
        lab.respond(&mut client, &mut server, &[OK, OK].concat());
        is_pinned(&lab, &mut client, &mut server, Reason::PinnedPipeline);
    }
}

#[test]
fn a_request_before_the_response() {
    for lab in Http::both() {
        let mut client = lab.client();
        let mut server = lab.open(&mut client, GET);
        let seen = one(client.say(GET2));
        server.hear(&seen);
        lab.respond(&mut client, &mut server, OK);
        is_pinned(&lab, &mut client, &mut server, Reason::PinnedPipeline);
    }
}

#[test]
fn a_request_that_acknowledges_less_than_the_response() {
    for lab in Http::both() {
        let mut client = lab.client();
        let mut server = lab.open(&mut client, GET);
        client.hear(&one(server.say(&OK[..10])));
        let rest = one(server.say(&OK[10..]));
        assert_eq!(one(client.say(GET2)).dst, server.me);
        client.hear(&Wire { ack: client.seq, ..rest });
        assert_eq!(lab.entries(), [1, 1]);
    }
}

const SOCKET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const CONNECT: &[u8] = b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n";

#[test]
fn an_upgrade_and_a_tunnel() {
    for lab in Http::both() {
        let mut client = lab.client();
        let mut server = lab.open(&mut client, SOCKET);
        lab.respond(&mut client, &mut server, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x00");
        is_pinned(&lab, &mut client, &mut server, Reason::PinnedRequest);
        assert_eq!(lab.maps.version(1).status, [0, 1, 0, 0, 0, 0]);
    }
}

/// What the response says of its length counts for nothing (RFC 9110, 9.3.6), nor what is in it.
#[test]
fn a_tunnel_that_is_opened() {
    for lab in Http::both() {
        for (i, response) in [
            &b"HTTP/1.1 200 Connection established\r\n\r\n"[..],
            b"HTTP/1.1 299 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ]
        .into_iter()
        .enumerate()
        {
            // In its turn on a connection, and first.
            let (mut client, mut server) = if i % 2 == 0 { lab.ready() } else { (lab.client(), lab.client()) };
            if i % 2 == 0 {
                server.hear(&one(client.say(CONNECT)));
            } else {
                server = lab.open(&mut client, CONNECT);
            }
            assert_eq!(lab.counted(Reason::PinnedRequest), i as u64);
            lab.respond(&mut client, &mut server, response);
            assert_eq!(lab.counted(Reason::PinnedRequest), i as u64 + 1);
            for text in [GET2, b"\x16\x03\x01"] {
                server.hear(&one(client.say(text)));
                lab.respond(&mut client, &mut server, b"and back");
            }
            client.send(RST, &[]);
        }
        assert_eq!((lab.maps.version(2).requests, lab.entries()), (0, [0, 0]));
    }
}

/// Asking for another protocol binds nobody: its clients send it with ordinary requests (the JDK's, `curl --http2`).
#[test]
fn an_upgrade_that_is_not_taken_up() {
    let h2c = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAA\r\nUpgrade: h2c\r\n\r\n";
    let refused: &[u8] = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno";
    let chunked: &[u8] = b"HTTP/1.1 405 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n";
    let empty: &[u8] = b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n";
    for lab in Http::both() {
        for (request, response) in
            [(&h2c[..], OK), (SOCKET, refused), (SOCKET, chunked), (CONNECT, refused), (CONNECT, chunked), (CONNECT, empty)]
        {
            // In its turn on a connection, and first.
            let (mut client, mut server) = lab.ready();
            server.hear(&one(client.say(request)));
            lab.respond(&mut client, &mut server, response);
            let mut other = lab.open(&mut client, GET2);
            assert_eq!(lab.version_of(&other), 2);
            lab.respond(&mut client, &mut other, OK);
            client.send(RST, &[]);
            let mut client = lab.client();
            let mut server = lab.open(&mut client, request);
            lab.respond(&mut client, &mut server, response);
            let other = lab.open(&mut client, GET2);
            assert_eq!(lab.version_of(&other), 2);
            client.send(RST, &[]);
        }
        assert_eq!(lab.counted(Reason::PinnedRequest) + lab.counted(Reason::PinnedResponse) + lab.counted(Reason::PinnedPipeline), 0);
    }
}

/// Bytes behind the head, before its answer, are of whatever the connection becomes: they go where the head went.
#[test]
fn what_follows_an_unanswered_upgrade_goes_along() {
    for lab in Http::both() {
        for (request, response) in [
            (SOCKET, &b"HTTP/1.1 101 Switching Protocols\r\n\r\n"[..]),
            (SOCKET, OK),
            (CONNECT, b"HTTP/1.1 200 OK\r\n\r\n"),
            (CONNECT, b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"),
        ] {
            for apart in [true, false] {
                let (mut client, mut server) = lab.ready();
                if apart {
                    server.hear(&one(client.say(request)));
                    server.hear(&one(client.say(GET2)));
                } else {
                    server.hear(&one(client.say(&[request, GET2].concat())));
                }
                lab.respond(&mut client, &mut server, response);
                server.hear(&one(client.say(GET2)));
                client.send(RST, &[]);
            }
        }
        assert_eq!((lab.maps.version(2).requests, lab.entries()), (0, [0, 0]));
    }
}

#[test]
fn a_later_request_that_binds_goes_where_it_belongs_first() {
    for lab in Http::both() {
        let (mut client, _) = lab.ready();
        let request = b"POST / HTTP/1.1\r\nHost: a\r\nx-v: 2\r\nContent-Length: 4294967296\r\n\r\n";
        let mut server = lab.open(&mut client, request);
        assert_eq!(lab.version_of(&server), 2);
        server.hear(&one(client.say(b"0\r\n\r\n")));
        lab.respond(&mut client, &mut server, OK);
        server.hear(&one(client.say(GET)));
        assert_eq!((lab.counted(Reason::PinnedRequest), lab.maps.version(1).requests), (1, 1));
    }
}

/// A body of 4 GB and a few bytes, whose length does not fit sequence numbers.
#[test]
fn a_body_longer_than_numbers_can_say() {
    for lab in Http::both() {
        let mut client = lab.client();
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4294967296\r\n\r\n";
        let mut server = lab.open(&mut client, head);
        lab.respond(&mut client, &mut server, OK);
        let seen = one(client.say(GET2));
        assert_eq!((seen.payload, seen.dst), (GET2.to_vec(), server.me), "it is the body");
    }
}
