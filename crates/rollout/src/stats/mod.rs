//! Sequential tests: their error bounds hold at every look, so that a judge may look ten times a second and act at once.
//!
//! | file | question |
//! |---|---|
//! | `detector` | is there evidence of harm now, at most so many false alarms a day? |
//! | `contrast` | does the canary fail (or exceed a cut) more often than the concurrent baseline? |
//! | `limit` | does a rate lie above a fixed limit? |
//! | `confidence` | within which bounds does a rate lie? (for promotion: is it *shown* to be low?) |
//! | `counts` | sparse histograms in the kernel's buckets, and cuts at a quantile |
//!
//! Pure arithmetic on counts; no clock, no randomness, no I/O. Every claim of validity is checked by simulation in `tests`.

mod confidence;
mod contrast;
mod counts;
mod detector;
mod limit;
#[cfg(test)]
mod tests;

pub use confidence::{lower, upper};
pub use contrast::Contrast;
pub use counts::{BUCKETS, Counts, bucket_above, bucket_of, cut_seconds};
pub use detector::{ALTERNATIVES, Detector};
pub use limit::Limit;
