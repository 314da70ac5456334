//! The agent as users run it: a real process in a network namespace, real clients and servers around it. Needs root.

mod clsact;
mod collide;
mod doctor;
mod firewalled;
mod interfaces;
mod node;
mod observe;
mod pieces;
mod split;
mod stack;
#[path = "../support/mod.rs"]
mod support;
mod traces;
mod transfer;
mod unserved;
mod weights;
mod xdp;
