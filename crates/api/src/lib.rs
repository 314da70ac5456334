//! The admin API: what is asked and answered as JSON, and what the CLI prints. The keys are a stable surface.
//!
//! Plain data; imports nothing else of the project. Times are Unix seconds (f64) unless a unit is named.
//!
//! | module | holds |
//! |---|---|
//! | `status` | `/v1/status`, `/v1/policy`, `/v1/flows`, `/v1/explain`, weights |
//! | `query` | what they can be asked for |
//! | `rollout` | `/v1/rollouts`, the audit log |
//! | `trace` | `/v1/trace` |
//! | `percent` | names in URLs |
//! | `client` | the CLI's side (feature `client`) |

#[cfg(feature = "client")]
pub mod client;
mod percent;
mod query;
mod rollout;
mod status;
mod trace;

pub use percent::*;
pub use query::*;
pub use rollout::*;
pub use status::*;
pub use trace::*;
