//! Rollouts on a real node, with real servers that turn bad. Needs root.

mod http;
mod judged;
mod kept;
mod suffers;
#[path = "../support/mod.rs"]
mod support;
