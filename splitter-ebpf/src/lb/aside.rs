//! What is no data of a flow, reached by tail call: it need not burden the programs of those that are. ICMP, and what is sent to an address of
//! a frontend and no service has.

use super::frontend_of;
use crate::{
    answer,
    bytes::{Packet, RouteQuery},
    env::{Env, Tables},
    field, nat,
    network::Network,
    packet::{ICMP, ICMPV6, Parsed, tcp, verify},
    place,
    verdict::Verdict,
};
use splitter_common::abi::*;

/// Smallest packets that every link carries (RFC 791, RFC 8200), bytes.
const LEAST_MTU4: u32 = 68;
const LEAST_MTU6: u32 = 1280;

/// A packet that the pipeline has put aside. Besides actions: steps of the splice.
#[inline(always)]
pub fn aside<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    if packet.foreign() {
        return Verdict::PASS;
    }
    let icmp = p.key.proto == if F::IPV6 { ICMPV6 } else { ICMP } as u32;
    if icmp && !p.fragment {
        let verdict = nat::icmp::error(packet, env, p);
        if verdict != Verdict::CONTINUE {
            return verdict;
        }
    }
    if P::XDP {
        return Verdict::PASS;
    }
    if p.fragment && p.is_tcp() && p.key.ports != 0 {
        let verdict = in_pieces(packet, env, p);
        if verdict != Verdict::CONTINUE {
            return verdict;
        }
    }
    if P::EGRESS {
        return Verdict::PASS;
    }
    unserved(packet, env, p, icmp as u32)
}

/// A fragment of a TCP segment that may be an http service's, which the filter tells with some chance. Nobody puts it together here, and what cannot be
/// read cannot be decided. So the sender is told that the path carries no more than the fragment: TCP sends smaller segments then, which a router
/// on the way need not cut (RFC 1191; RFC 5927, 7.2 has a floor for it). `AGAIN`: it is layer 4's; `CONTINUE`: nobody's.
#[inline(never)]
fn in_pieces<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::PASS };
    let frontend = place!(scratch.frontend);
    frontend_of(p, frontend);
    let http = match env.frontend(frontend) {
        Some(service) => env.service(service).is_some_and(|service| field!(service.mode) == service_mode::HTTP),
        None if env.leg(&p.key).is_some() => true,
        None if env.vip(&frontend.addr).is_some() => return Verdict::CONTINUE,
        None => false,
    };
    if !http {
        return Verdict::AGAIN;
    }
    env.count(Reason::HttpFragment);
    let Some(id) = p.first_fragment else { return Verdict::DROP };
    // The others are to be known again.
    env.put_fragment(&FragmentKey::<F> { src: p.key.src, dst: p.key.dst, id, proto: p.key.proto }, p.key.ports);
    let least = if F::IPV6 { LEAST_MTU6 } else { LEAST_MTU4 };
    answer::error(packet, env, p, if p.ip_len > least { p.ip_len & 0xffff } else { least })
}

/// A packet that nobody serves. The node's own routes would often send one to a VIP back to the gateway that it came from, and that one back here, until
/// its hop limit ends: it is answered as a host answers that has the address. Left to the stack is what it can bring to somebody: to the node itself,
/// or to a host on a link that has the address.
#[inline(never)]
fn unserved<F: Network, P: Packet, E: Env + Tables<F>>(packet: &mut P, env: &E, p: &Parsed<F>, icmp: u32) -> Verdict {
    let Some(scratch) = Tables::<F>::scratch(env) else { return Verdict::PASS };
    let frontend = place!(scratch.frontend);
    frontend.addr = F::mapped(&p.key.dst);
    let Some(flags) = env.vip(&frontend.addr) else { return Verdict::PASS };
    if env.owned(&frontend.addr) {
        return Verdict::PASS;
    }
    let plain = !p.fragment || p.first_fragment.is_some();
    if icmp != 0 && !p.fragment {
        let Some([kind, code]) = packet.read::<2>(p.l4 as usize) else { return Verdict::PASS };
        if F::IPV6 && kind > F::ECHO[1] {
            // Neighbours ask for the address by these, where the node speaks for it (RFC 4861).
            return Verdict::PASS;
        }
        if kind == F::ECHO[0] && code == 0 && flags & vip_flag::PING != 0 {
            return answer::echo(packet, env, p);
        }
    }
    let query = RouteQuery { ipv6: F::IPV6, proto: p.key.proto as u8, src: F::query(&p.key.src), dst: F::query(&p.key.dst) };
    if flags & vip_flag::PASS != 0 || packet.on_link(&query) {
        return Verdict::PASS;
    }
    if icmp != 0 || !plain || p.is_tcp() && p.flags & tcp::RST != 0 {
        env.count(Reason::VipStray);
        return Verdict::DROP;
    }
    let summed = p.is_tcp() || p.key.proto == UDP as u32;
    if summed && verify::holds(packet, env, p) == 0 {
        return Verdict::DROP;
    }
    env.count(Reason::VipRefused);
    if p.is_tcp() {
        return if p.fragment { Verdict::DROP } else { answer::reset(packet, env, p) };
    }
    answer::error(packet, env, p, if p.key.proto == UDP as u32 { answer::error::PORT } else { answer::error::PROTOCOL })
}
