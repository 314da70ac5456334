//! The two hooks: packets as each of them sees them, and the entry points. What both share is here.

mod frame;
mod skb;
mod tc;
mod xdp;

use crate::maps::Kernel;
use aya_ebpf::{bindings::*, helpers::generated::bpf_fib_lookup};
use core::mem::{size_of, zeroed};
use splitter_common::abi::{self, Part, TC_ASIDE_CALLS, TC_SPLICE_CALLS, aside_call};
use splitter_ebpf::{
    bytes::{Route, RouteQuery, Window},
    env::Tables,
    field,
    network::Network,
    verdict::{Action, Verdict},
};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A view of `N` bytes at `at`, or `None` behind the end.
#[inline(always)]
fn window<'a, const N: usize>(data: usize, end: usize, at: usize) -> Option<Window<'a, N>> {
    let start = data + at;
    // SAFETY: checked against the frame's end; the verifier checks it again.
    if start + N > end { None } else { Some(unsafe { Window::new(start as *mut u8) }) }
}

/// What `bpf_fib_lookup` is asked.
#[inline(always)]
fn question(ifindex: u32, query: &RouteQuery) -> bpf_fib_lookup {
    // SAFETY: plain C struct; zero is a valid value of every field.
    let mut fib: bpf_fib_lookup = unsafe { zeroed() };
    fib.family = if query.ipv6 { AF_INET6 } else { AF_INET };
    fib.l4_protocol = query.proto;
    fib.ifindex = ifindex;
    // Any length that fits makes the kernel report the route's MTU.
    fib.__bindgen_anon_1.tot_len = 1;
    if query.ipv6 {
        fib.__bindgen_anon_3.ipv6_src = query.src;
        fib.__bindgen_anon_4.ipv6_dst = query.dst;
    } else {
        fib.__bindgen_anon_3.ipv4_src = query.src[0];
        fib.__bindgen_anon_4.ipv4_dst = query.dst[0];
    }
    fib
}

/// `bpf_fib_lookup` with the routing that a forwarded packet gets (Linux 4.18).
#[inline(always)]
fn route(ctx: *mut core::ffi::c_void, ifindex: u32, query: &RouteQuery) -> Route {
    let mut fib = question(ifindex, query);
    // SAFETY: `ctx` is this program's context; the struct is as long as said.
    let result = unsafe { bpf_fib_lookup(ctx, &mut fib, size_of::<bpf_fib_lookup>() as i32, 0) };
    if result == BPF_FIB_LKUP_RET_SUCCESS as i64 {
        // SAFETY: the last twelve bytes are the addresses: source, then destination.
        let macs =
            unsafe { core::ptr::from_ref(&fib).cast::<u8>().add(size_of::<bpf_fib_lookup>() - 12).cast::<[u16; 6]>().read_unaligned() };
        let word = |a: u16, b: u16| if cfg!(target_endian = "little") { a as u32 | (b as u32) << 16 } else { (a as u32) << 16 | b as u32 };
        let macs = [word(macs[3], macs[4]), word(macs[5], macs[0]), word(macs[1], macs[2])];
        // SAFETY: on success the kernel writes the MTU there.
        return Route::Found { ifindex: fib.ifindex, macs, mtu: unsafe { fib.__bindgen_anon_1.mtu_result } };
    }
    if result == BPF_FIB_LKUP_RET_NO_NEIGH as i64 {
        return Route::NoNeighbour { ifindex: fib.ifindex };
    }
    Route::Stack
}

/// See [`splitter_ebpf::bytes::Packet::on_link`]. A gateway's address takes the destination's place in the kernel's answer.
#[inline(always)]
fn on_link(ctx: *mut core::ffi::c_void, ifindex: u32, query: &RouteQuery) -> bool {
    let mut fib = question(ifindex, query);
    // SAFETY: as in `route`.
    let result = unsafe { bpf_fib_lookup(ctx, &mut fib, size_of::<bpf_fib_lookup>() as i32, 0) };
    if result != BPF_FIB_LKUP_RET_SUCCESS as i64 && result != BPF_FIB_LKUP_RET_NO_NEIGH as i64 {
        return false;
    }
    let family = if query.ipv6 { AF_INET6 } else { AF_INET };
    // SAFETY: integers.
    let next = unsafe { fib.__bindgen_anon_4.ipv6_dst };
    fib.family == family && next[0] == query.dst[0] && (!query.ipv6 || next[1..] == query.dst[1..])
}

/// Which of the splice's programs goes on; `None`: the verdict is an action. The step is left in the scratch memory.
#[inline(always)]
fn splice_call<F: Network>(verdict: Verdict, egress: bool) -> Option<u32>
where
    Kernel: Tables<F>,
{
    let part = match verdict.action() {
        Action::SpliceClient => Part::Client,
        Action::SpliceServer => Part::Server,
        Action::Step | Action::Over(_) | Action::Reset | Action::Error(_) => {
            let scratch = Tables::<F>::scratch(&Kernel)?;
            field!(scratch.step = verdict);
            Part::Steps
        }
        Action::Again => Part::Layer4,
        Action::Read => Part::Read,
        Action::SpliceConnection => Part::Connection,
        Action::SpliceLeg => Part::Leg,
        Action::Body => Part::Body,
        Action::Aside => return Some(TC_ASIDE_CALLS - TC_SPLICE_CALLS + aside_call(F::IPV6, egress)),
        _ => return None,
    };
    Some(abi::splice_call(part, F::IPV6, egress))
}
