//! Bulk data: offloads, path MTU, hairpins.

use crate::support::{
    Bed, PORT, Split, eventually,
    socket::{transfer, unfragmented},
    tool, vip,
};
use splitter_lab::{lab::Options, load::Plan};
use std::{
    fs,
    net::{Ipv6Addr, SocketAddr},
};

/// Each way.
const LARGE: usize = if cfg!(debug_assertions) { 256 << 20 } else { 1 << 30 };
const MEDIUM: usize = 16 << 20;

/// One backend that serves all; IPv4 and IPv6.
fn bed(name: &str, options: Options) -> Bed {
    let one = |split: Split| Split { versions: vec![(1, vec![1])], ..split };
    let splits = [one(Split::tcp(1, 0)), one(Split::tcp(1, 0).v6().named("web6"))];
    let udp = [one(Split::tcp(1, 0).udp().named("dns")), one(Split::tcp(1, 0).udp().v6().named("dns6"))];
    let mut bed = Bed::with(name, Options { backends: 1, ..options }, &[splits, udp].concat());
    bed.stop_server(1);
    bed
}

/// Through the VIP and back, to a listener in the place of the server.
fn both_ways(bed: &Bed, v6: bool, size: usize) {
    let any = if v6 { SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT) } else { SocketAddr::new([0; 4].into(), PORT) };
    transfer(bed.lab.client(), (bed.lab.backend(1), any), vip(v6), size);
}

#[test]
fn large_transfers_are_exact_and_stay_segmented_late() {
    let bed = bed("bulk", Options::default());
    for (v6, service) in [(false, "web"), (true, "web6")] {
        both_ways(&bed, v6, LARGE);
        let counters = bed.service(service).versions.remove(0);
        for (bytes, packets) in [(counters.bytes_in, counters.packets_in), (counters.bytes_out, counters.packets_out)] {
            assert!(bytes >= LARGE as u64, "{service}: {bytes} bytes counted");
            // Acknowledgements count too: with offloads the mean is tens of kilobytes, without it is below the MTU.
            assert!(bytes / packets > 3_000, "{service}: {bytes} bytes in {packets} packets: segmentation offload is lost");
        }
    }
}

/// A receive queue that cannot merge what arrives fills its window with half-empty buffers: short connections are slow then, long ones are
/// not. The client's kernel counts what it merged.
#[test]
fn answers_are_merged_where_they_arrive() {
    const ANSWERS: u64 = 40;
    let mut bed = bed("merged", Options::default());
    bed.start_server(1);
    let merged = || bed.lab.client().run(|| tcp_counter("TCPRcvCoalesce")).expect("the client's namespace");
    for v6 in [false, true] {
        let before = merged();
        bed.clean(Plan { path: "/bytes/1000000".into(), concurrency: 4, ..Plan::http(vip(v6)) }, ANSWERS);
        let count = merged() - before;
        assert!(count > ANSWERS, "IPv{}: {count} segments merged in {ANSWERS} answers of a megabyte", if v6 { 6 } else { 4 });
    }
}

/// A counter of `TcpExt` in this thread's namespace.
fn tcp_counter(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/netstat").expect("the kernel counts");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: ")).map(|line| line.split(' '));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let value = names.zip(values).find(|(other, _)| *other == name).expect("the counter").1;
    value.parse().expect("a number")
}

#[test]
fn a_smaller_backend_link_is_respected() {
    let bed = bed("mtuend", Options { backend_mtu: 1_400, ..Options::default() });
    for v6 in [false, true] {
        both_ways(&bed, v6, MEDIUM);
    }
}

/// Only the node's end of the backend's link is narrow: neither end of the connection can know, the node has to tell.
#[test]
fn the_path_mtu_is_told_to_the_client() {
    let mut bed = bed("mtupath", Options::default());
    bed.lab.node.batch("link set b1 mtu 1400\n").unwrap();
    for v6 in [false, true] {
        let before = bed.reason("fragmentation_needed");
        both_ways(&bed, v6, MEDIUM);
        assert!(bed.reason("fragmentation_needed") > before, "IPv{}: nobody told the client", if v6 { 6 } else { 4 });
    }
    bed.start_server(1);
    for (v6, family) in [(false, "-4"), (true, "-6")] {
        let mut forget = bed.lab.client().command("ip");
        forget.args([family, "route", "flush", "cache"]);
        tool(forget);
        let socket = unfragmented(bed.lab.client(), vip(v6));
        let header = if v6 { 48 } else { 28 };
        socket.send(&vec![1; 1_500 - header]).expect("the client's own link takes it");
        let error = eventually("EMSGSIZE", || socket.send(&vec![1; 1_500 - header]).err());
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{error}");
        // The error that the node's answer left on the socket comes first.
        eventually("what fits goes out", || socket.send(&vec![1; 1_400 - header - 3]).ok());
        // The answer begins with `b1 `.
        assert_eq!(socket.recv(&mut [0; 2_000]).unwrap(), 1_400 - header);
    }
}

#[test]
fn a_hairpin_is_translated_at_the_source() {
    let services = [Split::tcp(1, 1), Split::tcp(1, 1).v6().named("web6"), Split::tcp(1, 1).udp().named("dns")];
    let options = Options { shared_segment: true, ..Options::default() };
    let mut bed = Bed::prepare("hairpin", options, &services);
    bed.site.interfaces = vec!["c0"];
    let bed = bed.started();
    for plan in [Plan::http(vip(false)), Plan::http(vip(true)), Plan::udp(vip(false))] {
        bed.clean(plan, 400);
    }
    let flows = bed.flows();
    let node = [bed.lab.node_ip(0, false), bed.lab.node_ip(0, true)];
    assert!(!flows.is_empty());
    for flow in flows {
        let source: SocketAddr = flow.snat.as_deref().unwrap_or_else(|| panic!("{flow:?} is not translated")).parse().unwrap();
        assert!(node.contains(&source.ip()), "{flow:?}");
    }
}
