//! Heads of 16 KB, and what becomes of longer ones.
use super::*;

/// A head of `len` bytes, the lines of `tag` at its end.
fn head(len: usize, tag: &str) -> Vec<u8> {
    let (first, last) = ("GET / HTTP/1.1\r\nHost: a\r\nCookie: ", format!("\r\n{tag}\r\n"));
    format!("{first}{}{last}", "c".repeat(len - first.len() - last.len())).into_bytes()
}

/// What comes of a request in pieces of `step` bytes, the last of which ends at `end`.
fn pieces(client: &mut End<'_>, text: &[u8], step: usize) -> Vec<Wire> {
    let mut last = Vec::new();
    for piece in text.chunks(step) {
        if let [ack] = &last[..] {
            client.hear(ack);
        }
        last = client.say(piece);
    }
    last
}

/// Sends as much of a head as is read, and then the rest, on a connection whose request `server` gets.
fn rest(client: &mut End<'_>, server: &mut End<'_>, text: &[u8]) {
    for piece in text[LIMIT..].chunks(1_400) {
        let seen = one(client.say(piece));
        assert_eq!(seen.payload, piece);
        server.hear(&seen);
    }
}

fn policy(lab: &Http, bits: u8) {
    lab.maps.change_service(1, |service| service.flags = service.flags & KEPT | bits);
}

#[test]
fn a_tag_at_the_end_of_16_kb_counts() {
    for lab in Http::both() {
        for (len, step) in
            [(8_192, 1_400), (8_193, 8_193), (12_000, 1_400), (15_000, 14_600), (LIMIT, 1_400), (LIMIT, LIMIT), (LIMIT, 16_383)]
        {
            let text = head(len, "x-v: 2\r\n");
            let mut client = lab.client();
            let syn = one(pieces(&mut client, &text, step));
            let mut server = lab.accept(&syn, &text);
            assert_eq!(lab.version_of(&server), 2, "{len} in {step}");
            lab.respond(&mut client, &mut server, OK);
            // Behind others, to another version and back.
            let back = head(len, "x-v: 1\r\n");
            let syn = one(pieces(&mut client, &back, step));
            let mut other = lab.accept(&syn, &back);
            assert_eq!(lab.version_of(&other), 1, "{len} in {step}");
            lab.respond(&mut client, &mut other, OK);
            client.send(RST, &[]);
        }
        assert_eq!((lab.counted(Reason::HeadTooLong), lab.counted(Reason::PinnedHead), lab.entries()[0]), (0, 0, 0));
    }
}

/// Versions that long first requests of sixteen connections go to, with half of the weight each, and what was counted.
fn first(lab: &mut Http, bits: u8) -> (Vec<u32>, u64) {
    lab.serve(&[(50, &[1, 2]), (50, &[3]), (0, &[4])]);
    policy(lab, bits);
    let before = lab.counted(Reason::HeadTooLong);
    let mut versions = Vec::new();
    for port in 40_000..40_016 {
        lab.client.set_port(port);
        let text = head(LIMIT + 2_000, "x-v: 3\r\n");
        let mut client = lab.client();
        let syn = one(pieces(&mut client, &text[..LIMIT], 1_024));
        let mut server = lab.accept(&syn, &text[..LIMIT]);
        rest(&mut client, &mut server, &text);
        versions.push(lab.version_of(&server));
        lab.respond(&mut client, &mut server, OK);
        // Pinned.
        server.hear(&one(client.say(b"GET / HTTP/1.1\r\nHost: a\r\nx-v: 3\r\n\r\n")));
        client.send(RST, &[]);
    }
    (versions, lab.counted(Reason::HeadTooLong) - before)
}

#[test]
fn a_longer_first_head_goes_to_the_baseline_or_by_weight() {
    for mut lab in Http::both() {
        assert_eq!(first(&mut lab, 0), (vec![1; 16], 16));
        assert_eq!(first(&mut lab, 1 << service_flag::BASELINE), (vec![2; 16], 16));
        // It has no weight: the first one that has.
        assert_eq!(first(&mut lab, 2 << service_flag::BASELINE), (vec![1; 16], 16));
        let (versions, counted) = first(&mut lab, service_flag::LONG_BY_WEIGHT);
        assert!(versions.contains(&1) && versions.contains(&2) && counted == 16, "{versions:?}");
        // Nothing of it is evidence of what the weights drew, but what they did draw.
        let drawn = [1, 2].map(|id| lab.maps.version(id).drawn.trials);
        assert_eq!(drawn.iter().sum::<u64>(), 16, "{drawn:?}");
    }
}

#[test]
fn a_longer_later_head_leaves_the_canary() {
    for lab in Http::both() {
        let text = head(LIMIT + 3_000, "x-v: 3\r\n");
        for (bits, expected, reason) in [(0, 1, Reason::HeadTooLong), (service_flag::LONG_BY_WEIGHT, 2, Reason::PinnedHead)] {
            policy(&lab, bits);
            let before = lab.counted(reason);
            let mut client = lab.client();
            let mut server = lab.open(&mut client, GET2);
            lab.respond(&mut client, &mut server, OK);
            assert_eq!(lab.version_of(&server), 2);
            let out = pieces(&mut client, &text[..LIMIT], 1_024);
            if expected == 1 {
                server = lab.accept(&one(out), &text[..LIMIT]);
            } else {
                assert_eq!(payloads(&out), text[..LIMIT]);
                out.iter().for_each(|wire| server.hear(wire));
            }
            rest(&mut client, &mut server, &text);
            assert_eq!((lab.version_of(&server), lab.counted(reason)), (expected, before + 1));
            lab.respond(&mut client, &mut server, OK);
            server.hear(&one(client.say(b"GET / HTTP/1.1\r\nHost: a\r\nx-v: 3\r\n\r\n")));
            client.send(RST, &[]);
        }
        // Who is with the baseline stays there.
        policy(&lab, 0);
        let (mut client, mut server) = lab.ready();
        let out = pieces(&mut client, &text[..LIMIT], 1_024);
        assert_eq!(payloads(&out), text[..LIMIT]);
        out.iter().for_each(|wire| server.hear(wire));
        client.send(RST, &[]);
        assert_eq!(lab.entries()[0], 0);
    }
}

/// All of it in one packet, as the kernel merges them: what has no room in a slot comes again.
#[test]
fn a_longer_head_in_one_packet() {
    for lab in Http::both() {
        let text = head(LIMIT + 4_000, "x-v: 3\r\n");
        for later in [false, true] {
            let mut client = lab.client();
            if later {
                let mut server = lab.open(&mut client, GET2);
                lab.respond(&mut client, &mut server, OK);
            }
            let begin = client.seq;
            let syn = one(client.say(&text));
            let mut server = lab.accept(&syn, &text[..LIMIT]);
            assert_eq!(lab.version_of(&server), 1);
            client.seq = begin.wrapping_add(HEAD_LIMIT);
            rest(&mut client, &mut server, &text);
            lab.respond(&mut client, &mut server, OK);
            client.send(RST, &[]);
        }
        assert_eq!(lab.counted(Reason::HeadTooLong), 2);
    }
}

#[test]
fn a_longer_head_is_answered_with_431() {
    for lab in Http::both() {
        policy(&lab, service_flag::LONG_REFUSED);
        let text = head(LIMIT + 1_000, "x-v: 2\r\n");
        for later in [false, true] {
            let mut client = if later { lab.ready().0 } else { lab.client() };
            let answer = one(pieces(&mut client, &text[..LIMIT], 1_024));
            let expected = "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            assert_eq!((String::from_utf8_lossy(&answer.payload), answer.flags & FIN), (expected.into(), FIN));
            client.hear(&answer);
            assert_eq!((lab.entries()[0], lab.answered(), lab.maps.taken()), (0, 1, 0));
            // The rest comes, or the client has not heard it.
            let again = one(client.say(&text[LIMIT..]));
            assert_eq!((&again.payload, again.seq), (&answer.payload, answer.seq));
            client.send(RST, &[]);
            assert_eq!((lab.entries()[0], lab.answered()), (0, 0));
        }
        assert_eq!((lab.counted(Reason::HeadTooLong), lab.counted(Reason::HeadRefused)), (2, 4));
    }
}
