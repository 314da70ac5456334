//! The policy: what users ask for, and how it is read.
//!
//! | module | does | imports |
//! |---|---|---|
//! | [`model`] | the policy, valid by construction | nothing |
//! | [`source`] | objects (a YAML file or folder, with line and column of every finding), addresses of names (DNS), and what both say together; watches for changes | `model` |
//!
//! Knows nothing of the kernel, of the admin API, or of what happens to the policy.

pub mod model;
pub mod source;
