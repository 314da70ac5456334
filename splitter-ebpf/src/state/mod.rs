//! What programs leave to each other in memory of the CPU: plain data, which [`crate::env::Scratch`] holds. Below all that works on it.

mod packet;
mod splice;

pub use packet::{Probe, Rest, Translation};
pub use splice::{Claim, Out, Pieces, Placed, Seen, Stamps};
