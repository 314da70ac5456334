//! Shares, times and quantiles in words.

use splitter_policy::model::{Latency, Measure};

pub fn percent(value: f64) -> String {
    let text = format!("{:.3}", value * 100.0);
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

/// `p99`, `p99.9`.
pub fn quantile_name(gate: &Latency) -> String {
    let measure = if gate.measure == Measure::Connect { "connect" } else { "latency" };
    format!("{measure} p{}", f64::from(gate.quantile) / 1e4)
}

pub fn seconds_text(value: f64) -> String {
    if value < 0.001 { format!("{:.0} us", value * 1e6) } else { format!("{:.1} ms", value * 1e3) }
}
