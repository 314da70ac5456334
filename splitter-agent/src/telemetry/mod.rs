//! What the agent tells monitoring: metrics from the observed state, and logs.

mod families;
mod log;
mod metrics;
mod rollouts;

pub use log::{Format, Level, start as start_log};
pub use metrics::{CONTENT_TYPE, PLAIN_CONTENT_TYPE, plain, render};
