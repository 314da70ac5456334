//! Maps in ordinary memory: [`Tables`] for tests and measurements without a kernel. Behaves as the kernel does where the agent can see it.

use super::tables::{Cursor, Table, TableError, Tables};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io,
};

/// See the module. Arrays read as zeros until written.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    maps: BTreeMap<Table, BTreeMap<Vec<u8>, Vec<u8>>>,
    limits: BTreeMap<Table, u32>,
    marks: RefCell<BTreeSet<u32>>,
}

impl Memory {
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a table small.
    pub fn with_limit(mut self, table: Table, limit: u32) -> Self {
        self.limits.insert(table, limit);
        self
    }

    /// Entries of a table in key order.
    pub fn entries(&self, table: Table) -> impl Iterator<Item = (&Vec<u8>, &Vec<u8>)> {
        self.maps.get(&table).into_iter().flatten()
    }
}

impl Tables for Memory {
    fn put(&mut self, table: Table, keys: &[u8], values: &[u8]) -> Result<(), TableError> {
        let (limit, value_size) = (self.limit(table), self.value_size(table));
        let map = self.maps.entry(table).or_default();
        for (key, value) in keys.chunks_exact(table.key_size()).zip(values.chunks_exact(value_size)) {
            let beyond = if table.is_array() {
                super::plain::read::<u32>(key) >= limit
            } else {
                !map.contains_key(key) && map.len() >= limit as usize
            };
            if beyond {
                return Err(TableError::Full { table, limit, hint: "" });
            }
            map.insert(key.to_vec(), value.to_vec());
            if table == Table::Counters {
                self.marks.get_mut().insert(super::plain::read(key));
            }
        }
        Ok(())
    }

    fn replace(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<bool, TableError> {
        let Some(old) = self.maps.entry(table).or_default().get_mut(key) else { return Ok(false) };
        *old = value.to_vec();
        Ok(true)
    }

    fn delete(&mut self, table: Table, keys: &[u8]) -> Result<(), TableError> {
        if table.is_array() {
            return Err(TableError::Refused { table, action: "delete from", cause: io::Error::from_raw_os_error(libc::EINVAL) });
        }
        let map = self.maps.entry(table).or_default();
        for key in keys.chunks_exact(table.key_size()) {
            map.remove(key);
        }
        Ok(())
    }

    fn get(&self, table: Table, key: &[u8], value: &mut [u8]) -> Result<bool, TableError> {
        match self.maps.get(&table).and_then(|map| map.get(key)) {
            Some(found) => value.copy_from_slice(found),
            None if table.is_array() => value.fill(0),
            None => return Ok(false),
        }
        Ok(true)
    }

    fn scan(&self, table: Table, cursor: &mut Cursor, limit: usize, keys: &mut Vec<u8>, values: &mut Vec<u8>) -> Result<bool, TableError> {
        keys.clear();
        values.clear();
        let Some(map) = self.maps.get(&table) else { return Ok(false) };
        let from = if cursor.started { std::ops::Bound::Excluded(cursor.token.clone()) } else { std::ops::Bound::Unbounded };
        let mut count = 0;
        for (key, value) in map.range((from, std::ops::Bound::Unbounded)).take(limit) {
            keys.extend_from_slice(key);
            values.extend_from_slice(value);
            cursor.token.clone_from(key);
            count += 1;
        }
        cursor.started = true;
        Ok(count == limit)
    }

    fn range(&self, table: Table, first: u32, values: &mut [u8]) -> Result<(), TableError> {
        assert!(table.is_array(), "{table}");
        let parts = values.chunks_exact_mut(self.value_size(table));
        parts.enumerate().try_for_each(|(i, value)| self.get(table, &(first + i as u32).to_ne_bytes(), value).map(|_| ()))
    }

    fn take_marks(&self, first: u32, marked: &mut [bool]) {
        let mut marks = self.marks.borrow_mut();
        (first..).zip(marked).for_each(|(version, marked)| *marked = marks.remove(&version));
    }

    fn limit(&self, table: Table) -> u32 {
        self.limits.get(&table).copied().unwrap_or(1 << 20)
    }

    fn cpus(&self) -> usize {
        2
    }

    fn memory(&self, _table: Table) -> u64 {
        0
    }
}
