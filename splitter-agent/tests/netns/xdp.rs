//! The XDP fast path on uplinks.

use crate::support::{Bed, Split, eventually, share_of_v2, socket::set_option, tool, vip};
use splitter_datapath::interfaces;
use splitter_lab::{
    lab::{Namespace, Options},
    load::{Plan, Reuse},
    pace::bulk,
    poll::check,
};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Counts packets that the node's stack receives from an interface: XDP in generic mode runs before, TC after it.
struct Tap(OwnedFd);

impl Tap {
    fn on(node: &Namespace, interface: &std::ffi::CStr) -> Tap {
        let open = || {
            // SAFETY: no pointers.
            let fd = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) })?;
            // SAFETY: the descriptor is new and nobody else's.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            const IGNORE_OUTGOING: i32 = 23;
            set_option(&fd, libc::SOL_PACKET, IGNORE_OUTGOING, 1)?;
            // SAFETY: all zeroes is a valid address.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
            // SAFETY: a valid C string.
            address.sll_ifindex = unsafe { libc::if_nametoindex(interface.as_ptr()) } as i32;
            // SAFETY: the address is as long as said.
            check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32) })?;
            Ok::<_, std::io::Error>(Tap(fd))
        };
        node.run(open).expect("a namespace").expect("a packet socket")
    }

    /// Packets since the last call, those too that the socket had no room for.
    fn packets(&self) -> u32 {
        // SAFETY: integers.
        let mut statistics: libc::tpacket_stats = unsafe { std::mem::zeroed() };
        let mut length = size_of_val(&statistics) as u32;
        let (level, name) = (libc::SOL_PACKET, libc::PACKET_STATISTICS);
        // SAFETY: the structure and its length live through the call.
        check(unsafe { libc::getsockopt(self.0.as_raw_fd(), level, name, (&raw mut statistics).cast(), &mut length) }).unwrap();
        statistics.tp_packets
    }
}

/// A bed with XDP on all interfaces.
fn bed_with(name: &str, xdp: &'static str) -> Bed {
    // A veth's packets carry unfinished checksums, which XDP cannot finish: an uplink's do not.
    let options = Options { offloads: false, ..Options::default() };
    let mut bed = Bed::prepare(name, options, &[Split::tcp(80, 20), Split::tcp(80, 20).v6().named("web6")]);
    (bed.site.xdp, bed.site.interfaces) = (xdp, vec!["c0:uplink", "b*:uplink"]);
    let bed = bed.started();
    let program = format!("xdp-{xdp}");
    let attached = |status: &splitter_api::Status| status.interfaces.iter().all(|i| i.programs.contains(&program));
    assert_eq!(attached(&bed.status()), xdp != "off", "{:?}", bed.status().interfaces);
    bed
}

/// Share of the client's packets that the stack of the node saw.
fn share_seen_by_the_stack(bed: &Bed, name: &str) -> f64 {
    for v6 in [false, true] {
        share_of_v2(name, &bed.clean(Plan::http(vip(v6)), bulk(1_000)), 0.2);
        bed.clean(Plan { path: "/bytes/300000".into(), ..Plan::http(vip(v6)) }, 40);
    }
    let tap = Tap::on(&bed.lab.node, c"c0");
    let packets = || bed.service("web").versions.iter().map(|version| version.packets_in).sum::<u64>();
    let before = packets();
    bed.clean(Plan { reuse: Reuse::KeepAlive, ..Plan::http(vip(false)) }, bulk(10_000));
    let seen = tap.packets();
    f64::from(seen) / (packets() - before) as f64
}

#[test]
fn generic_xdp_forwards_what_is_plain() {
    let share = share_seen_by_the_stack(&bed_with("xdpgen", "generic"), "generic");
    assert!(share < 0.2, "{:.0}% of the packets came to the stack", share * 100.0);
}

#[test]
fn without_xdp_everything_comes_to_the_stack() {
    let share = share_seen_by_the_stack(&bed_with("xdpoff", "off"), "off");
    assert!(share > 0.9, "{:.0}% of the packets came to the stack", share * 100.0);
}

/// What the kernel says of the node's veths, as soon as it says `expected` of all.
fn transmits(bed: &Bed, expected: bool) {
    eventually("the kernel says whether XDP can transmit", || {
        let links = bed.lab.node.run(interfaces).expect("a namespace").expect("the node's interfaces");
        let veths: Vec<_> = links.into_iter().filter(|link| link.kind.as_deref() == Some("veth")).collect();
        assert!(veths.len() > 1 && veths.iter().all(|link| link.xdp_transmits.is_some()), "{veths:?}");
        veths.iter().all(|link| link.xdp_transmits == Some(expected)).then_some(())
    });
}

/// Into a veth native XDP can transmit only while its other end has GRO on, or runs XDP; else it can only hand over to TC.
#[test]
fn native_xdp_transmits_where_the_kernel_says_it_can() {
    let bed = bed_with("xdpnat", "native");
    let far_ends = || bed.lab.backends().iter().chain([bed.lab.client()]);
    let gro = |word: &str| {
        for end in far_ends() {
            let mut command = end.command("ethtool");
            command.args(["-K", "eth0", "gro", word]);
            tool(command);
        }
    };
    gro("off");
    transmits(&bed, false);
    let share = share_seen_by_the_stack(&bed, "veth alone");
    assert!(share > 0.9, "{:.0}% of the packets came to the stack", share * 100.0);
    gro("on");
    transmits(&bed, true);
    let share = share_seen_by_the_stack(&bed, "veth with GRO");
    assert!(share < 0.2, "{:.0}% of the packets came to the stack", share * 100.0);
    gro("off");
    transmits(&bed, false);
    let share = share_seen_by_the_stack(&bed, "veth alone again");
    assert!(share > 0.9, "{:.0}% of the packets came to the stack", share * 100.0);
}
