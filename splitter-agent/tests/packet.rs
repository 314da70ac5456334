//! The real kernel programs, packet by packet, through PROG_TEST_RUN: byte-exact results, checksums included. Needs root.

#[path = "../../splitter-ebpf/src/tests/frames.rs"]
mod frames;

use aya::{
    maps::{Array, PerCpuArray, ProgramArray},
    programs::{ProgramFd, SchedClassifier, Xdp},
};
use frames::{ACK, FIN, RST, SYN, Seen, build, parse};
use splitter_common::abi::*;
use splitter_lab::{
    kernel::{Load, Node, backend, client, vip},
    lab::{Lab, Options},
};
use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

const PASS: i32 = -1;
const REDIRECT: i32 = 7;
const XDP_PASS: i32 = 2;
const XDP_REDIRECT: i32 = 4;

/// The programs over filled maps, inside a namespace with routes.
struct Bed {
    node: Node,
    tc: ProgramFd,
    xdp: ProgramFd,
    ingress: u32,
    ipv6: bool,
}

fn address(addr: Addr) -> IpAddr {
    Ipv6Addr::from(addr).to_canonical()
}

fn in_lab<T: Send>(name: &str, test: impl FnOnce() -> T + Send) -> T {
    assert!(splitter_lab::lab::is_root(), "this test needs root: it loads BPF programs");
    let lab = Lab::with(name, Options { backends: 1, ..Options::default() }).expect("a lab");
    lab.node
        .batch(
            "link set c0 address 02:00:00:00:00:02\n\
             neigh replace 10.2.1.2 lladdr 02:00:00:00:00:99 dev b1 nud permanent\n\
             neigh replace fd02:1::2 lladdr 02:00:00:00:00:99 dev b1 nud permanent\n\
             neigh replace 10.1.0.2 lladdr 02:00:00:00:00:88 dev c0 nud permanent\n\
             neigh replace fd01::2 lladdr 02:00:00:00:00:88 dev c0 nud permanent\n\
             route add 10.0.0.0/8 via 10.2.1.2 dev b1\nroute add fd02::/64 via fd02:1::2 dev b1\n\
             route add 11.0.0.0/8 via 10.1.0.2 dev c0\nroute add fd01::b00:0/104 via fd01::2 dev c0\n",
        )
        .expect("routes");
    lab.node.run(test).expect("the namespace")
}

fn index(name: &std::ffi::CStr) -> u32 {
    // SAFETY: a valid C string.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

impl Bed {
    fn new(ipv6: bool) -> Self {
        let load = Load { ipv6, services: 1, flows: 1, http: false, ifindex: index(c"b1"), ingress: index(c"c0") };
        let mut node = Node::load(Path::new(splitter_datapath::objects::FOLDER), load).expect("the kernel accepts the programs");
        for (name, calls) in [("splitter_tc6", "TC_CALLS"), ("splitter_xdp6", "XDP_CALLS")] {
            let fd = loaded(&mut node, name);
            node.map::<ProgramArray<_>>(calls).expect("calls").set(0, &fd, 0).expect("a slot");
        }
        let (tc, xdp) = (loaded(&mut node, "splitter_tc"), loaded(&mut node, "splitter_xdp"));
        Self { node, tc, xdp, ingress: load.ingress, ipv6 }
    }

    fn client(&self, port: u16) -> SocketAddr {
        SocketAddr::new(address(client(self.ipv6, 0)), port)
    }
    fn vip(&self) -> SocketAddr {
        SocketAddr::new(address(vip(self.ipv6, 0)), 80)
    }
    /// Backend `i` of the service, from 0.
    fn backend(&self, i: u32) -> SocketAddr {
        SocketAddr::new(address(backend(self.ipv6, i)), 8080)
    }

    fn run(&self, bytes: &[u8]) -> (i32, Vec<u8>) {
        run(&self.tc, bytes, self.ingress, false, 0)
    }
    fn run_xdp(&self, bytes: &[u8]) -> (i32, Vec<u8>) {
        run(&self.xdp, bytes, self.ingress, true, 0)
    }

    fn reason(&mut self, reason: Reason) -> u64 {
        let reasons: PerCpuArray<_, u64> = self.node.map("REASONS").expect("reasons");
        reasons.get(&(reason as u32), 0).expect("in range").iter().sum()
    }

    fn set_backend_state(&mut self, id: u32, state: u8) {
        let mut backends: Array<_, Backend> = self.node.map("BACKENDS").expect("backends");
        let backend = backends.get(&id, 0).expect("in range");
        backends.set(id, Backend { state, ..backend }, 0).expect("in range");
    }

    /// A handshake by the real programs; the backend.
    fn connect(&self, port: u16) -> SocketAddr {
        let (verdict, bytes) = self.run(&build(TCP, self.client(port), self.vip(), SYN, (1000, 0), &[]));
        assert_eq!(verdict, REDIRECT);
        let server = parse(&bytes).dst;
        let (verdict, bytes) = self.run(&build(TCP, server, self.client(port), SYN | ACK, (5000, 1001), &[]));
        assert_eq!((verdict, parse(&bytes).src), (REDIRECT, self.vip()));
        let (verdict, _) = self.run(&build(TCP, self.client(port), self.vip(), ACK, (1001, 5001), &[]));
        assert_eq!(verdict, REDIRECT);
        server
    }
}

fn loaded(node: &mut Node, name: &str) -> ProgramFd {
    let program = node.ebpf.program_mut(name).expect("the object has it");
    match program {
        aya::programs::Program::Xdp(p) => Xdp::load(p),
        aya::programs::Program::SchedClassifier(p) => SchedClassifier::load(p),
        _ => panic!("{name}"),
    }
    .unwrap_or_else(|e| panic!("{name}: {e}"));
    program.fd().expect("loaded").try_clone().expect("a descriptor")
}

/// PROG_TEST_RUN with a context that names the interface. `flags` 4: the buffer's checksum state is COMPLETE, and the kernel answers
/// EBADMSG when a rewrite broke it (BPF_F_TEST_SKB_CHECKSUM_COMPLETE).
fn run(program: &ProgramFd, data: &[u8], ifindex: u32, xdp: bool, flags: u32) -> (i32, Vec<u8>) {
    #[repr(C)]
    #[derive(Default)]
    struct TestRun {
        fd: u32,
        result: u32,
        size_in: u32,
        size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        context_size_in: u32,
        context_size_out: u32,
        context_in: u64,
        context_out: u64,
        flags: u32,
        cpu: u32,
        batch: u32,
        pad: u32,
    }
    let mut context = vec![0u8; if xdp { 24 } else { 192 }];
    if xdp {
        context[4..8].copy_from_slice(&(data.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
    } else {
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
    }
    let mut out = vec![0u8; 4096];
    let mut attr = TestRun {
        fd: program.as_fd().as_raw_fd() as u32,
        size_in: data.len() as u32,
        size_out: out.len() as u32,
        data_in: data.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        context_size_in: context.len() as u32,
        context_in: context.as_ptr() as u64,
        flags,
        ..Default::default()
    };
    const BPF_PROG_TEST_RUN: libc::c_int = 10;
    // SAFETY: all buffers live over the call and are as long as said.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<TestRun>()) };
    assert_eq!(result, 0, "PROG_TEST_RUN: {}", std::io::Error::last_os_error());
    out.truncate(attr.size_out as usize);
    (attr.result as i32, out)
}

#[test]
fn tcp_is_translated_both_ways() {
    in_lab("pkttcp", || {
        for ipv6 in [false, true] {
            let bed = Bed::new(ipv6);
            let (client, vip) = (bed.client(40_000), bed.vip());
            let server = bed.connect(40_000);
            assert!([bed.backend(0), bed.backend(1)].contains(&server));
            let (verdict, bytes) = bed.run(&build(TCP, client, vip, ACK, (1001, 5001), b"request"));
            assert_eq!((verdict, bytes[..6].to_vec()), (REDIRECT, vec![2, 0, 0, 0, 0, 0x99]), "to the gateway");
            assert_eq!(parse(&bytes), Seen { src: client, dst: server, hops: 63, rst: false, payload: b"request".into() });
            let (verdict, bytes) = bed.run(&build(TCP, server, client, ACK, (5001, 1008), b"response"));
            assert_eq!((verdict, bytes[..6].to_vec()), (REDIRECT, vec![2, 0, 0, 0, 0, 0x88]), "to the client");
            assert_eq!(parse(&bytes), Seen { src: vip, dst: client, hops: 63, rst: false, payload: b"response".into() });
        }
    });
}

#[test]
fn the_buffers_checksum_state_stays_right() {
    in_lab("pktsum", || {
        for ipv6 in [false, true] {
            let bed = Bed::new(ipv6);
            let (client, vip) = (bed.client(40_001), bed.vip());
            let server = bed.connect(40_001);
            for bytes in [build(TCP, client, vip, ACK, (1001, 5001), b"odd"), build(TCP, server, client, ACK, (5001, 1001), b"even")] {
                let (verdict, _) = run(&bed.tc, &bytes, bed.ingress, false, 4);
                assert_eq!(verdict, REDIRECT);
            }
        }
    });
}

#[test]
fn xdp_and_tc_write_the_same_bytes() {
    in_lab("pktxdp", || {
        for ipv6 in [false, true] {
            let bed = Bed::new(ipv6);
            let (client, vip) = (bed.client(40_002), bed.vip());
            let server = bed.connect(40_002);
            bed.run(&build(TCP, client, vip, ACK, (1001, 5001), b"first"));
            bed.run(&build(TCP, server, client, ACK, (5001, 1006), b"first"));
            let bytes = build(TCP, client, vip, ACK, (1006, 5006), b"more");
            let (tc, by_tc) = bed.run(&bytes);
            let (xdp, by_xdp) = bed.run_xdp(&bytes);
            assert_eq!((tc, xdp, &by_tc), (REDIRECT, XDP_REDIRECT, &by_xdp));
            // XDP may not transmit out of the client's interface here: left to TC, untouched.
            let bytes = build(TCP, server, client, ACK, (5006, 1010), b"more");
            assert_eq!(bed.run_xdp(&bytes), (XDP_PASS, bytes));
            for flags in [SYN, FIN | ACK, RST] {
                let bytes = build(TCP, client, vip, flags, (1010, 5010), &[]);
                assert_eq!(bed.run_xdp(&bytes), (XDP_PASS, bytes), "left to TC, untouched");
            }
        }
    });
}

#[test]
fn a_flow_of_a_dead_backend_is_reset() {
    in_lab("pktrst", || {
        for ipv6 in [false, true] {
            let mut bed = Bed::new(ipv6);
            let (client, vip) = (bed.client(40_003), bed.vip());
            let server = bed.connect(40_003);
            let id = if server == bed.backend(0) { 1 } else { 2 };
            bed.set_backend_state(id, backend_state::DOWN);
            let (verdict, bytes) = bed.run(&build(TCP, client, vip, ACK, (1001, 5001), &[7; 300]));
            assert_eq!(verdict, REDIRECT);
            assert_eq!(parse(&bytes), Seen { src: vip, dst: client, hops: 64, rst: true, payload: vec![] });
            assert_eq!(bytes[..6], [2, 0, 0, 0, 0, 1], "back to where it came from");
            assert_eq!(bed.reason(Reason::BackendDown), 1);
        }
    });
}

#[test]
fn nobody_home_is_a_reset() {
    in_lab("pktnone", || {
        let mut bed = Bed::new(false);
        bed.set_backend_state(1, backend_state::DOWN);
        bed.set_backend_state(2, backend_state::DOWN);
        let (verdict, bytes) = bed.run(&build(TCP, bed.client(40_004), bed.vip(), SYN, (1000, 0), &[]));
        assert_eq!((verdict, parse(&bytes).rst), (REDIRECT, true));
        assert_eq!(bed.reason(Reason::NoBackend), 1);
    });
}

#[test]
fn too_large_packets_are_answered() {
    in_lab("pktmtu", || {
        for ipv6 in [false, true] {
            let mut bed = Bed::new(ipv6);
            let (client, vip) = (bed.client(40_005), bed.vip());
            bed.connect(40_005);
            let mut bytes = build(TCP, client, vip, ACK, (1001, 5001), &[7; 1600]);
            if !ipv6 {
                bytes[20] |= 0x40;
                let mut header = etherparse::Ipv4Header::from_slice(&bytes[14..]).expect("a header").0;
                header.header_checksum = header.calc_header_checksum();
                bytes[14..34].copy_from_slice(&header.to_bytes());
            }
            let (verdict, answer) = bed.run(&bytes);
            assert_eq!(verdict, REDIRECT);
            let packet = etherparse::SlicedPacket::from_ethernet(&answer).expect("valid");
            match packet.transport.expect("ICMP") {
                etherparse::TransportSlice::Icmpv4(icmp) => {
                    assert_eq!(icmp.header().checksum, icmp.icmp_type().calc_checksum(icmp.payload()));
                    assert_eq!((icmp.type_u8(), icmp.code_u8(), &icmp.bytes5to8()[2..]), (3, 4, &1500u16.to_be_bytes()[..]));
                    assert_eq!(icmp.payload()[..], bytes[14..14 + 40]);
                }
                etherparse::TransportSlice::Icmpv6(icmp) => {
                    assert_eq!((icmp.type_u8(), icmp.bytes5to8()), (2, 1500u32.to_be_bytes()));
                    assert_eq!(icmp.payload()[..], bytes[14..14 + 60]);
                    let ip = etherparse::Ipv6Header::from_slice(&answer[14..]).expect("a header").0;
                    let sum = icmp.icmp_type().calc_checksum(ip.source, ip.destination, icmp.payload());
                    assert_eq!(Ok(icmp.header().checksum), sum);
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(bed.reason(Reason::FragmentationNeeded), 1);
        }
    });
}

#[test]
fn odd_packets_pass_untouched_and_counted() {
    in_lab("pktodd", || {
        let mut bed = Bed::new(false);
        let syn = build(TCP, bed.client(40_006), bed.vip(), SYN, (1000, 0), &[]);
        let mut tagged = syn.clone();
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        let mut expired = syn.clone();
        expired[22] = 1;
        mend_header(&mut expired);
        let mut malformed = syn.clone();
        malformed[14] = 0x42;
        for (bytes, reason) in [(&tagged, Reason::Vlan), (&malformed, Reason::Malformed)] {
            // The kernel itself takes an in-band tag off before TC sees the frame: run through XDP as well.
            let by_xdp = bed.run_xdp(bytes);
            assert_eq!(by_xdp, (XDP_PASS, bytes.clone()));
            let (verdict, out) = bed.run(bytes);
            assert_eq!((verdict, &out), (PASS, bytes));
            assert!(bed.reason(reason) >= 1, "{reason:?}");
        }
        assert_eq!(bed.run_xdp(&expired), (XDP_PASS, expired.clone()));
        assert_ne!(bed.run(&expired).0, PASS, "answered");
        assert_eq!(bed.reason(Reason::TtlExpired), 1);
        let foreign = build(TCP, bed.client(1), "192.0.2.1:80".parse().expect("ok"), SYN, (1, 0), &[]);
        assert_eq!(bed.run(&foreign), (PASS, foreign));
    });
}

fn mend_header(bytes: &mut [u8]) {
    let header = etherparse::Ipv4Header::from_slice(&bytes[14..]).expect("a header").0;
    bytes[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
}

#[test]
fn ip_options_are_carried_along() {
    in_lab("pktopt", || {
        let bed = Bed::new(false);
        let mut bytes = build(TCP, bed.client(40_007), bed.vip(), SYN, (1000, 0), &[]);
        bytes.splice(34..34, [1, 1, 1, 1]);
        bytes[14] = 0x46;
        bytes[17] += 4;
        mend_header(&mut bytes);
        let (verdict, out) = bed.run(&bytes);
        assert_eq!((verdict, out[34..38].to_vec()), (REDIRECT, vec![1; 4]));
        assert_ne!(parse(&out).dst, bed.vip());
    });
}

#[test]
fn a_reply_nobody_asked_for_passes() {
    in_lab("pktrep", || {
        let bed = Bed::new(false);
        let bytes = build(TCP, bed.backend(0), bed.client(1), ACK, (1, 1), b"x");
        assert_eq!(bed.run(&bytes), (PASS, bytes));
        let reset = build(TCP, bed.client(2), bed.vip(), RST, (1, 1), &[]);
        assert_eq!(bed.run(&reset).0, PASS);
    });
}
