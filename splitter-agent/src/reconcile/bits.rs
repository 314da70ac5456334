//! The bits of the filter: set before anything names an endpoint, cleared when nothing does.

use super::{Planned, Reconciler, Step};
use crate::{
    datapath::{Table, TableError, Tables, bytes_of},
    plan::ServiceImage,
};
use splitter_common::{
    abi::service_mode,
    filter::{self, Role},
};
use std::collections::HashSet;

impl Reconciler {
    /// The filter with the bits of new endpoints set.
    pub(super) fn widened(&self, planned: &[Planned]) -> Vec<u64> {
        let mut words = self.filter.clone();
        planned.iter().for_each(|planned| set_bits(&mut words, &planned.image));
        words
    }

    /// The filter with nothing but the bits of what there will be.
    pub(super) fn exact_filter(&self, step: &Step) -> Vec<u64> {
        let mut words = vec![0; filter::WORDS as usize];
        step.planned.iter().for_each(|planned| set_bits(&mut words, &planned.image));
        let names = step.new_names();
        let gone: HashSet<&str> = step.gone.iter().map(String::as_str).collect();
        for planned in self.services() {
            let name = &planned.model.name;
            if !names.contains(name.as_str()) && !gone.contains(name.as_str()) {
                set_bits(&mut words, &planned.image);
            }
        }
        words
    }

    pub(super) fn put_filter(&mut self, tables: &mut impl Tables, words: Vec<u64>) -> Result<(), TableError> {
        if words != self.filter {
            tables.put(Table::Filter, bytes_of(&[0u32]), bytes_of(&words))?;
            self.filter = words;
        }
        Ok(())
    }
}

/// Of a service's endpoints; those of http have bits of their own besides.
pub(super) fn set_bits(words: &mut [u64], image: &ServiceImage) {
    let splice = image.record.mode == service_mode::HTTP;
    let mut set = |(word, bits): (u32, u64)| words[word as usize] |= if splice { bits | filter::http(bits) } else { bits };
    for frontend in &image.frontends {
        set(filter::bits_of(Role::Frontend, &frontend.addr, frontend.port, frontend.proto));
    }
    for proto in image.protocols() {
        for (_, backend) in &image.backends {
            set(filter::bits_of(Role::Backend, &backend.addr, backend.port, proto));
        }
    }
}
