//! The node agent as a library, so that tests and benchmarks drive the same code as the program.
//!
//! | module | what it does |
//! |---|---|
//! | [`control`] | the one owner of the node's state, an actor |
//! | [`outside`] | webhooks, commands, Prometheus, cgroups, probes |
//! | [`admin`] | the HTTP listeners |
//! | [`telemetry`] | metrics and logs |
//! | [`cli`] | commands |
//! | [`app`] | wiring of the agent: start, run, end |
//! | `certificates` | the certificates that policies name |
//! | `memory` | settings of the allocator |
//! | `privileges` | the capabilities that are kept |
//!
//! The policy, the judge, the datapath and the admin API's JSON are crates of their own.

pub mod admin;
pub mod app;
mod certificates;
pub mod cli;
pub mod control;
mod memory;
pub mod outside;
mod privileges;
pub mod telemetry;
