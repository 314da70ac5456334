//! The node agent as a library, so that tests and benchmarks drive the same code as the program.

pub mod admin;
pub mod app;
pub mod cli;
pub mod control;
pub mod datapath;
mod memory;
pub mod model;
pub mod observed;
pub mod outside;
pub mod plan;
mod privileges;
pub mod reconcile;
pub mod rollout;
pub mod source;
pub mod telemetry;
