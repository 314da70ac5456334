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

#[test]
fn a_chunked_request() {
    for lab in Http::both() {
        let mut client = lab.client();
        let request = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
        let mut server = lab.open(&mut client, request);
        is_pinned(&lab, &mut client, &mut server, Reason::PinnedRequest);
    }
}

#[test]
fn an_upgrade_and_a_tunnel() {
    for lab in Http::both() {
        let mut client = lab.client();
        let mut server = lab.open(&mut client, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
        lab.respond(&mut client, &mut server, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x00");
        is_pinned(&lab, &mut client, &mut server, Reason::PinnedRequest);
        assert_eq!(lab.maps.version(1).status, [0, 1, 0, 0, 0, 0]);
    }
}

#[test]
fn a_later_request_that_binds_goes_where_it_belongs_first() {
    for lab in Http::both() {
        let (mut client, _) = lab.ready();
        let request = b"POST / HTTP/1.1\r\nHost: a\r\nx-v: 2\r\nTransfer-Encoding: chunked\r\n\r\n";
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
