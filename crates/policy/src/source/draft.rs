//! Objects while they are read.

use super::At;
use crate::model::{Frontend, Service};

/// What is known of one object, errors or not.
pub struct Draft {
    pub path: String,
    /// `TrafficSplit checkout`.
    pub object: String,
    /// Where the name stands.
    pub name: Option<(String, At)>,
    pub frontends: Vec<(Frontend, At)>,
    pub places: Places,
    /// When nothing is wrong with it by itself.
    pub service: Option<Service>,
}

/// Where parts stand, for warnings.
#[derive(Default)]
pub struct Places {
    pub versions: Vec<At>,
    /// Of http services: without those of the line `canary`.
    pub rules: Vec<At>,
    /// The list of versions.
    pub list: Option<At>,
}
