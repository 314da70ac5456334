//! The cases `rollout`, how soon the judge takes a bad canary back, how often a good one, how fast it promotes, and `judge-cost`.
//!
//! Simulated parts run the agent's own step function on drawn counts, seeded, so that they give the same figures everywhere; rules of others are
//! replayed on the same streams. The live parts run a real agent in namespaces.

mod live;
mod rivals;
mod simulate;
mod stream;

use super::{Place, Rows};
use anyhow::Result;

pub fn run(place: &Place, quick: bool, rows: &mut Rows) -> Result<()> {
    simulate::run(quick, rows)?;
    live::detection(place, if quick { 2 } else { 20 }, rows)
}

pub fn cost(place: &Place, quick: bool, rows: &mut Rows) -> Result<()> {
    live::cost(place, if quick { 5 } else { 30 }, rows)
}
