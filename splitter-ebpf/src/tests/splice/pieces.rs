//! Heads of responses that come in several packets.
use super::*;

const HEAD: &[u8] = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Of the lab's version 1: responses by class, trials that were answered, and measured times.
fn answers(lab: &Http) -> ([u64; 6], u64, u32) {
    let version = lab.maps.version(1);
    (version.status, version.drawn.answered, lab.maps.samples(1, Measure::FirstByte))
}

/// A request to version 1 whose response comes in these pieces, each sent twice; the next request goes elsewhere.
fn answered(lab: &Http, request: &[u8], pieces: &[&[u8]], class: usize) {
    let before = answers(lab);
    let mut client = lab.client();
    let mut server = lab.open(&mut client, request);
    for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
        lab.respond(&mut client, &mut server, piece);
        assert_eq!(payloads(&server.again(ACK | PSH, piece)), *piece);
    }
    let mut after = before;
    after.0[class] += 1;
    (after.1, after.2) = (before.1 + 1, before.2 + 1);
    let show = || pieces.iter().map(|piece| String::from_utf8_lossy(piece)).collect::<Vec<_>>();
    assert_eq!(answers(lab), after, "{:?}", show());
    let mut second = lab.open(&mut client, GET2);
    assert_eq!(lab.version_of(&second), 2);
    lab.respond(&mut client, &mut second, OK);
    client.send(RST, &[]);
    assert_eq!((lab.entries()[0], pins(lab)), (0, 0), "{:?}", show());
}

fn pins(lab: &Http) -> u64 {
    [Reason::PinnedRequest, Reason::PinnedPipeline, Reason::PinnedResponse].map(|reason| lab.counted(reason)).iter().sum()
}

/// Requests, their responses, and the class of these.
const EXCHANGES: [(&[u8], &[u8], usize); 8] = [
    (GET, OK, 2),
    (GET, b"HTTP/1.1 200 OK\r\nServer: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 2),
    (GET, b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 404 No\r\nContent-Length: 1\r\n\r\nx", 4),
    (GET, b"HTTP/1.1 100 Go on\r\n\r\nHTTP/1.1 102 Wait\r\n\r\nHTTP/1.1 500 Oh\r\nTRANSFER-ENCODING:chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 5),
    (GET, b"HTTP/1.1 204 No Content\r\nX-Y: z\r\n\r\n", 2),
    (GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n", 3),
    (HEAD, b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n", 2),
    (HEAD, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 2),
];

#[test]
fn the_next_request_is_decided_wherever_a_head_is_cut() {
    for lab in Http::both() {
        for (request, response, class) in EXCHANGES {
            for cut in 1..response.len() {
                answered(&lab, request, &[&response[..cut], &response[cut..]], class);
            }
        }
        assert_eq!(lab.counted(Reason::OutOfOrder), 0);
    }
}

#[test]
fn a_head_comes_byte_by_byte() {
    for lab in Http::both() {
        for (request, response, class) in EXCHANGES {
            answered(&lab, request, &response.chunks(1).collect::<Vec<_>>(), class);
            answered(&lab, request, &response.chunks(7).collect::<Vec<_>>(), class);
        }
    }
}

/// As Go writes them, which flushes at 4 KB; longer than what is scanned at once; up to 64 KB, in one packet as well.
#[test]
fn long_heads() {
    for lab in Http::both() {
        for (len, most) in [(5_000, 4_096), (5_000, 1_448), (20_000, 1_448), (20_000, 20_000), (60_000, 9_000), (65_536, 1_448)] {
            let (first, last) = ("HTTP/1.1 200 OK\r\nX: ", "\r\nContent-Length: 5\r\n\r\n");
            let head = format!("{first}{}{last}", "v".repeat(len - first.len() - last.len()));
            let text = [head.as_bytes(), b"hello"].concat();
            answered(&lab, GET, &text.chunks(most).collect::<Vec<_>>(), 2);
        }
        assert_eq!(pins(&lab), 0);
        // One byte more.
        let (mut client, mut server) = lab.ready();
        server.hear(&one(client.say(GET)));
        let text = [&b"HTTP/1.1 200 OK\r\nX: "[..], &[b'v'; 65_515], b"\r\n\r\n"].concat();
        text.chunks(1_448).for_each(|piece| lab.respond(&mut client, &mut server, piece));
        server.hear(&one(client.say(GET2)));
        assert_eq!((lab.counted(Reason::PinnedResponse), pins(&lab), lab.maps.version(1).status[2]), (1, 1, 8));
        client.send(RST, &[]);
    }
}

/// Shapes whose end is not told, or that cannot be read, pin however they come.
#[test]
fn odd_heads_pin_in_pieces_as_well() {
    for lab in Http::both() {
        for (n, response) in [
            &b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\nuntil I close"[..],
            b"SSH-2.0-OpenSSH\r\n\r\n",
            b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\nhello",
            b"HTTP/1.1 204 OK\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
        ]
        .iter()
        .enumerate()
        {
            let before = answers(&lab).1;
            let mut client = lab.client();
            let mut server = lab.open(&mut client, GET);
            for piece in response.chunks(3) {
                lab.respond(&mut client, &mut server, piece);
            }
            let seen = one(client.say(GET2));
            assert_eq!((&seen.payload[..], answers(&lab).1), (GET2, before + 1));
            server.hear(&seen);
            assert_eq!((lab.counted(Reason::PinnedResponse), pins(&lab)), (n as u64 + 1, n as u64 + 1));
            client.send(RST, &[]);
        }
    }
}

/// What has overtaken a part of the head has to come again, as behind a size line.
#[test]
fn pieces_of_a_head_in_any_order() {
    let parts: [&[u8]; 4] = [b"HTTP/1.1 200 O", b"K\r\nContent-Le", b"ngth: 1", b"5\r\n\r\n0123456789abcde"];
    for lab in Http::both() {
        for (n, (order, at_once)) in
            [([0, 1, 2, 3], [true; 4]), ([0, 2, 1, 3], [true, false, true, false]), ([3, 2, 1, 0], [false, false, false, true])]
                .into_iter()
                .enumerate()
        {
            let mut client = lab.client();
            let mut server = lab.open(&mut client, GET);
            assert_eq!(responses::shuffled(&mut client, &mut server, &parts, &order), at_once, "{order:?}");
            assert_eq!((answers(&lab).0[2], pins(&lab)), (n as u64 + 1, 0));
            let mut second = lab.open(&mut client, GET2);
            lab.respond(&mut client, &mut second, OK);
            client.send(RST, &[]);
        }
        assert_eq!(lab.counted(Reason::OutOfOrder), 5);
    }
}

/// A request that comes before the end of the head has come too early, and a backend that ends within the head has not answered.
#[test]
fn an_unfinished_head_is_no_answer() {
    for lab in Http::both() {
        let (mut client, mut server) = lab.ready();
        server.hear(&one(client.say(GET)));
        lab.respond(&mut client, &mut server, b"HTTP/1.1 200 OK\r\nContent-Le");
        assert_eq!(answers(&lab).1, 1);
        server.hear(&one(client.say(GET2)));
        assert_eq!((lab.counted(Reason::PinnedPipeline), lab.counted(Reason::PinnedResponse)), (1, 0));
        client.send(RST, &[]);
        let (mut client, mut server) = lab.ready();
        server.hear(&one(client.say(GET)));
        lab.respond(&mut client, &mut server, b"HTTP/1.1 200 OK\r\nContent-Le");
        client.hear(&one(server.send(RST | ACK, &[])));
        let drawn = lab.maps.version(1).drawn;
        assert_eq!((drawn.trials, drawn.answered, drawn.closed), (4, 2, 1), "{drawn:?}");
    }
}

/// Time to the first byte is that of the head's first piece.
#[test]
fn the_first_piece_is_the_first_byte() {
    for lab in Http::both() {
        let (mut client, mut server) = lab.ready();
        server.hear(&one(client.say(GET)));
        lab.maps.pass(20);
        lab.respond(&mut client, &mut server, b"HTTP/1.1 103 Early Hints\r\n\r");
        lab.maps.pass(50);
        lab.respond(&mut client, &mut server, b"\nHTTP/1.1 200 OK\r\nConte");
        lab.maps.pass(3_000);
        lab.respond(&mut client, &mut server, b"nt-Length: 0\r\n\r\n");
        let slowest = lab.maps.slowest(1, Measure::FirstByte);
        assert!((60_000_000..110_000_000).contains(&slowest), "{slowest} ns");
        client.send(RST, &[]);
    }
}
