//! The benchmarks of Splitter: what is measured, beside what, and how it is written down. What they stand on is `splitter-lab`.
//!
//! | module | what it does |
//! |---|---|
//! | [`cases`] | the benchmarks, one module each |

pub mod cases;
