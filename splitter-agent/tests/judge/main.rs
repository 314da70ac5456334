//! What the kernel counts of every client's connection or datagram, against what clients and servers saw: each fault with real servers. Needs
//! root.

mod faults;
mod handshakes;
mod outsiders;
mod stage;
#[path = "../support/mod.rs"]
mod support;
mod truth;
mod verdicts;
