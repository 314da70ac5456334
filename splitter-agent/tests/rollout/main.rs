//! Rollouts on a real node, with real servers that turn bad. Needs root.

mod http;
mod judged;
#[path = "../support/mod.rs"]
mod support;
