//! Packets that are short, fragmented, decorated or nonsense.
use super::*;
use proptest::prelude::*;

fn run(lab: &Lab, bytes: &[u8]) -> (Action, Vec<u8>) {
    let mut frame = lab.frame(bytes, CLIENT_SIDE);
    (frame.run(&lab.maps), frame.bytes)
}

#[test]
fn ip_options_are_carried_along() {
    let lab = Lab::new(false, TCP);
    let mut bytes = build(TCP, lab.client, lab.vip, tcp::SYN, (1, 0), &[]);
    // Four no-operation options.
    bytes.splice(34..34, [1, 1, 1, 1]);
    bytes[14] = 0x46;
    bytes[17] += 4;
    let mut header = etherparse::Ipv4Header::from_slice(&bytes[14..]).expect("a header").0;
    header.header_checksum = header.calc_header_checksum();
    bytes[24..26].copy_from_slice(&header.header_checksum.to_be_bytes());
    let (action, bytes) = run(&lab, &bytes);
    assert_eq!(action, Action::Redirect(BACKEND_SIDE));
    assert_ne!(parse(&bytes).dst, lab.vip);
    assert_eq!(bytes[34..38], [1, 1, 1, 1]);
}

#[test]
fn extension_headers_are_skipped() {
    let lab = Lab::new(true, UDP);
    let mut bytes = build(UDP, lab.client, lab.vip, 0, (0, 0), b"question");
    // A destination options header of 8 bytes: PadN.
    bytes.splice(54..54, [UDP, 0, 1, 4, 0, 0, 0, 0]);
    bytes[20] = 60;
    bytes[19] += 8;
    let (action, bytes) = run(&lab, &bytes);
    assert_eq!(action, Action::Redirect(BACKEND_SIDE));
    assert_ne!(parse(&bytes).dst, lab.vip);
}

#[test]
fn too_many_extension_headers_are_passed_and_counted() {
    let lab = Lab::new(true, UDP);
    let mut bytes = build(UDP, lab.client, lab.vip, 0, (0, 0), b"question");
    for _ in 0..8 {
        bytes.splice(54..54, [60, 0, 1, 4, 0, 0, 0, 0]);
        bytes[19] += 8;
    }
    bytes[20] = 60;
    assert_eq!(run(&lab, &bytes), (Action::Pass, bytes.clone()));
    assert_eq!(lab.maps.counted(Reason::ExtensionHeader), 1);
}

/// The two halves of a datagram of 16 payload bytes, as IPv4 fragments.
fn fragments(lab: &Lab) -> [Vec<u8>; 2] {
    let whole = build(UDP, lab.client, lab.vip, 0, (0, 0), &[5; 16]);
    let cut = |offset: u16, more: bool, payload: &[u8]| {
        let mut header = etherparse::Ipv4Header::from_slice(&whole[14..]).expect("a header").0;
        header.identification = 77;
        header.dont_fragment = false;
        header.more_fragments = more;
        header.fragment_offset = etherparse::IpFragOffset::try_new(offset).expect("small");
        header.set_payload_len(payload.len()).expect("small");
        header.header_checksum = header.calc_header_checksum();
        let mut bytes = whole[..14].to_vec();
        header.write(&mut bytes).expect("a vector");
        bytes.extend(payload);
        bytes
    };
    [cut(0, true, &whole[34..50]), cut(2, false, &whole[50..])]
}

#[test]
fn fragments_follow_their_first() {
    let lab = Lab::new(false, UDP);
    let [first, second] = fragments(&lab);
    assert_eq!(run(&lab, &second).0, Action::Drop, "before its first: nobody could put it together");
    assert_eq!((lab.maps.counted(Reason::FragmentUnknown), lab.maps.counted(Reason::VipStray)), (1, 1));
    let (action, first) = run(&lab, &first);
    assert_eq!(action, Action::Redirect(BACKEND_SIDE));
    let (action, second) = run(&lab, &second);
    assert_eq!(action, Action::Redirect(BACKEND_SIDE));
    assert_eq!(first[26..34], second[26..34], "both go to one backend");
    let mut whole = first[..34].to_vec();
    whole.extend([&first[34..], &second[34..]].concat());
    let mut header = etherparse::Ipv4Header::from_slice(&whole[14..]).expect("a header").0;
    header.more_fragments = false;
    header.set_payload_len(24).expect("small");
    header.header_checksum = header.calc_header_checksum();
    whole[14..34].copy_from_slice(&header.to_bytes());
    assert_eq!(parse(&whole).payload, [5; 16], "the datagram's checksum holds");
}

#[test]
fn vlan_tags_belong_to_the_vlans_interface() {
    let lab = Lab::new(false, TCP);
    let mut bytes = build(TCP, lab.client, lab.vip, tcp::SYN, (1, 0), &[]);
    let mut frame = lab.frame(&bytes, CLIENT_SIDE);
    frame.tagged = true;
    assert_eq!(frame.run(&lab.maps), Action::Pass);
    bytes.splice(12..12, [0x81, 0, 0, 5]);
    assert_eq!(run(&lab, &bytes), (Action::Pass, bytes.clone()));
    assert_eq!(lab.maps.counted(Reason::Vlan), 2);
}

/// A hub, or a switch that has forgotten where a host is, sends every frame to all: only one of them may serve it.
#[test]
fn frames_for_another_host_are_not_ours() {
    for proto in [TCP, UDP] {
        let lab = Lab::new(false, proto);
        let sent = build(proto, lab.client, lab.vip, tcp::SYN, (1, 0), b"");
        let closed = SocketAddr::new(lab.vip.ip(), 9_999);
        let strays = [build(TCP, lab.client, closed, tcp::SYN, (1, 0), b""), build(UDP, lab.client, closed, 0, (1, 0), b"")];
        for bytes in [&sent, &strays[0], &strays[1]] {
            let mut frame = lab.frame(bytes, CLIENT_SIDE);
            frame.foreign = true;
            assert_eq!((frame.run(&lab.maps), &frame.bytes), (Action::Pass, bytes));
        }
        assert_eq!((lab.sizes(), lab.maps.counted(Reason::OtherHost)), ([0; 5], 1));
        assert_eq!(run(&lab, &sent).0, Action::Redirect(BACKEND_SIDE));
    }
}

/// XDP sees no more of it than the address.
#[test]
fn xdp_leaves_frames_for_another_host() {
    let lab = Lab::new(false, TCP);
    lab.maps.add_iface(BACKEND_SIDE, Iface { flags: iface_flag::XDP_TRANSMIT, ..Default::default() });
    lab.connect();
    lab.send(tcp::ACK, b"request");
    let mut bytes = build(TCP, lab.client, lab.vip, tcp::ACK, (1001, 5001), b"x");
    let finished = |bytes: &[u8]| {
        let mut frame = Frame::<true>::new(bytes, ROUTE);
        frame.ifindex = CLIENT_SIDE;
        frame.run(&lab.maps) != Action::Pass
    };
    assert!(finished(&bytes));
    bytes[5] = 3;
    assert!(!finished(&bytes));
}

#[test]
fn short_and_impossible_packets_are_counted() {
    let lab = Lab::new(false, TCP);
    let bytes = build(TCP, lab.client, lab.vip, tcp::SYN, (1, 0), &[]);
    assert_eq!(run(&lab, &bytes[..50]).0, Action::Pass);
    assert_eq!(lab.maps.counted(Reason::Truncated), 1);
    let mut odd = bytes.clone();
    odd[14] = 0x44;
    assert_eq!(run(&lab, &odd).0, Action::Pass);
    assert_eq!(lab.maps.counted(Reason::Malformed), 1);
    let mut late = bytes;
    late[22] = 1;
    mend_header(&mut late);
    assert_eq!(run(&lab, &late).0, Action::Return(CLIENT_SIDE));
    assert_eq!(lab.maps.counted(Reason::TtlExpired), 1);
}

proptest! {
    /// Whatever arrives, nothing panics and nothing is read out of bounds; what is not for the frontend is not touched.
    #[test]
    fn noise_is_harmless(mut noise in prop::collection::vec(any::<u8>(), 0..200), ipv6: bool, keep in 0usize..64) {
        let lab = Lab::new(ipv6, TCP);
        let real = build(TCP, lab.client, lab.vip, tcp::ACK, (1, 1), b"payload");
        let keep = keep.min(noise.len()).min(real.len());
        noise[..keep].copy_from_slice(&real[..keep]);
        let (action, bytes) = run(&lab, &noise);
        if action == Action::Pass && lab.maps.counted(Reason::NoNextHop) == 0 && lab.maps.counted(Reason::IcmpTranslated) == 0 {
            prop_assert_eq!(bytes, noise);
        }
    }
}
