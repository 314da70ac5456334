//! One IP version with all that the pipeline does to it.

use crate::{answer::Answer, nat::icmp::IcmpError};
use splitter_common::abi::{V4, V6};

/// See the module.
pub trait Network: Answer + IcmpError {}
impl Network for V4 {}
impl Network for V6 {}
