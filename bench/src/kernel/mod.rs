//! Cost of the kernel programs by PROG_TEST_RUN: loads the object, fills its maps by hand, runs packets through it. Root only.
//!
//! What a test run hides: driver, buffers, the redirect itself. What it shows: the program alone, without noise of the network.

mod cost;
mod head;
mod maps;

pub use cost::{Case, Cost, Setting, run};
pub use head::{Part, Scanner, padded};
pub use maps::{Load, Node, backend, client, vip};
