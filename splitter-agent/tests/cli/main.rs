//! The command line as users meet it, with a stand-in for the agent. Needs no kernel.

mod agent;
mod completion;
mod follow;
mod messages;
#[path = "../support/pty.rs"]
mod pty;
mod terminal;
