//! The decision: which version a key belongs to ([`pick`]), and which version and backend a client gets ([`select`](select())). Pure functions, the same in
//! the kernel, the agent, `splitter explain` and the tests.
//!
//! The contract, held by the tests below:
//! - `bucket = hash(salt, key)` over 32 bits; version i owns an interval of buckets in proportion to its weight, in the order of the
//!   policy. No state: every node gives the same answer.
//! - exact: the share of an interval differs from the asked one by less than 2^-31; weight 0 owns nothing.
//! - monotone: when one version's share grows and the others keep their proportions, or only its neighbours pay, no key leaves it; the
//!   way back is the exact reverse.

mod bucket;
mod hash;
pub mod select;

pub use bucket::{SPACE, baseline, intervals, pick};
pub use hash::{BACKEND_TRIES, VALUE_START, backend_hash, bucket, client_key, connection_key, request_key, salt, value_key, value_step};
pub use select::{Avoid, Choice, Facts, Lookups, NO_RULE, Request, Search, select, tried_bit};

#[cfg(test)]
mod tests;
