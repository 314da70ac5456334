//! Who gets a slot for a head, and who loses one.
use super::*;
use splitter_common::abi::stash_word::{ACKNOWLEDGED, OF_SERVICE};
use std::collections::HashMap;

const SECOND: u64 = 1_000;
/// What a slot is kept for with acknowledged bytes, and a little.
const LATE: u64 = 10 * SECOND + 100;

/// Another service like [`Http`]'s, with the same backends.
fn neighbour(lab: &Http) -> SocketAddr {
    let vip = SocketAddr::new(lab.vip.ip(), 81);
    let frontend = FrontendKey { addr: addr(vip.ip()), port: vip.port().to_be_bytes(), proto: TCP, pad: 0 };
    lab.maps.serve(2, frontend, split_by::CONNECTION, &[(100, &[1, 2]), (0, &[3]), (0, &[4])]);
    lab.maps.serve_http(2, MSS, Some(rules()));
    if lab.stamps {
        lab.maps.change_service(2, |service| service.flags = service_flag::STAMPS);
    }
    vip
}

/// A client of an address and port, after its handshake.
fn guest(lab: &Http, host: u32, port: u16, vip: SocketAddr) -> End<'_> {
    let ip = match lab.client.ip() {
        IpAddr::V4(_) => IpAddr::from((0x0a01_0000 + host).to_be_bytes()),
        IpAddr::V6(_) => IpAddr::from((0xfd01_u128 << 112 | u128::from(host) << 64 | 7).to_be_bytes()),
    };
    let mut client = End { me: SocketAddr::new(ip, port), peer: vip, ..lab.stranger() };
    let syn_ack = one(client.send(SYN, &[]));
    client.ack = syn_ack.seq;
    client.hear(&syn_ack);
    client
}

/// Slots that are taken, by service.
fn by_service(lab: &Http) -> HashMap<u64, usize> {
    let mut found = HashMap::new();
    lab.maps.stash_words().iter().for_each(|word| *found.entry((word & OF_SERVICE) >> 32).or_default() += 1);
    found
}

#[test]
fn one_service_leaves_half_of_the_slots() {
    for lab in [Http::new(false), Http::new(true)] {
        let other = neighbour(&lab);
        // From networks without number.
        let mut holders: Vec<_> = (0..6_000).map(|i| guest(&lab, i * 256 + 9, 5_000, lab.vip)).collect();
        let told: usize = holders.iter_mut().map(|holder| holder.say(&GET[..9]).len()).sum();
        let held = by_service(&lab)[&1];
        assert!(told == held && (800..=1_024).contains(&held), "{held} slots");
        let refused = lab.maps.losses(1, Reason::HeadShare) + lab.maps.losses(1, Reason::StashesExhausted);
        assert_eq!((refused, lab.entries()), (6_000 - held as u64, [held, 0]), "who gets no slot leaves nothing");
        // Any number of clients of the other one is served at once: one after the other, and many at a time.
        for i in 0..1_000 {
            let mut client = guest(&lab, 3, 6_000 + i, other);
            lab.accept(&one(client.say(GET)), GET);
            client.send(RST, &[]);
        }
        let mut crowd: Vec<_> = (0..100).map(|i| guest(&lab, 70_000 + i * 256, 7_000, other)).collect();
        let syns: usize = crowd.iter_mut().map(|client| client.say(GET).len()).sum();
        assert_eq!((syns, lab.maps.losses(2, Reason::HeadShare)), (100, 0));
        crowd.iter_mut().for_each(|client| drop(client.send(RST, &[])));
        holders.iter_mut().for_each(|holder| drop(holder.send(RST, &[])));
    }
}

#[test]
fn one_network_leaves_slots_to_the_others_of_its_service() {
    for lab in [Http::new(false), Http::new(true)] {
        // One address, which is one network.
        let mut holders: Vec<_> = (0..5_000).map(|port| guest(&lab, 9, 10_000 + port, lab.vip)).collect();
        holders.iter_mut().for_each(|holder| drop(holder.say(&GET[..9])));
        let held = by_service(&lab)[&1];
        assert!((800..=896).contains(&held), "{held} slots");
        for i in 1..500 {
            let mut client = guest(&lab, i * 256, 9_000, lab.vip);
            lab.accept(&one(client.say(GET)), GET);
            client.send(RST, &[]);
        }
        holders.iter_mut().for_each(|holder| drop(holder.send(RST, &[])));
    }
}

#[test]
fn every_service_finds_a_slot_though_three_are_attacked() {
    let lab = Http::new(false);
    let vips: Vec<SocketAddr> = (100..103).map(|port| SocketAddr::new(lab.vip.ip(), port)).collect();
    for (vip, id) in vips.iter().zip(10..) {
        let frontend = FrontendKey { addr: addr(vip.ip()), port: vip.port().to_be_bytes(), proto: TCP, pad: 0 };
        lab.maps.serve(id, frontend, split_by::CONNECTION, &[(100, &[1, 2])]);
        lab.maps.serve_http(id, MSS, None);
    }
    let mut holders: Vec<_> = vips.iter().flat_map(|vip| (0..5_000).map(|i| guest(&lab, i * 256, 5_000, *vip))).collect();
    holders.iter_mut().for_each(|holder| drop(holder.say(&GET[..9])));
    assert!(by_service(&lab).len() == 3 && lab.maps.taken() > 800, "{:?}", by_service(&lab));
    for port in 0..500 {
        let mut client = guest(&lab, 3, 6_000 + port, lab.vip);
        lab.accept(&one(client.say(GET)), GET);
        client.send(RST, &[]);
    }
    holders.iter_mut().for_each(|holder| drop(holder.send(RST, &[])));
}

/// The sets that connections look in are not known without the key.
#[test]
fn slots_are_chosen_by_a_secret() {
    let places = |secret: [u64; 2]| {
        let lab = Http::new(false);
        lab.maps.set_secret(secret);
        let mut clients: Vec<_> = (0..20).map(|port| guest(&lab, 9, 5_000 + port, lab.vip)).collect();
        let mut places = Vec::new();
        for client in &mut clients {
            client.say(&GET[..9]);
            places.push(lab.maps.stash_slots());
        }
        clients.iter_mut().for_each(|client| drop(client.send(RST, &[])));
        places
    };
    assert_eq!(places([1, 2]), places([1, 2]));
    assert_ne!(places([1, 2]), places([3, 2]));
    assert_ne!(places([1, 2]), places([1, 3]));
}

/// The attack: a request, the beginning of the next head, and bare acknowledgements as long as one likes.
#[test]
fn bare_acknowledgements_keep_no_slot() {
    for lab in Http::both() {
        let (mut client, mut server) = lab.ready();
        let ack = one(client.say(&GET2[..9]));
        client.hear(&ack);
        for _ in 0..12 {
            lab.maps.pass(SECOND);
            server.hear(&one(lab.run(&Wire { seq: client.seq.wrapping_sub(9), ..client.wire(ACK, &[]) }, CLIENT_SIDE)));
        }
        assert_eq!(lab.maps.taken(), 1, "while nobody needs it, it may stay");
        let before = lab.maps.stash_slots();
        // All others are taken, and then the old one is found.
        fill_but(&lab, &before);
        let newcomers = newcomers(&lab);
        assert!(newcomers > 0, "nobody got the slot");
        let reset = one(client.say(&GET2[9..]));
        assert_eq!((reset.flags & RST, lab.maps.losses(1, Reason::HeadLate)), (RST, 1));
        assert_eq!(lab.entries(), [0, 0], "the leg goes along");
        lab.maps.take_all_stashes(false);
    }
}

/// Takes all slots but some, for services that nobody knows.
fn fill_but(lab: &Http, slots: &[u32]) {
    let kept: Vec<u64> = slots.iter().map(|slot| lab.maps.stash_word(*slot)).collect();
    lab.maps.take_all_stashes(true);
    slots.iter().zip(kept).for_each(|(slot, word)| lab.maps.set_stash_word(*slot, word));
}

/// Clients come with whole requests and go, until one gets a slot; how many did.
fn newcomers(lab: &Http) -> usize {
    // A service that holds nothing is refused nothing, if there is a slot.
    let other = neighbour(lab);
    let mut served = 0;
    for port in 0..400 {
        let mut client = guest(lab, 700, 20_000 + port, other);
        let out = client.say(GET);
        served += out.len();
        client.send(RST, &[]);
    }
    served
}

#[test]
fn a_head_has_ten_seconds_from_its_first_byte() {
    for (age, taken_over) in [(LATE - 400, false), (LATE, true)] {
        let lab = Http::new(false);
        let mut client = lab.client();
        let ack = one(client.say(&GET2[..9]));
        client.hear(&ack);
        lab.maps.pass(age / 2);
        // More of it, which wins no time.
        let ack = one(client.say(&GET2[9..20]));
        client.hear(&ack);
        lab.maps.pass(age - age / 2);
        let slot = lab.maps.stash_slots();
        fill_but(&lab, &slot);
        assert_eq!(newcomers(&lab) > 0, taken_over, "after {age} ms");
        lab.maps.free_all_stashes_but(&slot);
        let out = one(client.say(&GET2[20..]));
        assert_eq!(out.flags & RST != 0, taken_over);
        if !taken_over {
            lab.accept(&out, GET2);
        }
        client.send(RST, &[]);
    }
}

#[test]
fn a_slow_head_that_nobody_hurries_is_served() {
    for lab in Http::both() {
        let mut client = lab.client();
        for byte in &GET2[..GET2.len() - 1] {
            let ack = one(client.say(&[*byte]));
            client.hear(&ack);
            lab.maps.pass(SECOND);
        }
        let syn = one(client.say(&GET2[GET2.len() - 1..]));
        lab.accept(&syn, GET2);
        client.send(RST, &[]);
    }
}

/// The client still has all of a request that is on its way to a silent backend: its slot goes to who needs it, and the request is not lost.
#[test]
fn a_whole_head_is_displaced_and_comes_again() {
    for lab in Http::both() {
        let mut client = lab.client();
        let syn = one(client.say(GET2));
        assert_eq!(lab.maps.stash_words()[0] & ACKNOWLEDGED, 0);
        lab.maps.pass(300);
        let slot = lab.maps.stash_slots();
        fill_but(&lab, &slot);
        assert!(newcomers(&lab) > 0);
        lab.maps.take_all_stashes(false);
        // The backend answers at last, when there is nothing to give to it.
        let (mut server, syn_ack) = lab.backend_of(&syn);
        assert_eq!(lab.run(&syn_ack, BACKEND_SIDE), []);
        assert_eq!(lab.maps.losses(1, Reason::HeadDisplaced), 1);
        // The client sends the request again, and the backend hears of it.
        lab.maps.pass(200);
        let again = one(client.again(ACK | PSH, GET2));
        assert_eq!((again.clone().unstamped(), lab.maps.taken()), (syn.clone().unstamped(), 1));
        let out = lab.run(&syn_ack, BACKEND_SIDE);
        assert_eq!(payloads(&out), GET2);
        out.iter().for_each(|wire| server.hear(wire));
        lab.respond(&mut client, &mut server, OK);
        let counters = lab.maps.version(2);
        assert_eq!((counters.requests, counters.timeouts, lab.maps.suspected_now(3)), (1, 0, false));
        client.send(RST, &[]);
    }
}

/// As above, and the backend never answers: others of the version are tried, and then the client is told.
#[test]
fn displaced_heads_do_not_wait_for_ever() {
    for lab in Http::both() {
        let mut client = lab.client();
        one(client.say(GET2));
        let mut syns = 1;
        let answer = loop {
            lab.maps.pass(500);
            let slots = lab.maps.stash_slots();
            fill_but(&lab, &slots);
            assert!(newcomers(&lab) > 0);
            lab.maps.take_all_stashes(false);
            let out = one(client.again(ACK | PSH, GET2));
            if out.flags != SYN {
                break out;
            }
            syns += 1;
        };
        assert!(answer.payload.starts_with(b"HTTP/1.1 503 ") && syns == 6, "{syns} tries, {answer:?}");
        client.send(RST, &[]);
    }
}

/// A head that came in pieces cannot come again.
#[test]
fn a_head_in_pieces_that_lost_its_slot_is_reset() {
    for lab in Http::both() {
        let mut client = lab.client();
        let ack = one(client.say(&GET2[..9]));
        client.hear(&ack);
        let syn = one(client.say(&GET2[9..]));
        lab.maps.pass(LATE);
        let slot = lab.maps.stash_slots();
        fill_but(&lab, &slot);
        assert!(newcomers(&lab) > 0);
        lab.maps.take_all_stashes(false);
        let reset = one(client.again(ACK | PSH, &GET2[9..]));
        assert_eq!((reset.flags & RST, lab.entries(), lab.maps.losses(1, Reason::HeadLate)), (RST, [0, 0], 1));
        // Its backend hears so too, when it comes.
        let (_, syn_ack) = lab.backend_of(&syn);
        assert!(lab.run(&syn_ack, BACKEND_SIDE).iter().all(|wire| wire.dst == syn.dst || wire.flags & SYN != 0));
    }
}

/// Who works with a slot at this moment keeps it.
#[test]
fn a_slot_in_use_is_not_taken() {
    let lab = Http::new(false);
    let mut client = lab.client();
    let ack = one(client.say(&GET2[..9]));
    client.hear(&ack);
    lab.maps.pass(LATE);
    let slot = lab.maps.stash_slots();
    fill_but(&lab, &slot);
    let locked = lab.maps.hold_lock_of(slot[0]);
    assert_eq!(newcomers_beside(&lab), 0);
    lab.maps.give_lock(locked);
    assert!(newcomers(&lab) > 0);
    lab.maps.take_all_stashes(false);
    client.send(RST, &[]);
}

/// As [`newcomers`]; one whose own lock is held gets no answer to its SYN.
fn newcomers_beside(lab: &Http) -> usize {
    let other = neighbour(lab);
    let mut served = 0;
    for port in 30_000..30_100 {
        let mut client = End { me: SocketAddr::new(lab.client.ip(), port), peer: other, ..lab.stranger() };
        if let [syn_ack] = &client.send(SYN, &[])[..] {
            client.ack = syn_ack.seq;
            client.hear(syn_ack);
            served += client.say(GET).len();
        }
    }
    served
}

/// Delivered, and not acknowledged by its backend for long.
#[test]
fn what_was_acknowledged_and_is_gone_ends_the_connection() {
    for lab in Http::both() {
        let mut client = lab.client();
        let ack = one(client.say(&GET[..10]));
        client.hear(&ack);
        let syn = one(client.say(&GET[10..]));
        let (mut server, syn_ack) = lab.backend_of(&syn);
        let lost = lab.run(&syn_ack, BACKEND_SIDE);
        assert_eq!(payloads(&lost), GET);
        lab.maps.pass(LATE);
        let slot = lab.maps.stash_slots();
        fill_but(&lab, &slot);
        assert!(newcomers(&lab) > 0);
        lab.maps.take_all_stashes(false);
        if lab.ipv6() {
            // The backend had it after all.
            lost.iter().for_each(|wire| server.hear(wire));
            lab.respond(&mut client, &mut server, OK);
            server.hear(&one(client.say(GET)));
            client.send(RST, &[]);
        } else {
            let reset = one(client.again(ACK | PSH, &GET[10..]));
            assert_eq!((reset.flags & RST, lab.entries()), (RST, [0, 0]));
        }
    }
}
