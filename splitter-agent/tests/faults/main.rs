//! Faults that the node survives: each under real traffic. Needs root.
//!
//! `SPLITTER_TEST_LONG=1` stays without the agent for 30 s instead of 5 s. An interface that is deleted and made anew: see `netns`.

mod agent;
mod backends;
mod flood;
mod layouts;
mod loss;
mod names;
mod policy;
mod pressure;
#[path = "../support/mod.rs"]
mod support;
mod truth;
