//! TC programs: ingress and egress, the complete path.

use super::{
    skb::{Skb, headers_outside, unshare},
    splice_call,
};
use crate::{
    log::{number, tell},
    maps::{Kernel, TC_CALLS},
};
use aya_ebpf::{bindings::*, helpers::generated::*, macros::classifier, programs::TcContext};
use splitter_common::abi::{IPV6_CALL, IPV6_EGRESS_CALL, TC_SPLICE_CALLS, V4, V6};
use splitter_ebpf::{
    env::Tables,
    lb::{self, Carries},
    network::Network,
    place, splice,
    verdict::{Action, Verdict},
};

/// Leaves the packet to the next program (TCX_NEXT, TC_ACT_UNSPEC).
const TC_NEXT: i32 = -1;
/// Longest headers that the pipeline reads directly: Ethernet, IPv6, TCP with options.
const LINEAR: u32 = 14 + 40 + 60;

/// TC ingress, the complete path: IPv4 here, IPv6 by tail call.
#[classifier]
pub fn splitter_tc(ctx: TcContext) -> i32 {
    classify::<false>(ctx)
}

/// TC ingress of IPv6. Reached from `splitter_tc` only.
#[classifier]
pub fn splitter_tc6(ctx: TcContext) -> i32 {
    classify6::<false>(ctx)
}

/// TC egress: connections of the node's own processes, and replies of backends that are such processes. What the ingress program has
/// translated is nobody's any more and passes.
#[classifier]
pub fn splitter_out(ctx: TcContext) -> i32 {
    classify::<true>(ctx)
}

/// TC egress of IPv6. Reached from `splitter_out` only.
#[classifier]
pub fn splitter_out6(ctx: TcContext) -> i32 {
    classify6::<true>(ctx)
}

#[inline(always)]
fn classify<const EGRESS: bool>(ctx: TcContext) -> i32 {
    if headers_outside(ctx.data(), ctx.data_end()) {
        let len = ctx.len();
        if (ctx.data_end() - ctx.data()) < len as usize {
            let _ = ctx.pull_data(if len < LINEAR { len } else { LINEAR });
        }
    }
    let mut packet = Skb::<EGRESS>(ctx);
    match lb::carries(&mut packet, &Kernel) {
        Carries::Ipv4 => {
            let verdict = lb::ipv4(&mut packet, &Kernel);
            let program = const { if EGRESS { number("splitter_out") } else { number("splitter_tc") } };
            go_on::<V4, EGRESS>(packet, verdict, program)
        }
        Carries::Ipv6 => {
            let call = if EGRESS { IPV6_EGRESS_CALL } else { IPV6_CALL };
            // SAFETY: the agent fills the slot before it attaches the program; an empty one passes the packet.
            let _ = unsafe { TC_CALLS.tail_call(&packet.0, call) };
            TC_NEXT
        }
        Carries::Other => TC_NEXT,
    }
}

#[inline(always)]
fn classify6<const EGRESS: bool>(ctx: TcContext) -> i32 {
    let mut packet = Skb::<EGRESS>(ctx);
    let verdict = lb::ipv6(&mut packet, &Kernel);
    let program = const { if EGRESS { number("splitter_out6") } else { number("splitter_tc6") } };
    go_on::<V6, EGRESS>(packet, verdict, program)
}

macro_rules! splice_programs {
    ($($name:ident $family:ty, $egress:literal, $run:path;)*) => { $(
        #[doc = "A part of the splice, for a packet that another program has read: see `splice_call`."]
        #[classifier]
        pub fn $name(ctx: TcContext) -> i32 {
            let Some(scratch) = Tables::<$family>::scratch(&Kernel) else { return TC_NEXT };
            let mut packet = Skb::<$egress>(ctx);
            let verdict = $run(&mut packet, &Kernel, place!(scratch.parsed));
            let action = go_on::<$family, $egress>(packet, verdict, const { number(stringify!($name)) });
            // No other program goes on.
            splice::release::<$family, _>(&Kernel);
            action
        }
    )* };
}
splice_programs! {
    http_client4 V4, false, splice::client;
    http_server4 V4, false, splice::server;
    http_steps4 V4, false, splice::steps;
    http_layer4_4 V4, false, lb::layer4;
    http_read4 V4, false, splice::read;
    http_conn4 V4, false, splice::connection;
    http_leg4 V4, false, splice::leg;
    http_body4 V4, false, splice::body;
    http_client6 V6, false, splice::client;
    http_server6 V6, false, splice::server;
    http_steps6 V6, false, splice::steps;
    http_layer4_6 V6, false, lb::layer4;
    http_read6 V6, false, splice::read;
    http_conn6 V6, false, splice::connection;
    http_leg6 V6, false, splice::leg;
    http_body6 V6, false, splice::body;
    out_client4 V4, true, splice::client;
    out_server4 V4, true, splice::server;
    out_steps4 V4, true, splice::steps;
    out_layer4_4 V4, true, lb::layer4;
    out_read4 V4, true, splice::read;
    out_conn4 V4, true, splice::connection;
    out_leg4 V4, true, splice::leg;
    out_body4 V4, true, splice::body;
    out_client6 V6, true, splice::client;
    out_server6 V6, true, splice::server;
    out_steps6 V6, true, splice::steps;
    out_layer4_6 V6, true, lb::layer4;
    out_read6 V6, true, splice::read;
    out_conn6 V6, true, splice::connection;
    out_leg6 V6, true, splice::leg;
    out_body6 V6, true, splice::body;
    net_in4 V4, false, lb::aside;
    net_in6 V6, false, lb::aside;
    net_out4 V4, true, lb::aside;
    net_out6 V6, true, lb::aside;
}

/// Acts on a verdict, or goes on in another program. `program`: the number of this one.
#[inline(always)]
fn go_on<F: Network, const EGRESS: bool>(packet: Skb<EGRESS>, verdict: Verdict, program: u32) -> i32
where
    Kernel: Tables<F>,
{
    if let Some(call) = splice_call::<F>(verdict, EGRESS) {
        // SAFETY: the agent fills the slots before it attaches a program; an empty one passes the packet.
        let _ = unsafe { TC_CALLS.tail_call(&packet.0, TC_SPLICE_CALLS + call) };
        return TC_NEXT;
    }
    tell(program);
    act::<EGRESS>(packet.raw(), verdict)
}

#[inline(always)]
fn act<const EGRESS: bool>(skb: *mut __sk_buff, verdict: Verdict) -> i32 {
    // SAFETY: helpers without pointers.
    unsafe {
        match verdict.action() {
            Action::Drop => TC_ACT_SHOT as i32,
            Action::Redirect(ifindex) => bpf_redirect(ifindex, 0) as i32,
            Action::RedirectPeer(ifindex) => {
                unshare(skb);
                bpf_redirect_peer(ifindex, 0) as i32
            }
            Action::Neighbour(ifindex) => bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32,
            Action::Inwards(ifindex) => bpf_redirect(ifindex, BPF_F_INGRESS as u64) as i32,
            Action::Return(ifindex) => bpf_redirect(ifindex, if EGRESS { BPF_F_INGRESS as u64 } else { 0 }) as i32,
            _ => TC_NEXT,
        }
    }
}

/// The clock of the flow tables, for the agent, which runs this by PROG_TEST_RUN: its result is `jiffies`, truncated. Never attached.
#[classifier]
pub fn splitter_clock(_ctx: TcContext) -> i32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_jiffies64() as i32 }
}
