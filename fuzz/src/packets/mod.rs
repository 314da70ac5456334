//! Packets through the whole pipeline of the kernel programs, over maps in memory. The first two bytes choose the node (`lab`), the rest are events
//! (`script`): what clients and backends that keep TCP's numbers send, damaged at will, frames of any bytes, time that passes, tables that change.
//!
//! Nothing panics, no tail call too many is made, every lock is given back. What is left to the stack undecided is as it came;
//! what leaves the node for a sound packet is sound: lengths and every checksum (`wire`). What leaves never goes to a VIP from the clients' side.

mod lab;
mod script;
mod wire;

use crate::bytes::Bytes;

/// Most events of one input: a fuzzer would make them longer and longer.
const EVENTS: usize = 64;

/// See the module.
pub fn run(input: &[u8]) {
    let mut input = Bytes(input);
    let mut lab = lab::Lab::new(input.byte(), input.byte());
    for _ in 0..EVENTS {
        if input.is_empty() {
            break;
        }
        script::event(&mut lab, &mut input);
    }
}
