//! A packet whose checksum is wrong is not read, decided about, kept, answered or repaired.
use super::*;
use crate::bytes::Vouched;

/// What a device that sums says of a frame.
fn summed(bytes: &[u8]) -> Vouched {
    let sum: u64 = bytes[14..].chunks(2).map(|pair| u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]) as u64).sum();
    Vouched::Sum(checksum::fold(sum))
}

/// Offset of the transport checksum.
fn at(lab: &Lab) -> usize {
    (if lab.ipv6() { 54 } else { 34 }) + if lab.proto == TCP { 16 } else { 6 }
}

/// Frames with one wrong bit: in the payload, in the transport header and, of IPv4, in the network header.
fn damaged(lab: &Lab, bytes: &[u8]) -> Vec<Vec<u8>> {
    let places = [bytes.len() - 1, at(lab), at(lab) - 6];
    let mut out: Vec<Vec<u8>> = Vec::new();
    for place in places {
        out.push(bytes.to_vec());
        out.last_mut().expect("one")[place] ^= 1;
    }
    if !lab.ipv6() {
        // The identification, which nothing else covers.
        out.push(bytes.to_vec());
        out.last_mut().expect("one")[18] ^= 1;
    }
    out
}

#[test]
fn a_wrong_checksum_begins_and_ends_nothing() {
    for ipv6 in [false, true] {
        for proto in [TCP, UDP] {
            let lab = Lab::new(ipv6, proto);
            let first = build(proto, lab.client, lab.vip, tcp::SYN, (1000, 0), if proto == TCP { &[] } else { b"question" });
            for bytes in damaged(&lab, &first) {
                for vouches in [Vouched::Nothing, summed(&bytes)] {
                    let mut frame = lab.frame(&bytes, CLIENT_SIDE);
                    frame.vouches = Some(vouches);
                    assert_eq!((frame.run(&lab.maps), &frame.bytes), (Action::Drop, &bytes));
                }
            }
            assert_eq!((lab.sizes(), lab.maps.version(1).connections), ([0; 5], 0));
            assert!(lab.maps.counted(Reason::Checksum) >= 6);
        }
        let lab = Lab::new(ipv6, TCP);
        lab.connect();
        for flags in [tcp::RST, tcp::RST | tcp::ACK, tcp::FIN | tcp::ACK] {
            for bytes in damaged(&lab, &build(TCP, lab.client, lab.vip, flags, (1000, 5001), b"x")) {
                assert_eq!(lab.frame(&bytes, CLIENT_SIDE).run(&lab.maps), Action::Drop);
            }
        }
        assert_eq!((lab.tcp_entries(), lab.maps.version(1).closed), (2, 0));
        // What would be answered.
        lab.maps.change_backends(|backend| backend.state = backend_state::DOWN);
        for bytes in damaged(&lab, &build(TCP, lab.client, lab.vip, tcp::ACK, (1000, 5001), b"x")) {
            assert_eq!(lab.frame(&bytes, CLIENT_SIDE).run(&lab.maps), Action::Drop);
        }
        assert_eq!(lab.tcp_entries(), 2);
    }
}

#[test]
fn a_right_checksum_is_known_however_it_comes() {
    for ipv6 in [false, true] {
        for payload in [&b""[..], b"x", b"xy", &[7; 1399], &[9; 1400]] {
            let lab = Lab::new(ipv6, TCP);
            let bytes = build(TCP, lab.client, lab.vip, tcp::SYN, (1000, 0), payload);
            for vouches in [Vouched::Nothing, summed(&bytes), Vouched::Right] {
                let mut frame = lab.frame(&bytes, CLIENT_SIDE);
                frame.vouches = Some(vouches);
                assert_eq!(frame.run(&lab.maps), Action::Redirect(BACKEND_SIDE), "{vouches:?}");
                // Padded by the link, with what nobody has summed to zero.
                let mut frame = lab.frame(&[&bytes[..], &[1, 2, 3]].concat(), CLIENT_SIDE);
                frame.vouches = Some(vouches);
                assert_eq!(frame.run(&lab.maps), Action::Redirect(BACKEND_SIDE), "{vouches:?}");
            }
            // A sender's device is still to make it, or the receiver's has put segments together.
            let mut wrong = bytes.clone();
            wrong[at(&lab)] ^= 1;
            for (vouches, segment) in [(Vouched::Right, 0), (Vouched::Nothing, 1000)] {
                let mut frame = lab.frame(&wrong, CLIENT_SIDE);
                (frame.vouches, frame.segment) = (Some(vouches), segment);
                assert_eq!(frame.run(&lab.maps), Action::Redirect(BACKEND_SIDE));
            }
            assert_eq!(lab.maps.counted(Reason::Checksum), 0);
        }
    }
    // Of IPv4, a datagram may do without.
    let lab = Lab::new(false, UDP);
    let mut bytes = build(UDP, lab.client, lab.vip, 0, (0, 0), b"question");
    bytes[40..42].fill(0);
    assert_eq!(lab.frame(&bytes, CLIENT_SIDE).run(&lab.maps), Action::Redirect(BACKEND_SIDE));
}

/// A checksum that looks as one that is still to be made, and is not, is wrong.
#[test]
fn an_unmade_checksum_is_not_believed_by_its_looks() {
    let lab = Lab::new(false, TCP);
    let mut bytes = build(TCP, lab.client, lab.vip, tcp::SYN, (1000, 0), &[]);
    let sum: u64 = bytes[26..34].chunks(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]]) as u64).sum();
    let pseudo = checksum::fold(sum + 6u16.to_be() as u64 + 20u16.to_be() as u64) as u16;
    bytes[50..52].copy_from_slice(&pseudo.to_ne_bytes());
    let mut frame = lab.frame(&bytes, CLIENT_SIDE);
    assert_eq!(frame.run(&lab.maps), Action::Drop);
}
