//! The bits of the filter: set before anything names an endpoint, cleared when nothing does.

use super::{Planned, Reconciler};
use crate::{Table, TableError, Tables, bytes_of, plan::ServiceImage};
use splitter_common::{
    abi::service_mode,
    filter::{self, Role},
};

impl Reconciler {
    /// Sets the bits of new endpoints.
    pub(super) fn widen_filter(&mut self, tables: &mut impl Tables, planned: &[Planned]) -> Result<(), TableError> {
        let mut words = self.filter.clone();
        planned.iter().for_each(|planned| set_bits(&mut words, &planned.image));
        self.put_filter(tables, words)
    }

    /// Leaves nothing but the bits of what was applied, and of backends that still have something to finish.
    pub(super) fn narrow_filter(&mut self, tables: &mut impl Tables) -> Result<(), TableError> {
        let mut words = vec![0; filter::WORDS as usize];
        self.services().for_each(|planned| set_bits(&mut words, &planned.image));
        for backend in self.leaving.values() {
            let (word, bits) = filter::bits_of(Role::Backend, &backend.addr, backend.port, splitter_common::abi::TCP);
            words[word as usize] |= bits | filter::http(bits);
        }
        self.put_filter(tables, words)
    }

    fn put_filter(&mut self, tables: &mut impl Tables, words: Vec<u64>) -> Result<(), TableError> {
        if words != self.filter {
            tables.put(Table::Filter, bytes_of(&[0u32]), bytes_of(&words))?;
            self.filter = words;
        }
        Ok(())
    }
}

/// Of a service's endpoints; those of http have bits of their own besides.
pub(super) fn set_bits(words: &mut [u64], image: &ServiceImage) {
    for frontend in &image.frontends {
        let (word, bits) = filter::bits_of(Role::Vip, &frontend.addr, [0; 2], 0);
        words[word as usize] |= bits;
    }
    let splice = image.kernel().mode == service_mode::HTTP;
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
