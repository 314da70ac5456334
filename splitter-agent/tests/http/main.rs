//! HTTP requests split one by one: real servers and clients, every shape of request and connection, faults. Needs root and the programs that
//! `cargo xtask setup` installs.
//!
//! `SPLITTER_TEST_LONG=1` sends 100,000 requests where a normal run sends a few thousand. `SPLITTER_TEST_THROUGH=haproxy` (or `nginx`) puts
//! that proxy in the place of the agent: what fails there as well is a fault of the test, or asks more than a proxy gives.

mod acks;
mod agent;
mod answers;
mod backends;
mod bodies;
mod clients;
mod ends;
mod explain;
mod flood;
mod forged;
mod heads;
mod hooks;
mod inflight;
mod local;
mod network;
mod observe;
mod order;
mod pinned;
mod pooled;
mod slots;
mod smuggling;
mod stack;
mod stage;
mod stamps;
#[path = "../support/mod.rs"]
mod support;
mod tags;
mod trace;
mod wire;
