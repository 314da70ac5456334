//! Source translation: a port of its own for a flow, and the node's address where the backend's reply would otherwise bypass the node.

use crate::{
    env::{Env, Table, Tables},
    field,
    lb::{Translation, partner_key},
    packet::{Ip, Parsed, destination_port, ports, source_port},
    place,
};
use splitter_common::abi::*;

/// Results of [`allocate`].
pub const NO_ADDRESS: u32 = 0;
pub const TRANSLATED: u32 = 1;
pub const EXHAUSTED: u32 = 2;

/// For [`allocate`]: the address stays.
pub const SAME_ADDRESS: u32 = 0;

/// Ports that are tried for one flow.
const PROBES: u32 = 16;

/// Whether a new flow of the service, out of `out` and in by `came_by`, needs the node's address.
#[inline(always)]
pub fn needed<E: Env>(env: &E, service: u32, out: u32, came_by: u32) -> bool {
    match env.service(service).map(|service| field!(service.snat)) {
        Some(snat::ALWAYS) => true,
        Some(snat::AUTO) => out != 0 && out == came_by,
        _ => false,
    }
}

/// Takes a free port of the node's address on the interface `out`, or of the source that `t` has, for the flow that `scratch.client` names. The
/// reverse `SNAT` entry is the claim.
#[inline(never)]
pub fn allocate<F: Ip, E: Env + Tables<F>>(env: &E, t: &mut Translation<F>, out: u32) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return NO_ADDRESS };
    let (client, reverse, snat) = (place!(scratch.client), place!(scratch.partner), place!(scratch.snat));
    if out != SAME_ADDRESS {
        let Some(iface) = env.iface(out) else { return NO_ADDRESS };
        let node = if F::IPV6 { F::words(&field!(iface.addr6)) } else { F::words(&mapped(field!(iface.addr4))) };
        if node.as_ref().iter().all(|word| *word == 0) {
            return NO_ADDRESS;
        }
        t.src = node;
    }
    let Some(config) = env.config() else { return EXHAUSTED };
    let (first, count) = (field!(config.snat_port_first) as u32, field!(config.snat_port_count) as u32);
    if count == 0 {
        return EXHAUSTED;
    }
    let start = (client.ports ^ client.src.as_ref()[0].rotate_left(7) ^ env.now() as u32).wrapping_mul(0x9e37_79b1) >> 8;
    let mut i = 0;
    while i < PROBES {
        let port = (first + start.wrapping_add(i * 257) % count) as u16;
        t.ports = ports(port.to_be(), destination_port(t.ports));
        partner_key(client.proto, t, reverse);
        *snat = Snat { addr: client.src, port: source_port(client.ports), pad: 0 };
        if in_use::<F, E>(env) == 0 && env.new_snat(reverse, snat) {
            *snat = Snat { addr: t.src, port: port.to_be(), pad: 0 };
            return if env.put_snat(client, snat) { TRANSLATED } else { EXHAUSTED };
        }
        i += 1;
    }
    EXHAUSTED
}

/// Whether a flow comes back by the key `scratch.partner`: with the client's own address a port may also be one that the client uses.
#[inline(never)]
fn in_use<F: Ip, E: Env + Tables<F>>(env: &E) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 1 };
    let key = place!(scratch.partner);
    if key.proto == UDP as u32 {
        return env.flow(Table::Udp, key).is_some() as u32;
    }
    (env.leg(key).is_some() || of_layer4::<F, E>(env)) as u32
}

/// Whether a TCP flow of layer 4 comes back by the key `scratch.partner`. Read in the order in which flows move on, so that none slips by.
#[inline(always)]
pub fn of_layer4<F: Ip, E: Env + Tables<F>>(env: &E) -> bool {
    let Some(scratch) = Tables::<F>::scratch(env) else { return true };
    let key = place!(scratch.partner);
    env.half(key).is_some() || env.flow(Table::Tcp, key).is_some() || env.flow(Table::Closing, key).is_some()
}

/// Takes up the translation of a connection that goes on without its entries; 0: it had none, or not towards this backend.
#[inline(never)]
pub fn resume<F: Ip, E: Env + Tables<F>>(env: &E, p: &Parsed<F>, t: &mut Translation<F>) -> u32 {
    let Some(forward) = env.snat(&p.key) else { return 0 };
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let reverse = place!(scratch.partner);
    let (src, before) = (t.src, t.ports);
    t.src = field!(forward.addr);
    t.ports = ports(field!(forward.port), destination_port(before));
    partner_key(p.key.proto, t, reverse);
    if env.snat(reverse).is_some_and(|back| field!(back.addr) == p.key.src && field!(back.port) == p.sport()) {
        return 1;
    }
    (t.src, t.ports) = (src, before);
    0
}
