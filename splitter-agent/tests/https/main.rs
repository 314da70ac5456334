//! `mode: https`: TLS ends in the node, and the requests inside are split as those of `mode: http`. Real clients, real servers. Needs root.

mod certificates;
mod ends;
mod judged;
mod split;
mod stage;
#[path = "../support/mod.rs"]
mod support;
