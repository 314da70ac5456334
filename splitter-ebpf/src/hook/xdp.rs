//! XDP programs: packets of known flows.

use super::{frame::Frame, splice_call};
use crate::maps::{Kernel, XDP_CALLS};
use aya_ebpf::{bindings::xdp_action, helpers::generated::bpf_redirect, macros::xdp, programs::XdpContext};
use splitter_common::abi::{IPV6_CALL, V4, V6, XDP_SPLICE_CALLS};
use splitter_ebpf::{
    env::Tables,
    lb::{self, Carries},
    network::Network,
    place, splice,
    verdict::{Action, Verdict},
};

/// XDP, the fast path: packets of known flows on interfaces that deliver final checksums. The rest goes on to TC untouched.
#[xdp]
pub fn splitter_xdp(ctx: XdpContext) -> u32 {
    let mut packet = Frame(ctx);
    match lb::carries(&mut packet, &Kernel) {
        Carries::Ipv4 => {
            let verdict = lb::ipv4(&mut packet, &Kernel);
            go_on_xdp::<V4>(packet, verdict)
        }
        Carries::Ipv6 => {
            // SAFETY: as in `splitter_tc`.
            let _ = unsafe { XDP_CALLS.tail_call(&packet.0, IPV6_CALL) };
            xdp_action::XDP_PASS
        }
        Carries::Other => xdp_action::XDP_PASS,
    }
}

/// XDP of IPv6. Reached from `splitter_xdp` only.
#[xdp]
pub fn splitter_xdp6(ctx: XdpContext) -> u32 {
    let mut packet = Frame(ctx);
    let verdict = lb::ipv6(&mut packet, &Kernel);
    go_on_xdp::<V6>(packet, verdict)
}

/// As [`go_on`].
#[inline(always)]
fn go_on_xdp<F: Network>(packet: Frame, verdict: Verdict) -> u32
where
    Kernel: Tables<F>,
{
    if let Some(call) = splice_call::<F>(verdict, false) {
        // SAFETY: as in `go_on`. Most slots stay empty here: TC has all programs.
        let _ = unsafe { XDP_CALLS.tail_call(&packet.0, XDP_SPLICE_CALLS + call) };
        return xdp_action::XDP_PASS;
    }
    match verdict.action() {
        Action::Drop => xdp_action::XDP_DROP,
        // SAFETY: a helper without pointers.
        Action::Redirect(ifindex) => unsafe { bpf_redirect(ifindex, 0) as u32 },
        _ => xdp_action::XDP_PASS,
    }
}

macro_rules! splice_xdp_programs {
    ($($name:ident $family:ty, $run:path;)*) => { $(
        #[doc = "As the TC programs, for established flows."]
        #[xdp]
        pub fn $name(ctx: XdpContext) -> u32 {
            let Some(scratch) = Tables::<$family>::scratch(&Kernel) else { return xdp_action::XDP_PASS };
            let mut packet = Frame(ctx);
            let verdict = $run(&mut packet, &Kernel, place!(scratch.parsed));
            go_on_xdp::<$family>(packet, verdict)
        }
    )* };
}
splice_xdp_programs! {
    xdp_client4 V4, splice::client;
    xdp_server4 V4, splice::server;
    xdp_layer4_4 V4, lb::layer4;
    xdp_client6 V6, splice::client;
    xdp_server6 V6, splice::server;
    xdp_layer4_6 V6, lb::layer4;
}
