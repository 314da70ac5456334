//! Events of requests: whom they went to, and what they got.
use super::*;
use crate::{
    env::Note,
    tests::trace::{everything, socket},
};

/// What each event says: kind, version, backend, reason, status, flags without [`trace_flag::HTTP`], text.
fn told(lab: &Http) -> Vec<(u8, u32, u32, u8, u16, u8, String)> {
    let row = |event: TraceEvent| {
        assert_eq!((socket(event.client, event.client_port), socket(event.vip, event.vip_port)), (lab.client, lab.vip));
        assert_eq!((event.service, event.proto, event.flags & trace_flag::HTTP), (1, TCP, trace_flag::HTTP));
        let text = String::from_utf8_lossy(&event.text[..usize::from(event.text_len)]).into_owned();
        (event.kind, event.version, event.backend, event.reason, event.status, event.flags & !trace_flag::HTTP, text)
    };
    lab.maps.events().into_iter().map(row).collect()
}

fn text(request: &[u8]) -> String {
    String::from_utf8_lossy(&request[..request.len().min(TRACE_TEXT)]).into_owned()
}

const D: u8 = trace_kind::DECIDED;
const A: u8 = trace_kind::ANSWERED;
const R: u8 = trace_kind::REFUSED;

fn looking() -> impl Iterator<Item = Http> {
    Http::both().into_iter().inspect(|lab| lab.maps.look(Trace { until: u64::MAX, ..everything(&lab.maps) }))
}

#[test]
fn requests_are_told_with_their_answers() {
    for lab in looking() {
        let mut client = lab.client();
        assert_eq!(told(&lab), [], "a handshake decides nothing");
        let mut server = lab.open(&mut client, GET);
        let id = lab.id_of(&server);
        assert_eq!(told(&lab), [(D, 1, id, NO_REASON, 0, 0, text(GET))]);
        lab.maps.pass(30);
        lab.respond(&mut client, &mut server, OK);
        assert_eq!(told(&lab), [(A, 1, id, NO_REASON, 200, 0, String::new())]);
        // The same leg again.
        server.hear(&one(client.say(GET)));
        assert_eq!(told(&lab), [(D, 1, id, NO_REASON, 0, 0, text(GET))]);
        lab.respond(&mut client, &mut server, b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(told(&lab), [(A, 1, id, NO_REASON, 404, 0, String::new())]);
        // Another version, by a rule.
        let mut other = lab.open(&mut client, GET2);
        assert_eq!(told(&lab), [(D, 2, 3, NO_REASON, 0, 0, text(GET2))]);
        lab.respond(&mut client, &mut other, OK);
        assert_eq!(told(&lab), [(A, 2, 3, NO_REASON, 200, 0, String::new())]);
        // Back to the leg that is idle.
        assert_eq!(client.say(GET).len(), 1);
        assert_eq!(told(&lab), [(D, 1, id, NO_REASON, 0, 0, text(GET))]);
    }
}

#[test]
fn the_time_to_the_answer_the_rule_and_the_place_are_told() {
    for lab in looking() {
        let mut client = lab.client();
        let at = client.seq;
        let mut server = lab.open(&mut client, GET2);
        let asked = lab.maps.events()[0];
        assert_eq!((asked.at, asked.ruled, asked.facts), (at, 2, 0b10));
        lab.maps.pass(30);
        lab.respond(&mut client, &mut server, OK);
        assert_eq!(lab.maps.events()[0].spent, 30_000_000);
        let keyed = b"GET / HTTP/1.1\r\nHost: a\r\nuser: 7\r\n\r\n";
        let syn = one(client.say(keyed));
        let asked = lab.maps.events()[0];
        let key = splitter_common::decide::value_key(splitter_common::decide::value_step(splitter_common::decide::VALUE_START, b'7'));
        assert_eq!((asked.ruled, asked.key, asked.flags & trace_flag::KEYED), (u32::MAX, key, trace_flag::KEYED));
        lab.accept(&syn, keyed);
    }
}

#[test]
fn the_answer_to_what_was_told_is_told() {
    for lab in looking() {
        // One event in ten seconds, and none ahead.
        lab.maps.look(Trace { until: u64::MAX, interval: 10_000_000_000, burst: 0, ..everything(&lab.maps) });
        let mut client = lab.client();
        let mut server = lab.open(&mut client, GET);
        let id = lab.id_of(&server);
        assert_eq!(told(&lab), [(D, 1, id, NO_REASON, 0, 0, text(GET))]);
        lab.respond(&mut client, &mut server, OK);
        assert_eq!(told(&lab), [(A, 1, id, NO_REASON, 200, 0, String::new())]);
        // The next one is not told, nor is its answer.
        server.hear(&one(client.say(GET)));
        lab.respond(&mut client, &mut server, OK);
        assert_eq!((told(&lab), lab.maps.events_lost()), (vec![], [1, 0]), "decisions are counted, not answers");
        // Told, and refused in the end.
        lab.maps.pass(20_000);
        let mut client = lab.client_with(5000, &[]);
        let syn = one(client.say(GET2));
        let (server, _) = lab.backend_of(&syn);
        one(lab.run(&server.wire(RST | ACK, &[]), BACKEND_SIDE));
        let refused = (R, 2, 0, Reason::Unavailable as u8, 503, 0, String::new());
        assert_eq!(told(&lab), [(D, 2, 3, NO_REASON, 0, 0, text(GET2)), refused]);
    }
}

#[test]
fn an_answer_is_not_told_for_an_earlier_request() {
    for lab in looking() {
        let mut client = lab.client();
        let mut server = lab.open(&mut client, GET);
        // The answer to the first comes when nobody looks.
        lab.maps.look(Trace::default());
        lab.respond(&mut client, &mut server, OK);
        lab.maps.look(Trace { until: u64::MAX, service: 2, ..everything(&lab.maps) });
        told(&lab);
        server.hear(&one(client.say(GET)));
        lab.respond(&mut client, &mut server, OK);
        assert_eq!(told(&lab), [], "a request that nobody was told of");
    }
}

#[test]
fn a_long_path_is_cut_and_a_head_in_pieces_is_told_once() {
    for lab in looking() {
        let mut client = lab.client();
        let long = [b"GET /", &[b'a'; 500][..], b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
        let ack = one(client.say(&long[..100]));
        client.hear(&ack);
        assert_eq!(told(&lab), []);
        let syn = one(client.say(&long[100..]));
        assert_eq!(told(&lab), [(D, 1, lab.id_of(&lab.backend_of(&syn).0), NO_REASON, 0, 0, text(&long))]);
        let mut server = lab.accept(&syn, &long);
        lab.respond(&mut client, &mut server, OK);
    }
}

#[test]
fn what_the_node_answers_itself_is_told() {
    for lab in looking() {
        lab.maps.set_state(3, backend_state::DOWN);
        let mut client = lab.client();
        one(client.say(GET2));
        let refused = (R, 2, 0, Reason::Unavailable as u8, 503, 0, String::new());
        assert_eq!(told(&lab), [(D, 2, 0, Reason::NoBackend as u8, 0, 0, text(GET2)), refused.clone()]);
        lab.maps.pass(10_000);
        lab.maps.set_state(3, backend_state::READY);
        let mut client = lab.client_with(5000, &[]);
        let syn = one(client.say(GET2));
        let (server, _) = lab.backend_of(&syn);
        one(lab.run(&server.wire(RST | ACK, &[]), BACKEND_SIDE));
        assert_eq!(told(&lab), [(D, 2, 3, NO_REASON, 0, 0, text(GET2)), refused]);
        // The client has not heard the answer.
        one(client.again(ACK | PSH, GET2));
        assert_eq!(told(&lab), []);
        lab.maps.change_service(1, |service| service.flags |= service_flag::RESET);
        let mut client = lab.client_with(9000, &[]);
        lab.maps.set_state(3, backend_state::DOWN);
        one(client.say(GET2));
        assert_eq!(told(&lab)[1], (R, 2, 0, Reason::Unavailable as u8, 0, 0, String::new()));
        let mut client = lab.client_with(13_000, &[]);
        let bad = b"GET / HTTP/1.1\r\nHost : a\r\n\r\n";
        one(client.say(bad));
        let why = Reason::HeadRefused as u8;
        assert_eq!(told(&lab), [(D, 0, 0, why, 0, 0, text(bad)), (R, 0, 0, why, 400, 0, String::new())]);
    }
}

#[test]
fn what_pins_a_connection_is_told() {
    for lab in looking() {
        let mut client = lab.client();
        let mut server = lab.open(&mut client, &[GET, GET2].concat());
        let id = lab.id_of(&server);
        let pinned = (D, 1, id, Reason::PinnedPipeline as u8, 0, trace_flag::PINNED, String::new());
        assert_eq!(told(&lab), [(D, 1, id, NO_REASON, 0, 0, text(&[GET, GET2].concat())), pinned]);
        lab.respond(&mut client, &mut server, &[OK, OK].concat());
        told(&lab);
        server.hear(&one(client.say(GET2)));
        assert_eq!(told(&lab), [], "it is not read any more");
    }
    for lab in looking() {
        let mut client = lab.client();
        let mut server = lab.open(&mut client, GET);
        let id = lab.id_of(&server);
        told(&lab);
        server.hear(&one(client.say(GET)));
        assert_eq!(told(&lab), [(D, 1, id, Reason::PinnedPipeline as u8, 0, trace_flag::PINNED, String::new())]);
    }
}

#[test]
fn requests_and_what_becomes_of_them_are_noted() {
    for lab in Http::both() {
        let mut client = lab.client();
        lab.maps.notes();
        let mut server = lab.open(&mut client, GET);
        let id = lab.id_of(&server);
        assert_eq!(lab.maps.notes(), [(Note::Sent, 1, id)]);
        lab.respond(&mut client, &mut server, OK);
        assert_eq!(lab.maps.notes(), [(Note::Responded, 1, 200)]);
        server.hear(&one(client.say(GET)));
        assert_eq!(lab.maps.notes(), [(Note::Kept, 1, id)]);
        server.hear(&one(client.say(GET)));
        assert_eq!(lab.maps.notes(), [(Note::Pinned, 1, Reason::PinnedPipeline as u32)]);
        lab.maps.set_state(3, backend_state::DOWN);
        let mut client = lab.client_with(5000, &[]);
        lab.maps.notes();
        one(client.say(GET2));
        assert_eq!(lab.maps.notes(), [(Note::Answered, 1, 503)]);
    }
}
