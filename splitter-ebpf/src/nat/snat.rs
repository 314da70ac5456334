//! Source translation: the node's address and a port of its own, where the backend's reply would otherwise bypass the node.

use crate::{
    env::{Env, Table, Tables},
    field,
    lb::{Translation, partner_key},
    packet::{Ip, Parsed, destination_port, ports},
    place,
};
use splitter_common::abi::*;

/// Results of [`allocate`].
pub const NO_ADDRESS: u32 = 0;
pub const TRANSLATED: u32 = 1;
pub const EXHAUSTED: u32 = 2;

/// Ports that are tried for one flow.
const PROBES: u32 = 16;

/// Whether a new flow of the service, out of `out` and in by `came_by`, needs a translated source.
#[inline(always)]
pub fn needed<E: Env>(env: &E, service: u32, out: u32, came_by: u32) -> bool {
    match env.service(service).map(|service| field!(service.snat)) {
        Some(snat::ALWAYS) => true,
        Some(snat::AUTO) => out != 0 && out == came_by,
        _ => false,
    }
}

/// Takes a free port of the node's address on the interface `out`. The reverse `SNAT` entry is the claim.
#[inline(never)]
pub fn allocate<F: Ip, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, t: &mut Translation<F>, out: u32) -> u32 {
    let Some(iface) = env.iface(out) else { return NO_ADDRESS };
    t.src = if F::IPV6 { F::words(&field!(iface.addr6)) } else { F::words(&mapped(field!(iface.addr4))) };
    if t.src.as_ref().iter().all(|word| *word == 0) {
        t.src = p.key.src;
        return NO_ADDRESS;
    }
    let Some(config) = env.config() else { return NO_ADDRESS };
    let (first, count) = (field!(config.snat_port_first) as u32, field!(config.snat_port_count) as u32);
    if count == 0 {
        return EXHAUSTED;
    }
    let Some(scratch) = Tables::<F>::scratch(env) else { return NO_ADDRESS };
    let (reverse, snat) = (place!(scratch.partner), place!(scratch.snat));
    let start = (p.key.ports ^ p.key.src.as_ref()[0].rotate_left(7) ^ env.now() as u32).wrapping_mul(0x9e37_79b1) >> 8;
    let mut i = 0;
    while i < PROBES {
        let port = (first + start.wrapping_add(i * 257) % count) as u16;
        t.ports = ports(port.to_be(), destination_port(t.ports));
        partner_key(p.key.proto, t, reverse);
        let closing = p.is_tcp() && env.flow(Table::Closing, reverse).is_some();
        *snat = Snat { addr: p.key.src, port: p.sport(), pad: 0 };
        if !closing && env.put_snat(reverse, snat, true) {
            *snat = Snat { addr: t.src, port: port.to_be(), pad: 0 };
            return if env.put_snat(&p.key, snat, false) { TRANSLATED } else { EXHAUSTED };
        }
        i += 1;
    }
    EXHAUSTED
}
